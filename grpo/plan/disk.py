"""What does a run write, and is there room? Models are exact; samples are an upper bound, of completions at their longest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from grpo.config import DistillStage, Evaluation, Recipe, RejectStage, RlStage
from grpo.plan.architecture import Architecture
from grpo.plan.stages import AnyStage

BYTES_PER_TOKEN = 4.5  # of text in a sample's row
BYTES_PER_ROW = 600  # its names and numbers


@dataclass(frozen=True)
class Written:
    """Bytes, by what they are of."""

    what: str
    size: int
    is_bound: bool = False


def written_by(stage: AnyStage, recipe: Recipe, model: Architecture) -> Iterator[Written]:
    if stage.kind in ("sft", "rl", "distill") and model.config is not None:
        yield Written("model", 2 * model.parameters)
    if isinstance(stage, RlStage):
        samples = stage.steps * stage.prompts_per_step * stage.samples_per_prompt
        yield Written("samples", _samples(samples, stage.max_prompt_tokens + stage.max_completion_tokens), is_bound=True)
    if isinstance(stage, RejectStage | DistillStage) and stage.rows is not None:
        tokens = stage.max_prompt_tokens + stage.max_completion_tokens
        yield Written("samples", _samples(stage.rows * stage.samples_per_prompt, tokens), is_bound=True)
    evaluation = getattr(stage, "evaluation", None) or recipe.evaluation
    if isinstance(evaluation, Evaluation) and evaluation.rows is not None and stage.kind != "reject":
        tokens = evaluation.max_completion_tokens
        yield Written("evaluation", _samples(evaluation.rows * evaluation.samples_per_prompt, tokens), is_bound=True)


def _samples(number: int, tokens: int) -> int:
    return int(number * (BYTES_PER_ROW + BYTES_PER_TOKEN * tokens))
