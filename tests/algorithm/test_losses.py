"""The weight of each token by hand, and the clipped objective at ratios on both sides of the trust region."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo.algorithm import TABLE
from grpo.algorithm.losses import (
    Aggregate,
    clipped_surrogate,
    clipped_weight_surrogate,
    dual_clipped_surrogate,
    is_clipped,
    token_weights,
)

MASK = torch.tensor(
    [
        [False, True, True, False],  # 2 tokens
        [False, False, False, True],  # 1 token
        [False, False, False, False],  # none: not a sample of the mean
        [True, True, True, True],  # 4 tokens
    ]
)
HOW: tuple[Aggregate, ...] = ("sequence_mean", "token_mean", "constant")


def surrogate(ratio: float, advantage: float, low: float = 0.2, high: float = 0.2) -> float:
    log_ratio = torch.tensor(math.log(ratio), dtype=torch.float64)
    return clipped_surrogate(log_ratio, torch.tensor(advantage, dtype=torch.float64), low, high).item()


@pytest.mark.parametrize(
    ("how", "first", "second", "fourth"),
    [
        ("sequence_mean", 1 / (3 * 2), 1 / (3 * 1), 1 / (3 * 4)),  # 3 samples, of 2, 1 and 4 tokens
        ("token_mean", 1 / 7, 1 / 7, 1 / 7),  # 7 tokens
        ("constant", 1 / (3 * 10), 1 / (3 * 10), 1 / (3 * 10)),  # 3 samples of at most 10 tokens
    ],
)
def test_token_weights(how: Aggregate, first: float, second: float, fourth: float) -> None:
    expected = [[0, first, first, 0], [0, 0, 0, second], [0, 0, 0, 0], [fourth] * 4]
    torch.testing.assert_close(token_weights(MASK, how, max_tokens=10), torch.tensor(expected, dtype=torch.float64), rtol=1e-15, atol=0)


@pytest.mark.parametrize("how", HOW)
def test_an_empty_mask_has_zero_weights(how: Aggregate) -> None:
    assert token_weights(torch.zeros(2, 3, dtype=torch.bool), how, max_tokens=10).tolist() == [[0.0] * 3] * 2


def test_means_weigh_one_in_all_and_the_constant_grows_with_length() -> None:
    total = {how: token_weights(MASK, how, max_tokens=10).sum().item() for how in HOW}
    assert total == pytest.approx({"sequence_mean": 1.0, "token_mean": 1.0, "constant": 7 / 30})


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (0.5, 2.0, -1.0),  # min(0.5 * 2, 0.8 * 2) = 1: raising a too rare token again is not cut off
        (1.0, 2.0, -2.0),
        (1.5, 2.0, -2.4),  # min(1.5 * 2, 1.2 * 2) = 2.4
        (0.5, -2.0, 1.6),  # min(0.5 * -2, 0.8 * -2) = -1.6
        (1.0, -2.0, 2.0),
        (1.5, -2.0, 3.0),  # min(1.5 * -2, 1.2 * -2) = -3: a bad token that became likelier is pushed back in full
    ],
)
def test_clipped_surrogate(ratio: float, advantage: float, expected: float) -> None:
    assert surrogate(ratio, advantage) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("ratio", "expected"), [(1.25, -1.25), (1.5, -1.28)])
def test_the_two_clips_are_separate(ratio: float, expected: float) -> None:
    assert surrogate(ratio, 1.0, low=0.2, high=0.28) == pytest.approx(expected, rel=1e-12)
    assert surrogate(0.5, -1.0, low=0.2, high=0.28) == pytest.approx(0.8, rel=1e-12)


@pytest.mark.parametrize(
    ("ratio", "advantage", "cut"),
    [(0.5, 1.0, False), (1.0, 1.0, False), (1.5, 1.0, True), (0.5, -1.0, True), (1.0, -1.0, False), (1.5, -1.0, False), (1.5, 0.0, False)],
)
def test_a_token_is_clipped_where_its_gradient_is_cut(ratio: float, advantage: float, cut: bool) -> None:
    log_ratio, advantages = torch.tensor([math.log(ratio)], requires_grad=True), torch.tensor([advantage])
    assert is_clipped(clipped_surrogate, log_ratio, advantages, 0.2, 0.2).tolist() == [cut]
    clipped_surrogate(log_ratio, advantages, 0.2, 0.2).sum().backward()
    # d(-r A) / d log r = -r A where it is not cut
    assert log_ratio.grad.tolist() == pytest.approx([0.0 if cut else -ratio * advantage], rel=1e-6)


@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_on_policy_gradient_of_a_token_is_minus_advantage_over_length(advantage: float) -> None:
    # One sample of 4 tokens, ratio exactly 1: the policy gradient, -A / |o|, with nothing left of the clip.
    logprobs = torch.tensor([[-0.1, -3.0, -1.0, -7.0]], dtype=torch.float64, requires_grad=True)
    weights = token_weights(torch.ones(1, 4, dtype=torch.bool), "sequence_mean", max_tokens=4)
    (clipped_surrogate(logprobs - logprobs.detach(), torch.tensor([[advantage]]), 0.2, 0.2) * weights).sum().backward()
    assert logprobs.grad.tolist() == [[-advantage / 4] * 4]


@given(
    log_ratio=st.floats(-3, 3),
    advantage=st.floats(-3, 3),
    clip=st.sampled_from([0.1, 0.2, 10.0]),
)
def test_dapo_with_equal_clips_is_grpos_surrogate(log_ratio: float, advantage: float, clip: float) -> None:
    ratio = math.exp(log_ratio)
    grpo = -min(ratio * advantage, max(1 - clip, min(1 + clip, ratio)) * advantage)
    dapo = TABLE["dapo"].surrogate(torch.tensor(log_ratio, dtype=torch.float64), torch.tensor(advantage, dtype=torch.float64), clip, clip)
    assert dapo.item() == pytest.approx(grpo, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [
        (2.0, -1.0, 2.0, 2.0),  # pushed back in full: d(r) / d log r = r
        (4.0, -1.0, 3.0, 0.0),  # 4 would be beyond the bound of 3
        (4.0, 1.0, -1.2, 0.0),  # a positive advantage has the ordinary clip
        (0.5, -1.0, 0.8, 0.0),
    ],
)
def test_dual_clip_bounds_the_loss_of_a_bad_token_that_became_likely(ratio: float, advantage: float, expected: float, slope: float) -> None:
    log_ratio = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    loss = dual_clipped_surrogate(log_ratio, torch.tensor([advantage], dtype=torch.float64), 0.2, 0.2)
    loss.sum().backward()
    assert (loss.item(), log_ratio.grad.item()) == pytest.approx((expected, slope), rel=1e-12)


@pytest.mark.parametrize(
    ("ratio", "advantage", "cut"),
    [(0.5, -1.0, True), (2.0, -1.0, False), (4.0, -1.0, True), (4.0, 1.0, True), (1.1, 1.0, False), (4.0, 0.0, False)],
)
def test_tokens_that_the_dual_clip_silences_are_clipped(ratio: float, advantage: float, cut: bool) -> None:
    log_ratio, advantages = torch.tensor([math.log(ratio)], requires_grad=True), torch.tensor([advantage])
    assert is_clipped(dual_clipped_surrogate, log_ratio, advantages, 0.2, 0.2).tolist() == [cut]
    dual_clipped_surrogate(log_ratio, advantages, 0.2, 0.2).sum().backward()
    assert (log_ratio.grad.tolist() == [0.0]) is (cut or advantage == 0)


def test_cispo_counts_the_weights_that_it_cuts_whatever_the_advantage() -> None:
    log_ratio = torch.tensor([2.0, 2.0, 6.0, 6.0, 6.0]).log()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0])
    assert is_clipped(clipped_weight_surrogate, log_ratio, advantages, 1.0, 4.0).tolist() == [False, False, True, True, False]


@pytest.mark.parametrize("row", ["grpo", "dual_clip", "cispo"])
@pytest.mark.parametrize("log_ratio", [89.0, 200.0])
@pytest.mark.parametrize("advantage", [0.0, 1.0, -1.0])
def test_a_ratio_beyond_float32_makes_no_nan(row: str, log_ratio: float, advantage: float) -> None:
    """exp(89) is infinite, and 0 times that is NaN: of the advantage 0, and of the slope behind the clip."""
    surrogate, high = TABLE[row].surrogate, TABLE[row].clip_high
    at, advantages = torch.tensor([log_ratio], requires_grad=True), torch.tensor([advantage])
    loss = surrogate(at, advantages, 0.2, high)
    loss.sum().backward()
    if row == "cispo":  # weight 5 times log r, at any r
        expected, slope = -5 * advantage * log_ratio, -5 * advantage
    else:  # the clip's -1.2 of a good token; a bad one is pushed back at the bound's ratio, or at the dual clip's 3, and no further
        expected = {0.0: 0.0, 1.0: -1.2, -1.0: 3.0 if row == "dual_clip" else math.exp(20)}[advantage]
        slope = 0.0
    assert loss.tolist() == pytest.approx([expected], rel=1e-6) and at.grad.tolist() == [slope]


@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_the_bound_on_the_ratio_changes_no_bit_below_it(advantage: float) -> None:
    log_ratio = torch.linspace(-30, 19.9, 400, requires_grad=True)
    clipped_surrogate(log_ratio, torch.tensor(advantage), 0.2, 0.2).sum().backward()
    plain = log_ratio.detach().clone().requires_grad_()
    ratio = plain.exp()
    (-(ratio * advantage).minimum(ratio.clamp(0.8, 1.2) * advantage)).sum().backward()
    assert log_ratio.grad.tolist() == plain.grad.tolist()


@pytest.mark.parametrize(("ratio", "weight"), [(0.5, 0.5), (1.0, 1.0), (4.0, 4.0), (9.0, 5.0)])
def test_cispo_clips_the_weight_and_keeps_the_gradient(ratio: float, weight: float) -> None:
    # the gradient of log pi, times the ratio up to 1 + 4, times the advantage
    log_ratio = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    clipped_weight_surrogate(log_ratio, torch.tensor([-2.0], dtype=torch.float64), 1.0, 4.0).sum().backward()
    assert log_ratio.grad.item() == pytest.approx(2.0 * weight, rel=1e-12)
