"""Sums worked out by hand."""

from __future__ import annotations

import pytest

from grpo.config import Tags
from grpo.data.sums import steps_of, worked_sum
from grpo.errors import DataError


@pytest.mark.parametrize(
    ("expression", "steps", "total"),
    [
        ("3 + 4 - 5", ["3+4=7", "7-5=2"], 2),
        ("3 - 8 + 1", ["3-8=-5", "-5+1=-4"], -4),
        ("12+30", ["12+30=42"], 42),
        ("-3 + 10", ["-3+10=7"], 7),
        ("7", [], 7),
    ],
)
def test_steps_go_from_left_to_right(expression: str, steps: list[str], total: int) -> None:
    assert steps_of(expression) == (steps, total)


def test_a_worked_sum_stands_in_the_tags() -> None:
    assert worked_sum("3 + 4 - 5", Tags()) == " <think> 3+4=7, 7-5=2 </think> <answer> 2 </answer>"
    assert worked_sum("3 + 4", Tags(think="t", answer="final")) == " <t> 3+4=7 </t> <final> 7 </final>"


@pytest.mark.parametrize("expression", ["3 * 4", "3 4", "3 - (4 - 5)", "1.5 + 2", "3 +", "x + 1", ""])
def test_what_is_not_a_sum_is_refused_rather_than_worked_out_wrongly(expression: str) -> None:
    with pytest.raises(DataError, match="is not a sum of whole numbers"):
        steps_of(expression)
