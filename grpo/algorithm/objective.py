"""What does one token contribute to the loss? The parts of an Algorithm put together, for M tokens of whole samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from grpo.algorithm.losses import is_clipped
from grpo.algorithm.ratios import bounded_exp, importance, log_ratio
from grpo.algorithm.table import Algorithm

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """M tokens that the policy wrote; all tokens of a sample are there. Floats have one dtype.

    logprobs             [M] the policy's, with gradient
    old_logprobs         [M] the trainer's before the rollout's first update
    sampled_logprobs     [M] the engine's; NaN where not known
    reference_logprobs   [M] the frozen reference's, None where the divergence is not in the loss
    advantages           [M] the sample's, repeated
    sequence             [M] int64, from 0: which sample
    """

    logprobs: Tensor
    old_logprobs: Tensor
    sampled_logprobs: Tensor
    reference_logprobs: Tensor | None
    advantages: Tensor
    sequence: Tensor


@dataclass(frozen=True)
class TokenLosses:
    """loss [M] with gradient; clipped, importance (before truncation) and kl (None without a reference) [M] to look at."""

    loss: Tensor
    clipped: Tensor
    importance: Tensor
    kl: Tensor | None


def token_losses(algorithm: Algorithm, tokens: Tokens) -> TokenLosses:
    """loss = min(importance, cap) surrogate(log r, A) + kl_coef kl, for each token; the batch's loss is its sum with the token weights."""
    log_r = log_ratio(tokens.logprobs, tokens.old_logprobs, tokens.sequence, algorithm.ratio)
    loss = algorithm.surrogate(log_r, tokens.advantages, algorithm.clip_low, algorithm.clip_high)
    raw = importance(tokens.old_logprobs, tokens.sampled_logprobs, tokens.sequence, algorithm.importance or "token").detach()
    if algorithm.importance is not None:
        loss = raw.clamp(max=algorithm.importance_cap) * loss
    kl = None
    if tokens.reference_logprobs is not None:
        kl = algorithm.kl(tokens.logprobs, tokens.reference_logprobs)
        if algorithm.kl_unbiased:
            kl = bounded_exp(tokens.logprobs - tokens.old_logprobs) * kl
        loss = loss + algorithm.kl_coef * kl
    clipped = is_clipped(algorithm.surrogate, log_r, tokens.advantages, algorithm.clip_low, algorithm.clip_high)
    return TokenLosses(loss, clipped, raw, None if kl is None else kl.detach())
