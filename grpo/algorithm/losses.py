"""What is minimised: the clipped-ratio objective per token, and the weight of each token in the sum.

Aggregation is a weight matrix. It is computed once for the whole optimizer batch; the loss is then (per_token * weights).sum(), so that
micro-batches, packed rows and ranks simply add up, and the same gradient comes out whatever the split.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from grpo.algorithm.ratios import bounded_exp

if TYPE_CHECKING:
    from torch import Tensor

Aggregate = Literal["sequence_mean", "token_mean", "constant"]
Surrogate = Callable[["Tensor", "Tensor", float, float], "Tensor"]


def token_weights(loss_mask_BT: Tensor, how: Aggregate, *, max_tokens: int) -> Tensor:
    """Weight of each token in the loss of an optimizer batch of B samples. Shape [B, T], zero outside the mask.

    sequence_mean   1 / (B |o_i|)      each sample counts alike: GRPO (arXiv:2402.03300, eq. 3)
    token_mean      1 / sum_i |o_i|    each token counts alike: DAPO (arXiv:2503.14476, eq. 8)
    constant        1 / (B max_tokens) no dependence on length: Dr. GRPO (arXiv:2503.20783)

    B counts the samples that have at least one token in the mask. An empty mask gives all zeros.
    """
    mask_BT = loss_mask_BT.double()
    lengths_B1 = mask_BT.sum(dim=1, keepdim=True)
    num_samples = (lengths_B1 > 0).sum().clamp(min=1)
    match how:
        case "sequence_mean":
            return mask_BT / (num_samples * lengths_B1.clamp(min=1))
        case "token_mean":
            return mask_BT / lengths_B1.sum().clamp(min=1)
        case "constant":
            return mask_BT / (num_samples * max_tokens)


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """Negative clipped objective of each token: -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = exp(log_ratio).

    PPO (arXiv:1707.06347, eq. 7) with GRPO's advantages; clip_high above clip_low is DAPO's clip-higher (arXiv:2503.14476, eq. 10).
    Elementwise; the advantage of a sample is repeated over its tokens.
    """
    ratio = bounded_exp(log_ratio)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -(ratio * advantages).minimum(clipped * advantages)


def dual_clipped_surrogate(log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, bound: float = 3.0) -> Tensor:
    """The clipped objective, for negative advantages at least ``bound`` A: a token that has become much likelier cannot dominate the batch.

    Dual-clip PPO (Ye et al., arXiv:1912.09729, eq. 5), with its bound of 3. Elementwise.
    """
    loss = clipped_surrogate(log_ratio, advantages, clip_low, clip_high)
    return loss.where(advantages >= 0, loss.minimum(-bound * advantages))


def clipped_weight_surrogate(log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """-sg(clip(r, 1 - clip_low, 1 + clip_high)) A log r: the weight is clipped, not the gradient, so no token falls silent.

    CISPO (MiniMax-M1, arXiv:2506.13585, eq. 4), which has log pi in place of log r: the same gradient. Elementwise.
    """
    weight = bounded_exp(log_ratio.detach()).clamp(1 - clip_low, 1 + clip_high)
    return -weight * advantages * log_ratio


def is_clipped(surrogate: Surrogate, log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """True where a bound acts on the token's gradient: takes it away (PPO's clip, the dual clip), or cuts its weight (CISPO).

    Asked of the surrogate's own slope, with its bounds and without them, so that no surrogate needs a second formula. Elementwise.
    """
    bounded, unbounded = (
        _slope(surrogate, log_ratio, advantages, clip_low, clip_high),
        _slope(surrogate, log_ratio, advantages, 1.0, math.inf),
    )
    return (bounded != unbounded) | ((bounded == 0) & (advantages != 0))


def _slope(surrogate: Surrogate, log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    at = log_ratio.detach().clone().requires_grad_()
    surrogate(at, advantages, clip_low, clip_high).sum().backward()
    assert at.grad is not None
    return at.grad
