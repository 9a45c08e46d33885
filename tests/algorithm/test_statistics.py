"""Means with their errors, pass@k against counting every choice, majorities with ties."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.algorithm.statistics import majority_score, mean_and_standard_error, paired_difference, pass_at_k


def test_mean_and_standard_error_come_from_the_means_of_problems() -> None:
    # Problems' means 1/2, 1, 0: mean 1/2, squares 0 + 1/4 + 1/4, variance 1/4, error sqrt((1/4) / 3).
    mean, error = mean_and_standard_error([[1, 0], [1, 1], [0, 0]])
    assert (mean, error) == pytest.approx((0.5, math.sqrt(1 / 12)), rel=1e-12)


def test_more_samples_of_the_same_problems_do_not_shrink_the_error() -> None:
    assert mean_and_standard_error([[1] * 8, [0] * 8]) == mean_and_standard_error([[1], [0]]) == (0.5, 0.5)


def test_each_problem_weighs_alike_however_many_samples_it_has() -> None:
    # (1 + 0) / 2, not 1 / 4 of four samples
    assert mean_and_standard_error([[1], [0, 0, 0]])[0] == 0.5


def test_the_error_of_one_problem_is_unknown() -> None:
    mean, error = mean_and_standard_error([[1, 0, 0, 0]])
    assert mean == 0.25 and math.isnan(error)


@pytest.mark.parametrize(
    ("num_samples", "num_right", "k", "expected"),
    [
        (4, 1, 1, 1 / 4),
        (4, 1, 2, 1 / 2),  # 1 - C(3, 2) / C(4, 2) = 1 - 3/6
        (4, 2, 2, 5 / 6),  # 1 - C(2, 2) / C(4, 2) = 1 - 1/6
        (4, 2, 3, 1.0),  # two wrong ones cannot fill three places
        (4, 0, 4, 0.0),
        (4, 4, 1, 1.0),
    ],
)
def test_pass_at_k(num_samples: int, num_right: int, k: int, expected: float) -> None:
    assert pass_at_k(num_samples, num_right, k) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("num_samples", [1, 4, 7])
def test_pass_at_k_is_the_share_of_choices_that_hold_a_right_one(num_samples: int) -> None:
    for num_right in range(num_samples + 1):
        samples = [index < num_right for index in range(num_samples)]
        for k in range(1, num_samples + 1):
            choices = [any(choice) for choice in combinations(samples, k)]
            assert pass_at_k(num_samples, num_right, k) == pytest.approx(sum(choices) / len(choices), rel=1e-12)


@given(num_samples=st.integers(2, 64), data=st.data())
def test_pass_at_k_never_falls_with_k(num_samples: int, data: st.DataObject) -> None:
    num_right, k = data.draw(st.integers(0, num_samples)), data.draw(st.integers(1, num_samples - 1))
    assert pass_at_k(num_samples, num_right, k) <= pass_at_k(num_samples, num_right, k + 1)


def test_pass_at_more_than_was_sampled_is_refused() -> None:
    with pytest.raises(ValueError, match="pass@8 needs at least 8 samples a problem, found 4; raise evaluation.samples_per_prompt"):
        pass_at_k(4, 2, 8)


@pytest.mark.parametrize(
    ("answers", "scores", "expected"),
    [
        (["7", "7", "8"], [1, 1, 0], 1.0),
        (["8", "7", "8"], [0, 1, 0], 0.0),
        (["7", "8"], [1, 0], 0.5),  # a tie of a right and a wrong answer
        (["7", "8", "9", "7", "8"], [1, 0, 0, 1, 0], 0.5),
        ([None, None, "7"], [0, 0, 1], 1.0),  # no answer is no vote
        ([None, None], [0, 0], 0.0),
        (["7", "7", "8"], [0, 1, 0], 0.5),  # the commonest answer was ill-formed once, in whichever order
        (["7", "7", "8"], [1, 0, 0], 0.5),
        (["7", "8", "7", "8"], [1, 0, 0, 0], 0.25),  # a tie between an answer worth 1/2 and one worth 0
    ],
)
def test_majority(answers: list[str | None], scores: list[float], expected: float) -> None:
    assert majority_score(answers, scores) == expected


def test_what_is_hard_for_both_drops_out_of_a_paired_difference() -> None:
    # Problems of 0.9, 0.5 and 0.1 are each solved 0.1 more often: a difference of 0.1 without any doubt, though the means have errors of 0.23.
    after, before = [[1.0], [0.6], [0.2]], [[0.9], [0.5], [0.1]]
    assert paired_difference(after, before) == pytest.approx((0.1, 0.0))
    # of one sample each: differences 1, 0, 0, 1 have mean 1/2 and standard error sqrt(1/3) / 2
    assert paired_difference([[1], [1], [0], [1]], [[0], [1], [0], [0]]) == pytest.approx((0.5, (1 / 3) ** 0.5 / 2))
