"""Supervised fine-tuning of a model on data sources and on what earlier stages kept."""

from __future__ import annotations

from pathlib import Path

from grpo.config import SftStage
from grpo.evaluation import measure as evaluation
from grpo.resources.context import Outcome, Workplace, seed_of
from grpo.stages.supervised import earlier_rows, fine_tune
from grpo.types import Checkpoint


def run(stage: SftStage, work: Workplace, folder: Path) -> Outcome:
    """Fine-tune ``stage.from_`` on ``stage.data``."""
    start = work.checkpoint(stage.from_)
    before = evaluation.measure_checkpoint(work, start)
    metrics = fine_tune(work.rows(stage.data), start, stage, seed_of(stage, work), work, folder, earlier_rows(stage, work))
    made = Checkpoint(folder / "model")
    work.artifacts[stage.name] = made
    after = evaluation.measure_checkpoint(work, made)
    return Outcome(made, {**(evaluation.summary(after, before) if after is not None else {}), **metrics})
