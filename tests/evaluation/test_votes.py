"""What samples vote for in maj@k, and pass@k where not all could be judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from typing import Any

import pytest

from grpo.algorithm.statistics import majority_score
from grpo.config import Evaluation
from grpo.evaluation.measure import pass_at_gaps, scores_of, votes_of
from rewards import RewardRuntime, RewardSpec, ScoreInput


def boxes(*answers: str) -> list[str]:
    return [f"first 4, then \\boxed{{{answer}}}" for answer in answers]


def tags(*answers: str) -> list[str]:
    return [f"<think>x</think><answer>{answer}</answer>" for answer in answers]


@pytest.fixture(scope="module")
def grader() -> Iterator[Callable[[str], RewardRuntime]]:
    """One runtime for each way to find an answer."""
    with ExitStack() as opened:
        specs = {how: RewardSpec("math", name="accuracy", settings={"extract": how}) for how in ("answer_tag", "boxed", "auto")}
        yield cache(lambda how: opened.enter_context(RewardRuntime([specs[how]])))


@pytest.mark.parametrize(
    ("how", "gold", "completions", "majority"),
    [
        ("boxed", "3/4", boxes(r"\frac34", r"\frac{3}{4}", r"\frac14", r"\frac54"), 1.0),
        ("boxed", "3/4", boxes(r"\frac14", r"\frac{1}{4}", r"\frac34", "7"), 0.0),
        ("answer_tag", "4", tags("4", "4.0", "$4$", "5", "5"), 1.0),
        ("answer_tag", "4", tags("4", r"\boxed{4}", r"The answer is \boxed{4}", "5", "5"), 1.0),
        ("answer_tag", "1/2", tags("1/2", "0.5", r"\frac{1}{2}", "2", "2"), 1.0),
        ("auto", "2", ["<answer>x+1</answer>", r"<answer>1+x</answer>", r"\boxed{2}", r"\boxed{3}", "so 3"], 0.0),
        ("answer_tag", r"\sqrt{2}", tags(r"\sqrt{2}", "2^{1/2}", r"\sqrt{3}", r"3/\sqrt{3}", r"\sqrt3"), 0.0),
        ("answer_tag", "4", tags("nobody knows", "nobody knows", "4"), 0.0),
        ("answer_tag", "4", ["no tag", "none", *tags("4")], 1.0),
    ],
)
def test_samples_vote_for_what_is_graded(
    grader: Callable[[str], RewardRuntime], how: str, gold: str, completions: list[str], majority: float
) -> None:
    inputs = [ScoreInput({"completion": text, "prefill": "", "answer": gold}, group=0) for text in completions]
    scores = [scored.parts["accuracy"] for scored in grader(how).score(inputs)]
    votes = votes_of(grader(how), inputs, scores, "answer")
    assert majority_score(votes, [score or 0.0 for score in scores]) == majority


def test_problems_vote_apart(grader: Callable[[str], RewardRuntime]) -> None:
    inputs = [
        ScoreInput({"completion": f"<answer>{text}</answer>", "prefill": "", "answer": "1"}, group) for group in (0, 1) for text in "23"
    ]
    assert votes_of(grader("answer_tag"), inputs, [0.0] * 4, "answer") == ["2", "3", "2", "3"]


def items(**accuracies: str) -> list[dict[str, Any]]:
    """One item for each sign: 1 right, 0 wrong, ? unjudged."""
    return [
        {
            "prompt_id": name,
            "said": sign,
            "accuracy": None if sign == "?" else float(sign),
            "lenient": None if sign == "?" else float(sign),
            "well_formed": 1.0,
            "finish": "stop",
            "completion_tokens": 3,
        }
        for name, signs in accuracies.items()
        for sign in signs
    ]


SETTINGS = Evaluation(prompts="heldout", samples_per_prompt=4, pass_at=[1, 4])


def test_pass_at_1_is_the_accuracy_though_one_sample_was_not_judged() -> None:
    found = scores_of(items(a="1111", b="1000", c="0000", d="11?1"), SETTINGS)
    assert found.pass_at["pass_at_1"] == found.accuracy == pytest.approx((1 + 0.25 + 0 + 1) / 4)
    assert found.pass_at["pass_at_4"] == pytest.approx(2 / 3)  # of the three problems with four judged samples
    assert pass_at_gaps(items(a="1111", b="1000", c="0000", d="11?1"), SETTINGS) == [
        "evaluation: pass_at_4 is over 3 of 4 problems: the others have fewer than 4 judged samples"
    ]


def test_a_missing_pass_at_k_is_said() -> None:
    some = items(a="111?", b="10?0")
    assert scores_of(some, SETTINGS).pass_at == {"pass_at_1": pytest.approx((1 + 1 / 3) / 2)}
    assert pass_at_gaps(some, SETTINGS) == ["evaluation: pass_at_4 is missing: no problem has 4 judged samples"]
    assert pass_at_gaps(items(a="1111"), SETTINGS) == []
