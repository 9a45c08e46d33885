"""How much memory of a machine may one process of a run have? Its processes share a CPU's memory; on GPUs each has a part of a device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from grpo.config import Recipe

GIB = 2**30
DRIVER_BYTES = 5 * GIB // 2  # the driver, Ray, reward processes
PROCESS_BYTES = GIB  # what a trainer or an engine takes beside its model


@dataclass(frozen=True)
class Machine:
    """What a run has to run on. ``device_bytes``: of one GPU, or of the whole machine where there is none (``num_gpus`` 0)."""

    device_bytes: int
    num_gpus: int = 0

    @property
    def device(self) -> str:
        return "cuda" if self.num_gpus else "cpu"

    def gpu_share(self, recipe: Recipe) -> float:
        """Of a GPU for each engine and each trainer rank: a whole one where there are enough, else equal parts."""
        actors = recipe.rollout.workers + recipe.trainer.ranks
        return 1.0 / math.ceil(actors / self.num_gpus) if self.num_gpus else 0.0

    def takes_turns(self, recipe: Recipe) -> bool:
        """Engines and trainer on one GPU, of which only those that work hold more there than their processes take."""
        return recipe.rollout.sleep and recipe.trainer.ranks == 1 and self.num_gpus == 1

    def engine_frac(self, recipe: Recipe) -> float:
        """Of a GPU for an engine."""
        share = 1 / recipe.rollout.workers if self.takes_turns(recipe) else self.gpu_share(recipe) or 1.0
        return recipe.rollout.gpu_memory_frac or 0.9 * share

    def free_for_a_rank(self, recipe: Recipe, engine_parameters: int) -> float:
        """Bytes. ``engine_parameters`` are those of the model that the engines hold meanwhile."""
        if self.takes_turns(recipe):
            return self.device_bytes - (recipe.rollout.workers + 1) * PROCESS_BYTES
        if self.num_gpus:
            return self.device_bytes * self.gpu_share(recipe) - PROCESS_BYTES
        engines = recipe.rollout.workers * cpu_engine_bytes(recipe, engine_parameters)
        return (self.device_bytes - DRIVER_BYTES - engines) / recipe.trainer.ranks - PROCESS_BYTES


def cpu_engine_bytes(recipe: Recipe, parameters: int) -> float:
    """Of an engine's process on a CPU: weights and the copies that its kernels have packed, keys and values, itself."""
    rollout = recipe.rollout
    return 4 * parameters + rollout.kv_cache_gib * GIB + PROCESS_BYTES if rollout.engine != "scripted" else 0


def host_bytes() -> int:
    """Memory of this machine, as far as this process may use it."""
    import psutil

    total = psutil.virtual_memory().total
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(total, int(text)) if text.isdigit() else total
