"""The canary sings when gold answers score 1 and wrong ones 0, and names the row otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rewards import RewardRuntime, RewardSpec, canary_problems

ROWS = [{"question": f"{n} + {n}", "answer": str(2 * n)} for n in range(40)]


@pytest.fixture(scope="module")
def runtime() -> Iterator[RewardRuntime]:
    with RewardRuntime([RewardSpec("math"), RewardSpec("format", weight=0.2)]) as math_and_format:
        yield math_and_format


def render(answer: str) -> str:
    return f"<think>\nlet me see\n</think>\n<answer>{answer}</answer>"


def test_sound_data_have_no_problems(runtime: RewardRuntime) -> None:
    assert canary_problems(runtime, ROWS, render) == []


def test_a_gold_answer_that_does_not_score_one_is_shown_with_its_row(runtime: RewardRuntime) -> None:
    rows = [{"question": "capital?", "answer": "nobody knows"}, *ROWS[:7]]
    (problem,) = canary_problems(runtime, rows, render)
    assert problem.startswith(
        "row 0: its own gold answer 'nobody knows' scores None (abstained) by 'math', not 1; row: {'question': 'capital?'"
    )


def test_a_template_that_hides_the_answer_fails_every_row(runtime: RewardRuntime) -> None:
    assert len(canary_problems(runtime, ROWS, lambda answer: f"The answer is {answer}")) == 8


def test_every_row_can_be_checked(runtime: RewardRuntime) -> None:
    rows = [*ROWS, {"question": "?", "answer": ""}]
    assert canary_problems(runtime, rows, render) == []  # not among the eight
    assert len(canary_problems(runtime, rows, render, num_rows=None)) == 1


def test_a_reward_that_is_always_pleased_is_caught(reward_file: Callable[..., Path]) -> None:
    folder = reward_file("def pleased(completion, answer):\n    return 1.0\n")
    with RewardRuntime([RewardSpec("./mine.py:pleased", required=True)], base=folder) as runtime:
        problems = canary_problems(runtime, ROWS, render)
    assert len(problems) == 8 and "the wrong answer '10' scores 1 by 'pleased', not 0" in problems[0]


def test_equal_golds_in_other_words_are_no_wrong_answers(runtime: RewardRuntime) -> None:
    rows = [{"answer": answer} for answer in ("1/2", "0.5", "0.50", "2/4")]
    assert canary_problems(runtime, rows, render) == []


def test_without_a_required_reward_there_is_nothing_to_check() -> None:
    with RewardRuntime([RewardSpec("format")]) as runtime:
        assert canary_problems(runtime, ROWS, render) == []


def test_an_opinion_is_not_held_to_gold_answers() -> None:
    """Nobody listens at this address: a judge that were asked would fail. Nor is a required reward without the answer a matter of gold."""
    judge = RewardSpec("judge", settings={"base_url": "http://127.0.0.1:9/v1", "model": "m"}, required=True)
    with RewardRuntime([judge, RewardSpec("format", required=True)]) as runtime:
        assert canary_problems(runtime, ROWS, render) == []
        assert canary_problems(runtime, ROWS, render, name="judge") == []
    with RewardRuntime([judge, RewardSpec("math")]) as runtime:
        assert len(canary_problems(runtime, ROWS, lambda answer: f"The answer is {answer}")) == 8
