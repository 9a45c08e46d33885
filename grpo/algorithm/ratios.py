"""How far has a sample's probability moved since it was drawn: token by token, or as a whole? And since the engine drew it?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Level = Literal["token", "sequence"]
MAX_LOG_RATIO = 20.0
"""Where a ratio is bounded, as in verl. In float32 exp(89) is infinite, and 0 times that, of a zero advantage or behind a clip, is NaN."""


def log_ratio(logprobs_M: Tensor, old_logprobs_M: Tensor, sequence_M: Tensor, level: Level) -> Tensor:
    """log r of each of M tokens, with gradient. ``sequence_M`` numbers the sample that a token belongs to; all its tokens are there.

    token      log pi - log pi_old: PPO, GRPO
    sequence   the mean of those over the sample's tokens, the same for each of them: GSPO (arXiv:2507.18071, eq. 7)
    """
    by_token_M = logprobs_M - old_logprobs_M
    if level == "token":
        return by_token_M
    lengths_S = _sums(sequence_M, by_token_M.new_ones(len(sequence_M)))
    return (_sums(sequence_M, by_token_M) / lengths_S.clamp(min=1))[sequence_M]


def bounded_exp(log_ratio: Tensor) -> Tensor:
    """exp(log_ratio), at most exp(20) = 4.9e8, from where on it has no gradient. Elementwise."""
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp()


def importance(old_logprobs_M: Tensor, sampled_logprobs_M: Tensor, sequence_M: Tensor, level: Level) -> Tensor:
    """pi_old / pi_engine of each token, or of its whole sample, before any truncation. 1 where the engine's log-probability is not known.

    Engine and trainer compute the same model in different ways, so the samples are a little off-policy from the start; weighting a token's
    loss with min(importance, cap) corrects for it: truncated importance sampling (Yao et al. 2025, "Your Efficient RL Framework Secretly
    Brings You Off-Policy RL Training"). A sample's is the product over its tokens.
    """
    difference_M = (old_logprobs_M - sampled_logprobs_M).nan_to_num(0.0)
    if level == "sequence":
        difference_M = _sums(sequence_M, difference_M)[sequence_M]
    return bounded_exp(difference_M)


def _sums(sequence_M: Tensor, values_M: Tensor) -> Tensor:
    num_sequences = int(sequence_M.max()) + 1 if len(sequence_M) else 0
    return values_M.new_zeros(num_sequences).index_add(0, sequence_M, values_M)
