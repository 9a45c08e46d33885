"""What all parts of the reinforcement-learning loop share: stage, recipe, algorithm, and where progress is reported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from grpo.algorithm import Algorithm
from grpo.config import Recipe, RlStage, Tags
from grpo.run.progress import Progress
from rollout.types import SamplingParams


@dataclass(frozen=True)
class RlContext:
    """One stage's settings, resolved. ``folder`` is the stage's own."""

    stage: RlStage
    recipe: Recipe
    algorithm: Algorithm
    folder: Path
    progress: Progress

    @property
    def seed(self) -> int:
        return self.recipe.seed if self.stage.seed is None else self.stage.seed

    @property
    def sampling(self) -> SamplingParams:
        """The engine samples with these parameters, and the trainer takes its temperature from them."""
        stage = self.stage
        return SamplingParams(stage.max_completion_tokens, stage.temperature, stage.top_p, stage.top_k, stage.min_p, tuple(stage.stop))

    @property
    def tags(self) -> Tags | None:
        """The tags to look for in completions, if the recipe rewards or evaluates them."""
        return self.recipe.tags if asks_for_form(self.stage, self.recipe) else None

    @property
    def total_updates(self) -> int:
        return self.stage.steps * self.stage.updates_per_rollout


def asks_for_form(stage: RlStage, recipe: Recipe) -> bool:
    """Whether a reward or the evaluation looks for the tags. Without one, every completion would be reported as badly formed."""
    evaluated = recipe.evaluation is not None and recipe.evaluation.well_formed is not None
    return evaluated or any(use.use == "format" for use in stage.rewards)
