"""The reinforcement-learning loop: roll out, score, refill, make batches, update the policy, push the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grpo.rl.advantages import has_signal
from grpo.rl.clock import Clock
from grpo.rl.context import RlContext
from grpo.rl.dynamic_sampling import Refilled, refill
from grpo.rl.prefetch import StepRollout, rollouts_as_json
from grpo.rl.rollouts import Rollouts
from grpo.rl.scorer import GroupScorer
from grpo.rl.updates import PolicyUpdates
from grpo.rl.weight_push import Evaluate, WeightPusher
from grpo.trainer.client import TrainerClient
from grpo.types import Group
from rewards import RewardRuntime
from rollout.pool import RolloutPool
from rollout.types import Prompt

PROBE_PROMPTS, PROBE_SAMPLES = 16, 2


@dataclass(frozen=True)
class StepResult:
    """What one step did; its metrics and sample rows are derived from it (grpo/rl/step_metrics.py).

    step            counted from 0
    rollout         the step's first samples
    refilled        the groups [P] that were trained on, and those that dynamic sampling replaced
    advantages_PG   of refilled.groups
    updates         the metrics of each optimizer step
    weights         the rewards' weights in this step, by name
    staleness       how many pushes older the rollout's oldest weights were than the trainer's
    evaluation      metrics of the new weights, where an evaluation was due
    times           time/..._s
    """

    step: int
    rollout: StepRollout
    refilled: Refilled
    advantages_PG: np.ndarray
    updates: Sequence[dict[str, float]]
    weights: Mapping[str, float]
    staleness: int
    evaluation: Mapping[str, float]
    times: Mapping[str, float]

    @property
    def groups(self) -> Sequence[Group]:
        return self.refilled.groups


class RlLoop:
    """Steps are made ``with`` the loop, whose prefetcher samples their rollouts.

    finish_checkpoint   publishes the checkpoint of the step before, which the trainer wrote while samples were generated
    """

    def __init__(
        self,
        context: RlContext,
        rollouts: Rollouts,
        scorer: GroupScorer,
        updates: PolicyUpdates,
        weights: WeightPusher,
        finish_checkpoint: Callable[[], None] = lambda: None,
    ):
        self.context, self.rollouts, self.scorer, self.updates, self.weights = context, rollouts, scorer, updates, weights
        self.finish_checkpoint = finish_checkpoint
        self._warned_of_zero_variance = False

    def __enter__(self) -> RlLoop:
        self.rollouts.prefetcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.rollouts.prefetcher.close()

    def step(self, step: int) -> StepResult:
        """One rollout, the policy updates made from it, and the push of the new weights."""
        clock = Clock()
        with clock("rollout"):
            prompts, rollout = self.rollouts.step(step)
        with clock("checkpoint"):
            self.finish_checkpoint()
        with clock("reward"):
            groups = self.scorer.score(prompts, rollout.completions, step)
        refilled = self.refill(groups, step, clock)
        with clock("update"):
            self.context.progress.doing(f"step {step + 1}: updating the policy")
            staleness = self.weights.version - rollout.oldest_version
            max_gap = self.updates.gap_bound(staleness)
            advantages_PG = self.updates.advantages(refilled.groups, self.scorer.weights(step))
            batches = self.updates.batches(refilled.groups, advantages_PG, step, max_gap)
            updates = [self.updates.update(batch, max_gap) for batch in batches]
        with clock("sync"):
            push = self.weights.push(step + 1)
        evaluation: dict[str, float] = {}
        if push.evaluate is not None:
            with clock("eval"):
                evaluation = push.evaluation.result()
        weights = self.scorer.weights(step)
        return StepResult(step, rollout, refilled, advantages_PG, updates, weights, staleness, evaluation, clock.metrics())

    def refill(self, groups: Sequence[Group], step: int, clock: Clock) -> Refilled:
        """The step's groups. With dynamic sampling, zero-variance groups are replaced as far as possible."""
        rollouts, sampling = self.rollouts, self.context.stage.dynamic_sampling
        if sampling is None:
            refilled = Refilled(list(groups), [], rollouts.position, 0, 0)
        else:

            def generate(prompts: Sequence[Prompt]) -> list[Group]:
                with clock("rollout"):
                    completions = rollouts.sample(prompts, step)
                with clock("reward"):
                    return self.scorer.score_more(prompts, completions, step)

            weights = self.scorer.weights(step)
            has_zero_variance = lambda group: not has_signal(self.context.algorithm, group, weights)  # noqa: E731
            refilled = refill(groups, rollouts.prompts_at, generate, has_zero_variance, rollouts.position, sampling.max_rounds)
            rollouts.position = refilled.position
            if (warning := refilled.warning()) and not self._warned_of_zero_variance:
                self.context.progress.say(f"  step {step + 1}: {warning} (rollout/groups_unfilled counts them; said once)")
                self._warned_of_zero_variance = True
        self.scorer.check_scored(refilled.groups, step)
        return refilled

    def prove_sync(self) -> None:
        """Before the first step: prove that weights reach the engines, and set the bound of the train-inference mismatch.

        Skipped for the scripted engine, whose completions no model wrote.
        """
        if self.context.recipe.rollout.engine == "scripted":
            return
        self.weights.prove(self.rollouts.prompts[:PROBE_PROMPTS])
        self.updates.check_first_gap(*self.rollouts.sample_probes(PROBE_PROMPTS, PROBE_SAMPLES))

    def state(self, step: int, metrics: Mapping[str, float]) -> dict[str, Any]:
        """What a checkpoint must hold after ``step``. Prompts, seeds and versions follow from its number."""
        return {
            "metrics": metrics,
            "score": metrics.get("eval/accuracy"),
            "loop": {
                "num_updates": self.updates.num_updates,
                "position": self.rollouts.position,
                "sync": self.weights.pool.mode,
                "max_logprob_gap": self.updates.max_logprob_gap,
            },
            "ahead": rollouts_as_json(self.rollouts.prefetcher.rollouts_of_older_weights(step)),
        }

    def resume(self, step: int, state: Mapping[str, Any]) -> None:
        """Continue after ``step`` steps: the engines get the trainer's weights, and the self-test's results are kept."""
        self.rollouts.position, self.weights.pool.mode = state["position"], state["sync"]
        self.updates.resume(state["num_updates"], state["max_logprob_gap"])
        self.weights.resume(step)


def make_loop(
    context: RlContext,
    trainer: TrainerClient,
    pool: RolloutPool,
    rewards: RewardRuntime,
    prompts: Sequence[Prompt],
    evaluate: Evaluate = lambda poll: {},
    finish_checkpoint: Callable[[], None] = lambda: None,
    first: int = 0,
    kept: Sequence[StepRollout] = (),
) -> RlLoop:
    """The loop over all steps from ``first`` on, of its parts; ``kept`` are the rollouts that a checkpoint holds for it."""
    rollouts = Rollouts(context, pool, prompts, first, kept)
    weights = WeightPusher(context, trainer, pool, rollouts.prefetcher, evaluate)
    return RlLoop(context, rollouts, GroupScorer(context, rewards), PolicyUpdates(context, trainer), weights, finish_checkpoint)
