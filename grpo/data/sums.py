"""Sums and how to work them out: what the tiny models' textbooks and cold-start rows are written with."""

from __future__ import annotations

import re

from grpo.config import Tags


def steps_of(expression: str) -> tuple[list[str], int]:
    """The steps of a sum from left to right, and its total: "3 + 4 - 5" is ["3+4=7", "7-5=2"] and 2."""
    first, *rest = re.findall(r"[+-]?\s*\d+", expression)
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
