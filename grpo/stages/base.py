"""What every stage returns, and what all stages that train a model do around their training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from grpo.evaluation.measure import measure_checkpoint
from grpo.evaluation.scores import Scores, summary
from grpo.resources.services import Services
from grpo.types import Artifact, Checkpoint

Train = Callable[[Scores | None], Mapping[str, float]]
"""Trains a model and saves it to folder/model. Receives the scores of the starting model, and returns metrics."""


@dataclass(frozen=True)
class Outcome:
    """What a stage made, and its metrics for summary.json."""

    artifact: Artifact | None
    metrics: Mapping[str, float]


def run_model_stage(name: str, start: Checkpoint, services: Services, folder: Path, train: Train) -> Outcome:
    """Measure the starting model, train, register the new model as ``name``, measure it, and summarise."""
    before = measure_checkpoint(services, start)
    metrics = train(before)
    made = Checkpoint(folder / "model")
    services.context.artifacts[name] = made
    after = measure_checkpoint(services, made)
    return Outcome(made, {**(summary(after, before) if after is not None else {}), **metrics})
