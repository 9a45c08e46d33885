"""The eval stage: measures a model, and writes its per-item results to items.jsonl."""

from __future__ import annotations

from pathlib import Path

from grpo.config import EvalStage
from grpo.evaluation.measure import measure
from grpo.evaluation.scores import summary
from grpo.resources.services import Services
from grpo.stages.base import Outcome


def run(stage: EvalStage, services: Services, folder: Path) -> Outcome:
    settings = stage.evaluation or services.context.recipe.evaluation
    assert settings is not None, "the schema asks an eval stage for an evaluation"
    model = services.context.checkpoint(stage.from_)
    scores = measure(services, services.engines.pool(model), model, settings, folder / "items.jsonl")
    return Outcome(None, summary(scores))
