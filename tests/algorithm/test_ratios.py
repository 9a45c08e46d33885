"""How far a sample has moved, token by token and as a whole, by hand; and what is made of the engine's own rounding."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from grpo.algorithm import GRPO, TABLE
from grpo.algorithm.objective import Tokens, token_losses
from grpo.algorithm.ratios import importance, log_ratio

# sample 0 has the tokens 0, 1 and 3; sample 1 has token 2
SEQUENCE = torch.tensor([0, 0, 1, 0])
NOW = torch.tensor([-1.0, -2.0, -3.0, -4.0], dtype=torch.float64)
OLD = torch.tensor([-1.5, -2.0, -2.0, -5.5], dtype=torch.float64)  # log ratios 0.5, 0, -1, 1.5


def test_a_token_has_its_own_ratio() -> None:
    assert log_ratio(NOW, OLD, SEQUENCE, "token").tolist() == [0.5, 0.0, -1.0, 1.5]


def test_a_samples_ratio_is_the_geometric_mean_of_its_tokens_and_pulls_at_each_alike() -> None:
    now = NOW.clone().requires_grad_()
    found = log_ratio(now, OLD, SEQUENCE, "sequence")
    assert found.tolist() == pytest.approx([2 / 3, 2 / 3, -1.0, 2 / 3])
    found[0].backward()
    assert now.grad.tolist() == pytest.approx([1 / 3, 1 / 3, 0.0, 1 / 3])


def test_importance_of_tokens_and_of_whole_samples() -> None:
    sampled = OLD - torch.tensor([0.1, 0.2, 0.3, math.nan])  # the engine thought them rarer; of the last nothing is known
    assert importance(OLD, sampled, SEQUENCE, "token").log().tolist() == pytest.approx([0.1, 0.2, 0.3, 0.0])
    assert importance(OLD, sampled, SEQUENCE, "sequence").log().tolist() == pytest.approx([0.3, 0.3, 0.3, 0.3])


def test_importance_of_a_long_sample_that_the_engine_thought_rarer_stays_finite() -> None:
    """1,000 tokens, each off by 0.1: exp(100) is infinite in float32."""
    old, sequence = torch.full((1000,), -1.0), torch.zeros(1000, dtype=torch.int64)
    assert importance(old, old - 0.1, sequence, "sequence").max().item() == pytest.approx(math.exp(20), rel=1e-4)


@pytest.mark.parametrize("row", TABLE)
@pytest.mark.parametrize("advantage", [0.0, 1.0, -1.0])
def test_no_token_however_far_it_has_moved_makes_a_nan(row: str, advantage: float) -> None:
    """In float32 a log ratio of 100, of each sign, from old policy, engine and reference."""
    apart = torch.tensor([100.0, -100.0, 100.0, -100.0])
    now = torch.full((4,), -101.0).requires_grad_()
    tokens = Tokens(now, -101 - apart, -101 + apart, -101 + apart, torch.full((4,), advantage), torch.tensor([0, 1, 2, 3]))
    found = token_losses(replace(TABLE[row], kl_in="loss", kl_coef=0.001), tokens)
    found.loss.sum().backward()
    assert found.loss.isfinite().all() and found.importance.isfinite().all() and now.grad.isfinite().all()


@pytest.mark.parametrize(
    ("level", "weights"), [("token", [1.5, 0.5, 1.0, 1.5]), ("sequence", [0.375, 0.375, 1.0, 0.375]), (None, [1.0] * 4)]
)
def test_the_loss_is_weighted_with_importance_up_to_the_cap_and_reported_before(level, weights: list[float]) -> None:
    raw = torch.tensor([3.0, 0.5, 1.0, 0.25 if level == "sequence" else 2.0], dtype=torch.float64)  # sample 0: 3 x 0.5 x 0.25 = 0.375
    tokens = Tokens(NOW.clone().requires_grad_(), NOW, NOW - raw.log(), None, torch.full((4,), -1.0, dtype=torch.float64), SEQUENCE)
    found = token_losses(replace(GRPO, importance=level, importance_cap=1.5), tokens)
    assert found.loss.tolist() == pytest.approx(weights)  # r = 1 and A = -1: each token's surrogate is 1
    assert found.importance.max().item() == pytest.approx(1.0 if level == "sequence" else 3.0)


def test_the_unbiased_divergence_is_k3_times_the_ratio() -> None:
    # log r = 0.5, log(pi_ref / pi) = -1: k3 = e^-1 + 1 - 1
    tokens = Tokens(NOW[:1], OLD[:1], OLD[:1], NOW[:1] - 1.0, torch.zeros(1, dtype=torch.float64), SEQUENCE[:1])
    found = token_losses(replace(GRPO, kl_unbiased=True, kl_coef=1.0), tokens)
    assert found.kl.item() == pytest.approx(math.exp(0.5) * math.exp(-1))
    assert found.loss.item() == found.kl.item()
