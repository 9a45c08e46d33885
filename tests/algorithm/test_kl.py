"""The three estimators by hand, and what they promise: sign, mean, and no pull at equality."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo.algorithm.kl import k1, k2, k3


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (k1, math.log(2)),  # log(pi / pi_ref)
        (k2, math.log(2) ** 2 / 2),
        (k3, 0.5 + math.log(2) - 1),  # pi_ref / pi - log(pi_ref / pi) - 1
    ],
)
def test_a_token_twice_as_likely_as_in_the_reference(estimator, expected: float) -> None:
    now, reference = torch.tensor([0.5]).double().log(), torch.tensor([0.25]).double().log()
    assert estimator(now, reference).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("estimator", "expected"), [(k1, -math.log(2)), (k2, math.log(2) ** 2 / 2), (k3, 2 - math.log(2) - 1)])
def test_a_token_half_as_likely_as_in_the_reference(estimator, expected: float) -> None:
    now, reference = torch.tensor([0.25]).double().log(), torch.tensor([0.5]).double().log()
    assert estimator(now, reference).item() == pytest.approx(expected, rel=1e-12)


@given(now=st.floats(-30, 0), reference=st.floats(-30, 0), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_k3_is_never_negative(now: float, reference: float, dtype: torch.dtype) -> None:
    assert k3(torch.tensor(now, dtype=dtype), torch.tensor(reference, dtype=dtype)).item() >= 0


@pytest.mark.parametrize("apart", [25.0, 89.0, 200.0])
def test_k3_of_a_token_that_became_impossible_stays_finite(apart: float) -> None:
    """exp(89) is infinite in float32: from exp(20) on the estimate keeps its value, and pulls no further."""
    logprobs = torch.tensor([-1.0 - apart], requires_grad=True)
    found = k3(logprobs, torch.tensor([-1.0]))
    found.sum().backward()
    assert found.item() == pytest.approx(math.exp(20) - 21, rel=1e-6) and logprobs.grad.tolist() == [0.0]


def test_k3_pulls_in_full_where_verl_has_cut_it() -> None:
    """Beyond 10 verl lets go: here the slope is 1 - pi_ref / pi, whether the policy thinks a token rarer by exp(3) or likelier by exp(25)."""
    logprobs = torch.tensor([-4.0, -1.0], dtype=torch.float64, requires_grad=True)
    k3(logprobs, torch.tensor([-1.0, -26.0], dtype=torch.float64)).sum().backward()
    assert logprobs.grad.tolist() == pytest.approx([1 - math.exp(3), 1 - math.exp(-25)], rel=1e-12)


def test_k1_and_k3_have_the_divergence_as_their_mean() -> None:
    # Over all tokens of a vocabulary of three, weighed by pi. sum pi (pi_ref / pi - 1) = 0 for normalised distributions, hence k3.
    policy, reference = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.2, 0.6]).double()
    divergence = 0.5 * math.log(0.5 / 0.2) + 0.3 * math.log(0.3 / 0.2) + 0.2 * math.log(0.2 / 0.6)
    for estimator in (k1, k3):
        assert (policy * estimator(policy.log(), reference.log())).sum().item() == pytest.approx(divergence, rel=1e-6)


def test_k3_does_not_pull_where_policy_and_reference_agree() -> None:
    logprobs = torch.tensor([-0.5, -4.0], requires_grad=True)
    k3(logprobs, logprobs.detach()).sum().backward()
    assert logprobs.grad.tolist() == [0.0, 0.0]


def test_k3_pulls_a_token_back_by_one_minus_the_ratio() -> None:
    # d/dx (exp(ref - x) - (ref - x) - 1) = 1 - pi_ref / pi: 1 - 1/2 for a token that has become twice as likely
    logprobs = torch.tensor([0.5]).double().log().requires_grad_()
    k3(logprobs, torch.tensor([0.25]).double().log()).backward()
    assert logprobs.grad.item() == pytest.approx(0.5, rel=1e-12)
