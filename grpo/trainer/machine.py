"""How a run's processes share a machine: memory on a CPU, parts of devices on GPUs. The only place with GPU arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from grpo.config import Recipe
from grpo.errors import EngineError

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
        """The share of a GPU for each engine and each trainer rank: a whole one if there are enough, otherwise equal parts."""
        actors = recipe.rollout.workers + recipe.trainer.ranks
        return 1.0 / math.ceil(actors / self.num_gpus) if self.num_gpus else 0.0

    def checked_gpu_share(self, recipe: Recipe) -> float:
        """``gpu_share``, where engines over several GPUs share theirs with nobody.

        Raises EngineError if there are too few GPUs, or too many for weights to stay on one.
        """
        if recipe.rollout.transport == "cuda_ipc" and self.num_gpus != 1:
            raise EngineError(
                f"rollout.transport: cuda_ipc needs engines and trainer on one GPU, and Ray has {self.num_gpus}; write host, or nixl"
            )
        if (each := recipe.rollout.gpus_per_worker) > 1:
            needed = each * recipe.rollout.workers + recipe.trainer.ranks
            if needed > self.num_gpus:
                raise EngineError(
                    f"rollout.workers x gpus_per_worker and trainer.ranks need {needed} GPUs, and there are {self.num_gpus}; lower one of them"
                )
            return 1.0
        return self.gpu_share(recipe)

    def gpus_of_engine(self, recipe: Recipe) -> float:
        """The GPUs, or the share of one, that a rollout worker reserves."""
        each = recipe.rollout.gpus_per_worker
        return self.checked_gpu_share(recipe) if each == 1 else each

    def is_colocated(self, recipe: Recipe) -> bool:
        """Whether engines and trainer share one device in sleep mode: only the side that works holds more there than its processes take.

        With several GPUs they work at the same time. On a CPU they sleep too, so that the same calls are made, but no memory is moved.
        """
        return recipe.rollout.sleep and recipe.trainer.ranks == 1 and self.num_gpus <= 1

    def frees_memory(self, recipe: Recipe) -> bool:
        """Whether sleeping leaves a GPU's memory to the other side."""
        return self.is_colocated(recipe) and self.num_gpus == 1

    def engine_frac(self, recipe: Recipe) -> float:
        """The fraction of a GPU's memory for an engine."""
        share = 1 / recipe.rollout.workers if self.frees_memory(recipe) else self.gpu_share(recipe) or 1.0
        return recipe.rollout.gpu_memory_frac or 0.9 * share

    def free_for_a_rank(self, recipe: Recipe, engine_parameters: int) -> float:
        """Bytes. ``engine_parameters`` are those of the model that the engines hold meanwhile."""
        if self.frees_memory(recipe):
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
