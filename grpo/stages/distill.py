"""Distillation as R1 does it: a student of any architecture is fine-tuned on what the teacher wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo.config import DistillStage
from grpo.evaluation.scores import Scores
from grpo.resources.services import Services
from grpo.run.folder import holds_training
from grpo.stages.base import Outcome, run_model_stage
from grpo.stages.reject import collect, read_dataset, write_dataset
from grpo.stages.supervised import earlier_rows, fine_tune


def run(stage: DistillStage, services: Services, folder: Path) -> Outcome:
    """Fine-tune the student on the teacher's kept traces (``teacher``), or on traces that exist already (``data``)."""
    student = services.context.checkpoint(student_name(stage))

    def train(before: Scores | None) -> Mapping[str, float]:
        rows, counts = _traces(stage, services, folder)
        seed = services.context.seed_of(stage)
        return {**counts, **fine_tune(rows, student, stage, seed, services, folder, earlier_rows(stage, services))}

    return run_model_stage(stage.name, student, services, folder, train)


def _traces(stage: DistillStage, services: Services, folder: Path) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The rows to learn, and the counts of what was dropped: read again if training had begun on them, so that a resumed run repeats."""
    if stage.teacher is None:
        assert stage.data is not None, "the graph check lets no such recipe through"
        return services.prompts.rows(stage.data), {}
    if holds_training(folder):
        return read_dataset(folder / "data")
    rows, counts = collect(stage, stage.teacher, services, folder)
    write_dataset(rows, folder / "data", {"stage": stage.name, "teacher": stage.teacher, "counts": counts})
    return rows, counts


def student_name(stage: DistillStage) -> str:
    """The name under which the student's starting model is kept: a stage's, or its own."""
    return stage.from_ if isinstance(stage.from_, str) else f"{stage.name}_student"
