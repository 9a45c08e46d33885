"""Does every stage that trains fit this machine, and in passes of how many tokens? Asked before anything is loaded; the answer is kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import ray

from grpo.algorithm import load_algorithm
from grpo.config import DistillStage, Recipe, RlStage, SftStage
from grpo.errors import RecipeError, TrainingError
from grpo.policy.budget import Footprint, footprint, settled_tokens

TrainedStage = SftStage | RlStage | DistillStage
GIB = 2**30
DRIVER_BYTES = 5 * GIB // 2  # the driver, Ray, reward processes
PROCESS_BYTES = GIB  # what a trainer or an engine takes beside its model


def settle_all(recipe: Recipe, base: Path, folder_of_base: Path, settled: Mapping[str, int]) -> dict[str, int]:
    """``settled``, with tokens_per_device of every stage whose model is known by now. Raises RecipeError with all that does not fit."""
    found = dict(settled)
    problems = []
    for stage, folder in _known_models(recipe, folder_of_base):
        if stage.name in settled or (stage.tokens_per_device is not None and stage.lora is None):
            continue
        try:
            tokens = tokens_per_device(stage, recipe, base, folder)
        except TrainingError as error:
            problems.append(f"stage {stage.name!r}: {error}")
        else:
            found[stage.name] = tokens
    if problems:
        raise RecipeError(problems)
    return found


def tokens_per_device(stage: TrainedStage, recipe: Recipe, base: Path, model: Path) -> int:
    """Tokens of one pass: the recipe's, or what fits. Raises TrainingError where nothing does, or adapters match no layer."""
    total_bytes, device = _device_memory()
    needs_reference = False
    if isinstance(stage, RlStage):
        named = load_algorithm(stage.algorithm, base)
        needs_reference = (named.kl_coef if stage.kl_coef is None else stage.kl_coef) > 0
    needed = footprint(model, stage, recipe.trainer, needs_reference, device)
    if stage.tokens_per_device is not None:
        return stage.tokens_per_device
    longest = stage.max_prompt_tokens + stage.max_completion_tokens if isinstance(stage, RlStage) else stage.max_tokens
    return settled_tokens(needed, longest, _free_bytes(recipe, needed, total_bytes, device), device)


def _known_models(recipe: Recipe, base: Path) -> Iterator[tuple[TrainedStage, Path]]:
    """Stages that train, with a folder of their model's architecture: the base, handed on from stage to stage."""
    descends_from_base = {"base"}
    for stage in recipe.stages:
        if isinstance(stage.from_, str) and stage.from_ in descends_from_base:
            descends_from_base.add(stage.name)
            if isinstance(stage, TrainedStage):
                yield stage, base


def _free_bytes(recipe: Recipe, needed: Footprint, total_bytes: int, device: str) -> float:
    """For one rank. On a CPU all processes share the memory; a GPU that engines share keeps an equal part for each."""
    ranks, rollout = recipe.trainer.ranks, recipe.rollout
    if device == "cuda":
        return total_bytes / math.ceil((ranks + rollout.workers) / ray.cluster_resources()["GPU"]) - PROCESS_BYTES
    engine = 4 * needed.num_parameters + rollout.kv_cache_gib * GIB + PROCESS_BYTES if rollout.engine != "scripted" else 0
    return (total_bytes - DRIVER_BYTES - rollout.workers * engine) / ranks - PROCESS_BYTES


def _device_memory() -> tuple[int, str]:
    """Bytes of a GPU of the cluster, where it has any, else of this machine as far as this process may use it."""
    if ray.cluster_resources().get("GPU"):
        return ray.get(_gpu_bytes.remote()), "cuda"
    import psutil

    total = psutil.virtual_memory().total
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(total, int(text)) if text.isdigit() else total, "cpu"


@ray.remote(num_cpus=0, num_gpus=0.01)
def _gpu_bytes() -> int:
    import torch

    return torch.cuda.mem_get_info()[1]
