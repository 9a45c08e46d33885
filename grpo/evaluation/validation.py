"""Validation during supervised training: the best model is kept, and a drop is rolled back with a lower learning rate.

The updates since the best model are lost, and training continues with its next rows: a stage has as many updates as planned, however often
the model drops. The last update is validated too, so that a stage never ends with a model that is worse than its best by more than tolerance.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from grpo.config import Validation
from grpo.evaluation.measure import measure
from grpo.resources.checkpointing import CheckpointSchedule, StepEnd
from grpo.resources.services import Services
from grpo.trainer.batch import Batch
from grpo.types import Checkpoint
from rollout.pool import RolloutPool

LOSS_TOLERANCE = 0.01
"""Nats a token. Held-back losses of neighbouring updates differ by less where training is healthy."""


@dataclass(frozen=True)
class Look:
    """One validation: ``score``, where larger is better, and how much worse a later one may be without being a drop."""

    score: float
    tolerance: float
    metrics: Mapping[str, float]


@dataclass
class Standing:
    """What a resumed run must know of the validations before it."""

    best_update: int = 0  # 0: not validated yet
    best_score: float = float("-inf")
    rate: float = 1.0
    num_rollbacks: int = 0


class Validator:
    """Validates the model of one stage's training. ``held_back`` are the rows to take the loss on; without ``settings`` it does nothing."""

    def __init__(
        self, settings: Validation | None, held_back: Batch | None, checkpoints: CheckpointSchedule, services: Services, start: Checkpoint
    ):
        self.settings, self.held_back, self.checkpoints, self.services, self.start = settings, held_back, checkpoints, services, start
        self.standing = Standing()
        self._pool: RolloutPool | None = None

    def after(self, update: int, end: StepEnd) -> dict[str, float]:
        """The metrics of the validation after update number ``update``; none if no validation is due. The best model's step must be kept."""
        settings, standing = self.settings, self.standing
        if settings is None or (update % settings.every and update != self.checkpoints.total):
            return {}
        look = self._loss(settings, self.held_back) if self.held_back is not None else self._accuracy(settings, update)
        if look.score > standing.best_score:
            standing.best_update, standing.best_score = update, look.score
            end.must_be_kept = True
        elif standing.best_update and not look.score >= standing.best_score - look.tolerance:
            standing.rate *= settings.learning_rate_factor
            standing.num_rollbacks += 1
            self.checkpoints.roll_back(standing.best_update, update)
            self.services.context.progress.say(
                f"  update {update}: {settings.by} is {abs(look.score):.4g}, and was {abs(standing.best_score):.4g} after update "
                f"{standing.best_update}; goes on from that model with {standing.rate:g} times the learning rate"
            )
        return {**look.metrics, "validation/rollbacks": standing.num_rollbacks}

    def state(self, update: int) -> dict[str, Any]:
        """For the checkpoint of ``update``; its score where it is the best so far."""
        score = self.standing.best_score if update == self.standing.best_update else None
        return {"standing": asdict(self.standing), "score": score}

    def resume(self, state: Mapping[str, Any]) -> None:
        kept = {name: value for name, value in state.get("standing", {}).items() if value is not None}  # JSON has no infinity
        self.standing = Standing(**kept)

    def _loss(self, settings: Validation, held_back: Batch) -> Look:
        """Cross-entropy, nats a completion token; less is better."""
        loss = -float(np.mean(self.checkpoints.trainer.logprobs(held_back)[held_back.loss_mask]))
        return Look(-loss, _given(settings.tolerance, LOSS_TOLERANCE), {"validation/loss": loss})

    def _accuracy(self, settings: Validation, update: int) -> Look:
        """The recipe's evaluation, by engines that hold the model of this update."""
        held_out = self.services.context.recipe.evaluation
        assert held_out is not None, "the recipe's check lets no such stage through"
        if self._pool is None:
            self._pool = self.services.engines.pool(self.start)
        self._pool.sync(lambda: self.checkpoints.trainer.export(update, self.services.context.recipe.rollout.dtype), update)
        scores = measure(self.services, self._pool, self.start, held_out, None)
        metrics = {"validation/accuracy": scores.accuracy, "validation/accuracy_se": scores.accuracy_se}
        return Look(scores.accuracy, _given(settings.tolerance, scores.accuracy_se), metrics)


def hold_back(prompts: Sequence[Sequence[int]], num_rows: int, seed: int) -> set[int]:
    """At least ``num_rows`` row numbers, chosen by chance; rows of one prompt stay together, so that none of them is learned."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        alike.setdefault(tuple(prompt), []).append(row)
    groups = list(alike.values())
    random.Random(f"held-back-{seed}").shuffle(groups)
    chosen: set[int] = set()
    for group in groups:
        if len(chosen) >= num_rows:
            break
        chosen.update(group)
    return chosen


def _given(value: float | None, default: float) -> float:
    return default if value is None else value
