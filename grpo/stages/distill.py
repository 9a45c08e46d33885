"""Distillation as R1 does it: a student of any architecture is fine-tuned on what the teacher wrote."""

from __future__ import annotations

from pathlib import Path

from grpo.config import DistillStage
from grpo.evaluation import measure as evaluation
from grpo.resources.context import Outcome, Workplace, seed_of
from grpo.run.folder import holds_training
from grpo.stages.reject import collect, read_dataset, write_dataset
from grpo.stages.supervised import earlier_rows, fine_tune
from grpo.types import Checkpoint


def run(stage: DistillStage, work: Workplace, folder: Path) -> Outcome:
    """Fine-tune the student on the teacher's kept traces (``teacher``), or on traces that exist already (``data``)."""
    student = work.checkpoint(student_name(stage))
    before = evaluation.measure_checkpoint(work, student)
    if stage.teacher is not None:
        if holds_training(folder):
            rows, counts = read_dataset(folder / "data")
        else:
            rows, counts = collect(stage, stage.teacher, work, folder)
            write_dataset(rows, folder / "data", {"stage": stage.name, "teacher": stage.teacher, "counts": counts})
    else:
        assert stage.data is not None, "the graph check lets no such recipe through"
        rows, counts = work.rows(stage.data), {}
    metrics = fine_tune(rows, student, stage, seed_of(stage, work), work, folder, earlier_rows(stage, work))
    made = Checkpoint(folder / "model")
    work.artifacts[stage.name] = made
    after = evaluation.measure_checkpoint(work, made)
    return Outcome(made, {**(evaluation.summary(after, before) if after is not None else {}), **counts, **metrics})


def student_name(stage: DistillStage) -> str:
    """The name under which the student's starting model is kept: a stage's, or its own."""
    return stage.from_ if isinstance(stage.from_, str) else f"{stage.name}_student"
