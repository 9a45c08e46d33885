"""Log-probabilities without N x V logits in float32: the same numbers and gradients as log_softmax, kept or computed again."""

from __future__ import annotations

import math

import pytest
import torch

from grpo.trainer import head
from grpo.trainer.head import target_logprobs

HIDDEN = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(11, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TARGET = torch.tensor([0, 10, 3, 3, 7, 1, 2])


@pytest.mark.parametrize("kept", [0, 10**6])
@pytest.mark.parametrize("per_product", [11, 33, 10**6])  # a row at a time, three, all
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_entropy_and_gradients_are_those_of_log_softmax(
    monkeypatch: pytest.MonkeyPatch, kept: int, per_product: int, temperature: float
) -> None:
    monkeypatch.setattr(head, "MAX_KEPT_LOGITS", kept)
    monkeypatch.setattr(head, "LOGITS_PER_PRODUCT", per_product)
    monkeypatch.setattr(head, "LOGITS_IN_CACHE", {"cpu": 22})  # two rows
    hidden, weight = HIDDEN.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    upstream = torch.arange(1.0, 8.0, dtype=torch.float64)

    logprobs = (hidden @ weight.T / temperature).log_softmax(-1)
    wanted = torch.autograd.grad((logprobs[range(7), TARGET] * upstream).sum(), (hidden, weight))
    found, entropy = target_logprobs(hidden, weight, TARGET, temperature)
    torch.testing.assert_close(found, logprobs[range(7), TARGET], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(entropy, -(logprobs.exp() * logprobs).sum(-1), rtol=1e-12, atol=1e-12)
    for one, other in zip(torch.autograd.grad((found * upstream).sum(), (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_two_equal_logits_are_a_coin() -> None:
    found, entropy = target_logprobs(torch.ones(1, 1), torch.ones(2, 1), torch.tensor([1]), 1.0)
    assert found.item() == pytest.approx(-math.log(2)) and entropy.item() == pytest.approx(math.log(2))


def test_no_targets_give_no_log_probs() -> None:
    found, entropy = target_logprobs(torch.ones(0, 5), torch.ones(11, 5), torch.zeros(0, dtype=torch.int64), 1.0)
    assert found.shape == entropy.shape == (0,)


def test_large_logits_do_not_overflow() -> None:
    found, entropy = target_logprobs(torch.tensor([[1000.0]]), torch.tensor([[1.0], [0.0]]), torch.tensor([1]), 1.0)
    assert found.item() == -1000.0 and entropy.item() == 0.0
