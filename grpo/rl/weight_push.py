"""New weights on their way to the engines: exported by the trainer, synced to every worker, proven before the first step, evaluated if due."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from grpo.rl.context import RlContext
from grpo.rl.prefetch import Poll, RolloutPrefetcher, WeightPush
from grpo.trainer.client import TrainerClient
from rollout.pool import RolloutPool
from rollout.types import Prompt

Evaluate = Callable[[Poll], dict[str, float]]


class WeightPusher:
    """Pushes a version of the weights after every step. Version v holds the weights after v steps.

    evaluate   measures the engines' weights; calls its argument now and then, which may raise to end it
    """

    def __init__(self, context: RlContext, trainer: TrainerClient, pool: RolloutPool, prefetcher: RolloutPrefetcher, evaluate: Evaluate):
        self.context, self.trainer, self.pool = context, trainer, pool
        self._prefetcher, self._evaluate = prefetcher, evaluate
        self.version = 0

    def push(self, version: int) -> WeightPush:
        """Hand the trainer's weights over. Waits for the sync where the next rollout, or an evaluation, needs them."""
        evaluates = self.evaluates(version)
        self.version = version
        push = self._prefetcher.push(lambda: self._export(version), version, self._evaluate if evaluates else None)
        if evaluates or not self.context.recipe.rollout.max_staleness:
            push.receipts.result()
        return push

    def evaluates(self, version: int) -> bool:
        every = self.context.stage.eval_every
        return every is not None and version % every == 0

    def resume(self, version: int) -> None:
        """Give the engines the weights of a checkpoint."""
        self.pool.sync(lambda: self._export(version), version)
        self.version = version

    def prove(self, probes: Sequence[Prompt]) -> None:
        """Before the first step: test whether weights can be replaced in place, and whether the transport carries them."""
        settings, progress = self.context.recipe.rollout, self.context.progress
        progress.doing("testing that weights can be replaced in place")
        if settings.sync == "auto":
            proof = self.pool.prove_reload(list(probes))
            progress.say(f"  weight sync: {'in place' if proof.in_place else 'by rebuilding the engine'} ({proof.why})")
        else:
            self.pool.mode = settings.sync
            progress.say(f"  weight sync: {settings.sync}, as rollout.sync says; not tested")
        if settings.transport != "host":
            progress.doing(f"testing the transport of the weights: {settings.transport}")
            self.pool.sync(lambda: self._export(self.version), self.version)

    def _export(self, version: int) -> Any:
        return self.trainer.export(version, self.context.recipe.rollout.dtype)
