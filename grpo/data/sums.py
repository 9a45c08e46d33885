"""Sums and how to work them out: what the tiny models' textbooks and cold-start rows are written with."""

from __future__ import annotations

import re

from grpo.config import Tags
from grpo.errors import DataError

SUM = re.compile(r"\s*[+-]?\s*\d+(?:\s*[+-]\s*\d+)*\s*")


def steps_of(expression: str) -> tuple[list[str], int]:
    """The steps of a sum from left to right, and its total: "3 + 4 - 5" is ["3+4=7", "7-5=2"] and 2.

    Raises DataError for anything but whole numbers with + and - between them: a wrong textbook would teach wrong sums.
    """
    if not SUM.fullmatch(expression):
        raise DataError(f"expression {expression!r} is not a sum of whole numbers such as '3 + 4 - 5'")
    first, *rest = (term.replace(" ", "") for term in re.findall(r"[+-]?\s*\d+", expression))
    total, steps = int(first), []
    for term in rest:
        operator, number = term[0], int(term[1:])
        after = total + number if operator == "+" else total - number
        steps.append(f"{total}{operator}{number}={after}")
        total = after
    return steps, total


def worked_sum(expression: str, tags: Tags) -> str:
    """A correct solution in the tags: " <think> 3+4=7, 7-5=2 </think> <answer> 2 </answer>"."""
    steps, total = steps_of(expression)
    return f" <{tags.think}> {', '.join(steps)} </{tags.think}> <{tags.answer}> {total} </{tags.answer}>"
