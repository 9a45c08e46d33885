"""What the trainer is given for one optimizer step: whole sequences, which of their tokens count, and what is known of each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from grpo.types import Group

Row = Sequence[int] | Sequence[float] | np.ndarray  # of a number a token; arrays are many times faster


@dataclass(frozen=True)
class Batch:
    """B sequences, right-padded to T; one alignment throughout: column t belongs to token t.

    tokens            [B, T] int64    prompt, then completion
    prompt_lengths    [B]    int64
    lengths           [B]    int64    prompt and completion together
    group             [B]    int64    sequences with equal numbers have the same prompt tokens
    loss_mask         [B, T] bool     completion tokens that the policy wrote
    weights           [B, T] float64  token_weights of the whole optimizer batch, so that any split of it adds up
    advantages        [B]    float64  (zeros for supervised batches)
    sampled_logprobs  [B, T] float64  the engine's, NaN where there are none
    old_logprobs      [B, T] float64  the trainer's before the first update, NaN where not computed: then the current ones stand in
    """

    tokens: np.ndarray
    prompt_lengths: np.ndarray
    lengths: np.ndarray
    group: np.ndarray
    loss_mask: np.ndarray
    weights: np.ndarray
    advantages: np.ndarray
    sampled_logprobs: np.ndarray
    old_logprobs: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, samples: np.ndarray) -> Batch:
        """The batch of these samples (indices or a mask), weights unchanged: a part of the same optimizer batch."""
        return Batch(**{field.name: getattr(self, field.name)[samples] for field in fields(self)})

    def with_weights(self, how: str, max_tokens: int) -> Batch:
        """The batch with token weights of ``how`` (grpo.algorithm.losses.token_weights): these samples are one optimizer batch."""
        import torch

        from grpo.algorithm.losses import token_weights

        weights = token_weights(torch.from_numpy(self.loss_mask), how, max_tokens=max_tokens)  # type: ignore[arg-type]
        return replace(self, weights=weights.numpy())

    def without_tokens_of(self, samples_B: np.ndarray) -> Batch:
        """The batch in which no token of these samples (a mask) counts."""
        return replace(self, loss_mask=self.loss_mask & ~samples_B[:, None])


def make_batch(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Row],
    *,
    group: Sequence[int] | None = None,
    trainable: Sequence[Row] | None = None,
    sampled_logprobs: Sequence[Row] | None = None,
    advantages: Sequence[float] | None = None,
) -> Batch:
    """Sequences of token ids as a Batch with zero weights. Without ``group`` each sequence is a group of its own."""
    num = len(prompts)
    prompt_lengths = np.array([len(p) for p in prompts], dtype=np.int64)
    assert (prompt_lengths > 0).all(), "a prompt has at least one token: its last one predicts the completion's first"
    lengths = prompt_lengths + np.array([len(c) for c in completions], dtype=np.int64)
    shape = (num, int(lengths.max(initial=1)))
    column_T = np.arange(shape[1])
    in_prompt_BT = column_T < prompt_lengths[:, None]
    in_completion_BT = ~in_prompt_BT & (column_T < lengths[:, None])
    tokens = np.zeros(shape, dtype=np.int64)
    tokens[in_prompt_BT] = _flat(prompts, np.int64)
    tokens[in_completion_BT] = _flat(completions, np.int64)
    loss_mask = in_completion_BT
    if trainable is not None:
        loss_mask = np.zeros(shape, dtype=bool)
        loss_mask[in_completion_BT] = _flat(trainable, bool)
    sampled = np.full(shape, np.nan)
    if sampled_logprobs is not None:
        sampled[in_completion_BT] = _flat(sampled_logprobs, np.float64)
    return Batch(
        tokens=tokens,
        prompt_lengths=prompt_lengths,
        lengths=lengths,
        group=np.arange(num) if group is None else np.asarray(group, dtype=np.int64),
        loss_mask=loss_mask,
        weights=np.zeros(shape),
        advantages=np.zeros(num) if advantages is None else np.asarray(advantages, dtype=np.float64),
        sampled_logprobs=sampled,
        old_logprobs=np.full(shape, np.nan),
    )


def _flat(rows: Sequence[Row], dtype: type) -> np.ndarray:
    """All rows one after another."""
    return np.concatenate([np.asarray(row, dtype=dtype) for row in rows]) if rows else np.zeros(0, dtype)


def batch_of_groups(groups: Sequence[Group], advantages: Sequence[Sequence[float]]) -> Batch:
    """The samples of ``groups`` that have a reward, in order, as a Batch; advantages[i][j] belongs to sample j of group i.

    A token to which the engine gave a log-probability that is not finite does not count.
    """
    kept = [(i, j) for i, group in enumerate(groups) for j, sample in enumerate(group.samples) if sample.reward is not None]
    completions = [groups[i].samples[j].completion for i, j in kept]
    return make_batch(
        [groups[i].prompt.tokens for i, _ in kept],
        [completion.tokens for completion in completions],
        group=[i for i, _ in kept],
        trainable=[completion.trainable & np.isfinite(completion.logprobs) for completion in completions],
        sampled_logprobs=[completion.logprobs for completion in completions],
        advantages=[advantages[i][j] for i, j in kept],
    )
