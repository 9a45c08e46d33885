"""The services that stages work with, made from one run's context."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo.config import Recipe
from grpo.resources.context import RunContext
from grpo.resources.engines import Engines
from grpo.resources.gpu_sharing import GpuSharing
from grpo.resources.prompts import Prompts
from grpo.resources.ray_cluster import stop_ray
from grpo.resources.trainers import Trainers
from grpo.run.progress import Progress
from grpo.types import Artifact


@dataclass(frozen=True)
class Services:
    context: RunContext
    prompts: Prompts
    engines: Engines
    trainers: Trainers

    @classmethod
    def of(cls, recipe: Recipe, base: Path, folder: Path, artifacts: dict[str, Artifact], progress: Progress, **context: Any) -> Services:
        """The services of a new context; ``context`` are further arguments of ``RunContext.of``."""
        made = RunContext.of(recipe, base, folder, artifacts, progress, **context)
        sharing, prompts = GpuSharing(), Prompts(made)
        return cls(made, prompts, Engines(made, prompts, sharing), Trainers(made, sharing))

    def close(self) -> None:
        """End the trackers, the engines and Ray."""
        self.context.trackers.close()
        self.engines.close()
        stop_ray()
