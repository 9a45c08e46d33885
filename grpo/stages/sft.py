"""Supervised fine-tuning of a model on data sources and on what earlier stages kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from grpo.config import SftStage
from grpo.evaluation.scores import Scores
from grpo.resources.services import Services
from grpo.stages.base import Outcome, run_model_stage
from grpo.stages.supervised import earlier_rows, fine_tune


def run(stage: SftStage, services: Services, folder: Path) -> Outcome:
    """Fine-tune ``stage.from_`` on ``stage.data``."""
    start = services.context.checkpoint(stage.from_)
    seed = services.context.seed_of(stage)

    def train(before: Scores | None) -> Mapping[str, float]:
        return fine_tune(services.prompts.rows(stage.data), start, stage, seed, services, folder, earlier_rows(stage, services))

    return run_model_stage(stage.name, start, services, folder, train)
