"""Does every stage that trains fit this machine, and in passes of how many tokens? Asked before anything is loaded; the answer is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import ray
from transformers import AutoConfig

from grpo.config import Recipe
from grpo.errors import RecipeError, TrainingError
from grpo.trainer.machine import Machine, host_bytes
from grpo.trainer.memory_budget import TrainedStage, footprint, has_reference, longest_sequence, settled_tokens
from grpo.trainer.rope import rope_problem


def settle_all(recipe: Recipe, base: Path, folder_of_base: Path, settled: Mapping[str, int]) -> dict[str, int]:
    """``settled``, with max_tokens_per_micro_batch of every stage whose model is known by now.

    Raises RecipeError with all that does not fit, and with sequences longer than a model's rope type is supported for.
    """
    found = dict(settled)
    problems = []
    for stage, folder in _known_models(recipe, folder_of_base):
        if problem := rope_problem(AutoConfig.from_pretrained(folder), longest_sequence(stage)):
            problems.append(f"stage {stage.name!r}: {problem}")
            continue
        if stage.name in settled or (stage.max_tokens_per_micro_batch is not None and stage.lora is None):
            continue
        try:
            tokens = max_tokens_per_micro_batch(stage, recipe, base, folder)
        except TrainingError as error:
            problems.append(f"stage {stage.name!r}: {error}")
        else:
            found[stage.name] = tokens
    if problems:
        raise RecipeError(problems)
    return found


def max_tokens_per_micro_batch(stage: TrainedStage, recipe: Recipe, base: Path, model: Path) -> int:
    """Tokens of one pass: the recipe's, or what fits. Raises TrainingError where nothing does, or adapters match no layer."""
    machine = _this_machine()
    needed = footprint(model, stage, recipe.trainer, has_reference(stage, base), machine.device)
    if stage.max_tokens_per_micro_batch is not None:
        return stage.max_tokens_per_micro_batch
    return settled_tokens(needed, longest_sequence(stage), machine.free_for_a_rank(recipe, needed.num_parameters), machine.device)


def _known_models(recipe: Recipe, base: Path) -> Iterator[tuple[TrainedStage, Path]]:
    """Stages that train, with a folder of their model's architecture: the base, handed on from stage to stage."""
    descends_from_base = {"base"}
    for stage in recipe.stages:
        if isinstance(stage.from_, str) and stage.from_ in descends_from_base:
            descends_from_base.add(stage.name)
            if isinstance(stage, TrainedStage):
                yield stage, base


def _this_machine() -> Machine:
    """A GPU of the cluster, where it has any, else this machine as far as this process may use it."""
    if num_gpus := ray.cluster_resources().get("GPU"):
        return Machine(ray.get(_gpu_bytes.remote()), int(num_gpus))
    return Machine(host_bytes())


@ray.remote(num_cpus=0, num_gpus=0.01)
def _gpu_bytes() -> int:
    import torch

    return torch.cuda.mem_get_info()[1]
