"""What does a run write, and is there room? Models are exact; samples are an upper bound, of completions at their longest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from grpo.config import AnyStage, DistillStage, Evaluation, OptimizerKeys, Recipe, RejectStage, RlStage
from grpo.plan.architecture import Architecture

CHECKPOINT_BYTES = 12  # of a trained parameter: itself and two moments, in float32
BYTES_PER_TOKEN = 4.5  # of text in a sample's row
BYTES_PER_ROW = 600  # its names and numbers


@dataclass(frozen=True)
class Written:
    """Bytes, by what they are of. ``is_passing``: they are gone when the stage is done."""

    what: str
    size: int
    is_bound: bool = False
    is_passing: bool = False


def written_by(stage: AnyStage, recipe: Recipe, model: Architecture, trained: int | None) -> Iterator[Written]:
    """``trained``: how many of the model's parameters are, where that is known."""
    if isinstance(stage, OptimizerKeys) and model.config is not None:
        yield Written("model", 2 * model.parameters)
        if trained is not None:
            at_once = stage.keep_checkpoints + 2  # those that stay, the best of all, and the one that is being written
            yield Written("checkpoints", at_once * CHECKPOINT_BYTES * trained, is_passing=True)
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
