"""The longest prompts and completions that a recipe samples: one engine serves all of its stages and evaluations."""

from __future__ import annotations

from collections.abc import Callable

from grpo.config import DistillStage, EvalStage, Evaluation, Recipe, RejectStage, RlStage

DEFAULT_PROMPT_TOKENS, DEFAULT_COMPLETION_TOKENS = 512, 256


def evaluations_of(recipe: Recipe) -> list[Evaluation]:
    """The recipe's own evaluation, and those of its eval stages."""
    own = [stage.evaluation for stage in recipe.stages if isinstance(stage, EvalStage)]
    return [settings for settings in (recipe.evaluation, *own) if settings is not None]


def longest_completion(recipe: Recipe) -> int:
    lengths = [stage.max_completion_tokens for stage in _sampling_stages(recipe)]
    lengths += [settings.max_completion_tokens for settings in evaluations_of(recipe)]
    return max(lengths, default=DEFAULT_COMPLETION_TOKENS)


def longest_prompt(recipe: Recipe, positions_of_model: Callable[[], int | None]) -> int:
    """The longest prompt that a stage samples. If no stage does, as many tokens as a model has room for beside a completion, at most 512.

    positions_of_model   called only then: the longest sequence of the model; None if it has no limit. The result may be below 1
    """
    stated = [stage.max_prompt_tokens for stage in _sampling_stages(recipe)]
    if stated:
        return max(stated)
    positions = positions_of_model()
    return DEFAULT_PROMPT_TOKENS if positions is None else min(DEFAULT_PROMPT_TOKENS, positions - longest_completion(recipe))


def _sampling_stages(recipe: Recipe) -> list[RlStage | RejectStage | DistillStage]:
    return [stage for stage in recipe.stages if isinstance(stage, RlStage | RejectStage | DistillStage)]
