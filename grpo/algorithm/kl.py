"""How far has the policy moved from its reference? Estimators of the KL divergence from one sampled token each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo.algorithm.ratios import MAX_LOG_RATIO

if TYPE_CHECKING:
    from torch import Tensor


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """log(pi / pi_ref): unbiased, of either sign. http://joschu.net/blog/kl-approx.html. Any shape, elementwise."""
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """(log(pi / pi_ref))^2 / 2: biased, never negative, of low variance. Any shape, elementwise."""
    return 0.5 * (logprobs - ref_logprobs).square()


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """pi_ref/pi - log(pi_ref/pi) - 1: unbiased and never negative. DeepSeekMath (arXiv:2402.03300), eq. 4. Any shape, elementwise.

    It neither grows nor pulls any further once pi_ref/pi exceeds exp(20) = 4.9e8, long after a token can still be sampled from pi, so that
    nothing overflows. verl also cuts the estimate at 10, and with it the pull on every token that is 13 times rarer than in the reference: the
    tokens that need it most, so we don't. Towards likelier tokens the estimate grows with the log of the ratio, and is left as it is.
    """
    log_ratio = (ref_logprobs - logprobs).clamp(max=MAX_LOG_RATIO)
    return log_ratio.expm1() - log_ratio
