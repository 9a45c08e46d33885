"""Policy updates: mini-batches of a step's groups, old log-probabilities, optimizer steps, and the train-inference mismatch check."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np

from grpo.algorithm import Algorithm
from grpo.errors import TrainingError
from grpo.rl.advantages import group_advantages, is_scored
from grpo.rl.context import RlContext
from grpo.trainer.batch import Batch, batch_of_groups, make_batch
from grpo.trainer.client import TrainerClient
from grpo.types import Group
from rollout.types import Completion, Prompt

# Single steps of a SmolLM2 that is sure of itself reach 0.036 in bfloat16, and its first mismatch is 0.011.
MIN_GAP_BOUND = {"float32": 0.01, "bfloat16": 0.05}
GAP_BOUND_FACTOR = 3.0
MAX_FIRST_GAP = 0.15  # SmolLM2 in bfloat16 has 0.04; a layer of stale weights, after one update, as much as this


class PolicyUpdates:
    """Makes mini-batches and updates the policy with them. ``num_updates`` counts the optimizer steps of the stage."""

    def __init__(self, context: RlContext, trainer: TrainerClient):
        self.context, self.trainer, self.algorithm = context, trainer, context.algorithm
        self.num_updates = 0
        self.max_logprob_gap = float("inf")
        self._warned_of_gap = False

    def gap_bound(self, staleness: int) -> float:
        """The largest allowed mismatch. Rollouts of older weights differ from the trainer by what was learned since, and have no bound."""
        return self.max_logprob_gap if staleness == 0 else float("inf")

    def advantages(self, groups: Sequence[Group], weights: Mapping[str, float]) -> np.ndarray:
        """[P, G]. A KL penalty that belongs to the reward is summed over each sample."""
        kl_PG = None
        if self.algorithm.kl_coef > 0 and self.algorithm.kl_in == "reward":
            kl_PG = np.zeros((len(groups), len(groups[0].samples)))
            kl_PG[is_scored(groups)] = self.trainer.sequence_divergence(batch_of_groups(groups, kl_PG.tolist()))
        return group_advantages(self.algorithm, groups, weights, kl_PG)

    def batches(self, groups: Sequence[Group], advantages_PG: np.ndarray, step: int, max_gap: float) -> list[Batch]:
        """The step's mini-batches: whole groups, shuffled, in updates_per_rollout equal parts.

        Where there are several, the old log-probabilities are computed now, before the first update changes the policy. R1 shuffles samples;
        we shuffle groups, so that a prompt is computed once for all of its samples.
        """
        num_batches = self.context.stage.updates_per_rollout
        order = list(range(len(groups)))
        if num_batches > 1:
            random.Random(f"minibatches-{self.context.seed}-{step}").shuffle(order)
        batches = []
        for number in range(num_batches):
            members = order[number::num_batches]
            chosen = [groups[i] for i in members]
            batch = batch_of_groups(chosen, advantages_PG[members].tolist())
            if len(batch):
                masked = masked_batch(self.algorithm, batch, chosen)
                batches.append(masked.with_weights(self.algorithm.aggregate, self.context.stage.max_completion_tokens))
        if num_batches > 1:
            batches = [self.trainer.with_old_logprobs(batch, max_gap) for batch in batches]
        return batches

    def update(self, batch: Batch, max_gap: float) -> dict[str, float]:
        """One optimizer step, after the reference was refreshed if that is due. Returns its metrics."""
        every = self.context.stage.refresh_reference_every
        if every and self.num_updates and self.num_updates % every == 0:
            self.trainer.refresh_reference()
        metrics = self.trainer.policy_update(batch, max_gap)
        self.num_updates += 1
        if metrics["train/skipped_updates"]:
            self._report_skipped(batch, is_empty=bool(metrics["train/empty_updates"]))
        self._warn_of_gap(metrics.get("rollout/logprob_gap", 0.0), max_gap)
        return metrics

    def check_first_gap(self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]]) -> None:
        """Measure the mismatch before the first update, and set the bound that every step must keep. Raises TrainingError if it is too large."""
        gap = self.trainer.logprob_gap(_batch_of_samples(prompts, completions))
        if not gap <= MAX_FIRST_GAP:
            raise TrainingError(
                f"engine and trainer disagree before the first step: the mean |log-prob difference| is {gap:.4f} a token, and rounding makes at "
                f"most {MAX_FIRST_GAP}; the engine computes something else with this model: try another dtype, or another version of it"
            )
        self.max_logprob_gap = self._smallest_bound(gap)
        self.context.progress.say(
            f"  engine against trainer: mean |log-prob difference| {gap:.4f} a token; the run stops above {self.max_logprob_gap:.4f}"
        )

    def resume(self, num_updates: int, max_logprob_gap: float | None) -> None:
        """Continue after so many updates. The bound is at least the one that a new run would have; None stands for no bound."""
        bound = float("inf") if max_logprob_gap is None else max_logprob_gap  # JSON has no infinity
        self.num_updates, self.max_logprob_gap = num_updates, max(bound, self._smallest_bound(0.0))

    def _smallest_bound(self, first: float) -> float:
        return gap_bound(first, self.context.recipe.rollout.dtype, self.context.recipe.trainer.precision)

    def _report_skipped(self, batch: Batch, is_empty: bool) -> None:
        """A batch whose gradient was not finite is saved beside the metrics for inspection."""
        why = "no token of its samples counts" if is_empty else "its gradient is not finite"
        self.context.progress.say(f"  update {self.num_updates} skipped: {why}")
        if not is_empty:
            folder = self.context.folder / "skipped"
            folder.mkdir(exist_ok=True)
            np.savez_compressed(folder / f"update-{self.num_updates}.npz", **vars(batch))

    def _warn_of_gap(self, gap: float, max_gap: float) -> None:
        if gap > max_gap / 2 and not self._warned_of_gap:
            self.context.progress.say(
                f"  update {self.num_updates}: engine and trainer drift apart: mean |log-prob difference| {gap:.4f} a token; the run stops above "
                f"{max_gap:.4f} (rollout/logprob_gap; said once)"
            )
            self._warned_of_gap = True


def masked_batch(algorithm: Algorithm, batch: Batch, groups: Sequence[Group]) -> Batch:
    """The batch without the tokens that the algorithm leaves out: those of truncated completions, and of zero-variance groups."""
    if algorithm.mask_truncated:
        finishes = [s.completion.finish for group in groups for s in group.samples if s.reward is not None]
        batch = batch.without_tokens_of(np.array([finish == "length" for finish in finishes]))
    if algorithm.mask_equal_groups:
        moved = np.unique(batch.group[(batch.advantages != 0).any(axis=1)])
        batch = batch.without_tokens_of(~np.isin(batch.group, moved))
    return batch


def gap_bound(first: float, *dtypes: str) -> float:
    """How large the mean |log-prob difference| by token may become if it was ``first`` before any update and products are made in ``dtypes``.

    Rounding causes more of it in some steps than in others: an update has only groups of unequal rewards, which are a model's least certain.
    """
    return max(*(MIN_GAP_BOUND[dtype] for dtype in dtypes), GAP_BOUND_FACTOR * first)


def _batch_of_samples(prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]]) -> Batch:
    """All samples, without rewards."""
    flat = [(i, prompt, sample) for i, (prompt, samples) in enumerate(zip(prompts, completions, strict=True)) for sample in samples]
    return make_batch(
        [prompt.tokens for _, prompt, _ in flat],
        [sample.tokens for _, _, sample in flat],
        group=[i for i, _, _ in flat],
        sampled_logprobs=[sample.logprobs for _, _, sample in flat],
    )
