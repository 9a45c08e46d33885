"""What is said of rows that can be read and are seldom meant so."""

from __future__ import annotations

import json
from typing import Any

import pytest

from grpo.data.oddities import oddities

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": json.dumps([USER])}, {"prompt": "q"}], "1 of 2 prompts are text that reads as a list of messages"),
        ([{"prompt": str([USER])}], "1 of 1 prompts are text that reads as a list of messages"),
        (
            [{"prompt": [USER, ASSISTANT]}, {"prompt": [USER]}],
            "1 of 2 prompts end with a turn of the assistant, so the answer may stand in",
        ),
        ([{"prompt": "q", "answer": 1}, {"prompt": " Q", "answer": "2"}], "1 prompt with different answers in different rows, such as 'q'"),
        (
            [{"prompt": "q", "answer": {"style": "rule", "ground_truth": "7"}}],
            "the column answer holds fields in 1 of 1 rows (style, ground_truth)",
        ),
    ],
)
def test_what_is_odd_is_said_with_how_many_rows(rows: list[dict[str, Any]], said: str) -> None:
    (line,) = oddities(rows)
    assert line.startswith(said)


def test_nothing_is_said_of_ordinary_rows() -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "[1, 2] or [{'role'}]?", "answer": "1"},
        {"prompt": '[{"name": "x", "role": 1}', "answer": None},
        {"prompt": [USER, ASSISTANT, USER], "answer": 7},
        {"prompt": "q", "answer": "7"},
        {"prompt": "q", "answer": 7},
        {"prompt": "q"},
    ]
    assert list(oddities(rows)) == []
