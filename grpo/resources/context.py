"""What all stages of a run share and none changes: its recipe, folders, artifacts, progress and trackers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grpo.config import Recipe, RewardUse, StageBase
from grpo.data.gold_checks import reward_runtime
from grpo.run.interruption import Interruption
from grpo.run.progress import Progress
from grpo.run.trackers import Trackers
from grpo.types import Artifact, Checkpoint
from grpo.util.cores import num_cores
from rewards import RewardRuntime


@dataclass(frozen=True)
class RunContext:
    """One run. ``artifacts`` gains an entry with every stage that ends; nothing else changes.

    base     the folder that the recipe's relative paths start from
    folder   the run's own
    """

    recipe: Recipe
    base: Path
    folder: Path
    artifacts: dict[str, Artifact]
    progress: Progress
    interruption: Interruption
    trackers: Trackers
    num_threads: int

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        base: Path,
        folder: Path,
        artifacts: dict[str, Artifact],
        progress: Progress,
        interruption: Interruption | None = None,
        num_threads: int | None = None,
    ) -> RunContext:
        """The context of a run on this machine, with the recipe's trackers."""
        trackers = Trackers(recipe.trackers, recipe.name, folder, base, progress.say)
        interruption = interruption or Interruption(progress.say)
        return cls(recipe, base, folder, artifacts, progress, interruption, trackers, num_threads or num_cores())

    def checkpoint(self, name: str) -> Checkpoint:
        """The model of that name: the base model, or what a stage made."""
        artifact = self.artifacts[name]
        assert isinstance(artifact, Checkpoint), f"{name} is not a model; the graph check lets no such recipe through"
        return artifact

    def rewards(self, uses: Sequence[RewardUse]) -> RewardRuntime:
        return reward_runtime(uses, self.recipe, self.base)

    def seed_of(self, stage: StageBase) -> int:
        return self.recipe.seed if stage.seed is None else stage.seed
