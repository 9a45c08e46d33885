"""Checks settings of the rollout workers that are valid alone but not together."""

from __future__ import annotations

from collections.abc import Iterator

from grpo.config import Recipe, RlStage
from grpo.config.problems import Finding, clash


def rollout_findings(recipe: Recipe) -> Iterator[Finding]:
    """Yield the contradictions of the recipe's rollout, in the order of its keys."""
    rollout = recipe.rollout
    if rollout.engine == "scripted" and not rollout.script:
        yield clash(("rollout",), "the scripted engine needs a script: ./file.py:name", "engine", "script")
    if rollout.engine != "scripted" and rollout.script:
        text = f"script is for engine: scripted, and the engine is {rollout.engine}; change the engine or delete script"
        yield clash(("rollout",), text, "script", "engine")
    if rollout.min_workers > rollout.workers:
        text = f"min_workers {rollout.min_workers} is more than workers {rollout.workers}, so the run would stop at once; lower it"
        yield clash(("rollout",), text, "min_workers", "workers")
    if rollout.gpus_per_worker > 1 and rollout.engine != "vllm":
        text = f"gpus_per_worker {rollout.gpus_per_worker} splits vLLM's layers, but the engine is {rollout.engine}; delete it"
        yield clash(("rollout",), text, "gpus_per_worker", "engine")
    if rollout.gpus_per_worker > 1 and rollout.sync == "in_place":
        text = "an engine on several GPUs cannot verify weights that were replaced in place; delete sync, and the engine is rebuilt instead"
        yield clash(("rollout",), text, "sync", "gpus_per_worker")
    if rollout.gpus_per_worker > 1 and rollout.transport == "cuda_ipc":
        text = f"cuda_ipc passes memory within one GPU, but gpus_per_worker is {rollout.gpus_per_worker}; use host or nixl"
        yield clash(("rollout",), text, "transport", "gpus_per_worker")
    if rollout.max_staleness and rollout.transport == "cuda_ipc":
        text = f"with cuda_ipc engines and trainer take turns on one GPU, but max_staleness {rollout.max_staleness} samples during training"
        yield clash(("rollout",), f"{text}; delete one of them", "transport", "max_staleness")
    if rollout.sleep and rollout.max_staleness:
        text = f"sleep stops the engines while the trainer works, but max_staleness {rollout.max_staleness} samples during training"
        yield clash(("rollout",), f"{text}; delete one of them", "sleep", "max_staleness")
    if rollout.sleep and rollout.transport != "host":
        text = f"{rollout.transport} takes new weights from the trainer's GPU, where sleep leaves none; use host"
        yield clash(("rollout",), text, "transport", "sleep")
    if rollout.sleep and rollout.gpus_per_worker > 1:
        text = f"sleep works on one GPU, but gpus_per_worker is {rollout.gpus_per_worker}; delete one of them"
        yield clash(("rollout",), text, "sleep", "gpus_per_worker")
    yield from _weight_change(recipe)


def _weight_change(recipe: Recipe) -> Iterator[Finding]:
    rollout = recipe.rollout
    for index, stage in enumerate(recipe.stages):
        if rollout.max_staleness and isinstance(stage, RlStage) and stage.importance == "none":
            text = (
                f"max_staleness {rollout.max_staleness} trains on samples of older weights, but importance: none does not correct for that"
            )
            keys = (("rollout", "max_staleness"),)
            yield Finding(("stages", index, "importance"), f"{text}; delete one of them", keys)
    if rollout.weight_change != "in_flight":
        return
    if rollout.max_staleness == 0:
        text = "in_flight changes weights while samples are generated ahead, but max_staleness is 0; raise it"
        yield clash(("rollout",), text, "weight_change", "max_staleness")
    if rollout.sync == "rebuild":
        text = "in_flight continues unfinished samples, but sync: rebuild starts an engine without them; delete one of them"
        yield clash(("rollout",), text, "weight_change", "sync")
    if recipe.deterministic:
        text = "in_flight changes weights whenever they arrive, so the run cannot repeat bit for bit; write deterministic: false"
        yield Finding(("rollout", "weight_change"), text, (("deterministic",),))
