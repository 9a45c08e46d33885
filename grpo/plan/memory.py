"""What does each process of a stage hold on its device, does it fit, and what would make it fit? From shapes; loads torch, and no weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from grpo.config import AnyStage, Lora, Recipe
from grpo.errors import TrainingError
from grpo.plan.architecture import Architecture, models_drawn_from
from grpo.plan.hardware import Site
from grpo.plan.models import longest_drawn
from grpo.trainer.machine import DRIVER_BYTES, GIB, PROCESS_BYTES, cpu_engine_bytes
from grpo.trainer.memory_budget import (
    HEAD_BYTES,
    Footprint,
    TrainedStage,
    count_parameters,
    footprint,
    has_reference,
    longest_sequence,
    settled_tokens,
)
from grpo.trainer.rope import rope_problem
from grpo.trainer.shapes import config_from_json


@dataclass(frozen=True)
class Holding:
    """What one kind of process holds in one place, in bytes by part. ``available``: what it may hold there."""

    who: str
    where: str
    parts: Mapping[str, int]
    available: int
    remark: str = ""

    @property
    def needed(self) -> int:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.needed <= self.available


@dataclass(frozen=True)
class StageMemory:
    """``holdings`` are of one process each. ``problems``: what does not fit, with numbers and three things to change."""

    stage: str
    parameters: int
    trained: int
    tokens_per_pass: int | None
    holdings: tuple[Holding, ...]
    problems: tuple[str, ...]


def memory_of(stage: AnyStage, recipe: Recipe, known: Mapping[str, Architecture], site: Site, base: Path) -> StageMemory | None:
    """None where the shapes of a model that the stage needs are not known."""
    drawn = models_drawn_from(stage, recipe, known) if recipe.rollout.engine != "scripted" else []
    if any(model.config is None for model in (*drawn, known[stage.name])):
        return None
    largest = max(model.parameters for model in (*drawn, known[stage.name]))  # engines of earlier stages stay where they are
    holdings = [_engine(recipe, drawn, site)] if drawn else []
    problems = [problem for holding in holdings for problem in _engine_problems(stage, holding, recipe, drawn, site)]
    trained, tokens = 0, None
    if isinstance(stage, TrainedStage):
        rank = _Rank(stage, recipe, known[stage.name], site, base, largest)
        needed = rank.footprint()
        trained, tokens = rank.trained, rank.tokens(needed)
        on_device, on_host = rank.holding(needed, tokens), list(rank.host(needed))
        holdings += [on_device, *on_host]
        if problem := rope_problem(rank.config, longest_sequence(stage)):
            problems.append(f"stage {stage.name!r}: {problem}")
        problems += [_refusal(stage, on_device, rank.remedies())] if not on_device.fits else []
        problems += [_refusal(stage, holding, rank.host_remedies()) for holding in on_host if not holding.fits]
    return StageMemory(stage.name, known[stage.name].parameters, trained, tokens, tuple(holdings), tuple(problems))


# --- Engines --------------------------------------------------------------------------------------


def _engine(recipe: Recipe, drawn: list[Architecture], site: Site) -> Holding:
    """An engine with the largest of its models; keys and values take what is left on a GPU, and what the recipe says on a CPU."""
    largest = max(drawn, key=lambda model: model.parameters)
    longest = longest_drawn(recipe, drawn)
    cache_of_one = longest * largest.cache_bytes_per_token
    weights = (2 if recipe.rollout.dtype == "bfloat16" else 4) * largest.parameters
    if not site.machine.num_gpus:
        cache = int(recipe.rollout.kv_cache_gib * GIB)
        total = int(cpu_engine_bytes(recipe, largest.parameters))
        parts = {"weights": weights, "packed_weights": max(0, total - weights - cache - PROCESS_BYTES), "kv_cache": cache}
        available = site.host_bytes
    else:
        available = int(site.machine.engine_frac(recipe) * site.machine.device_bytes)
        parts = {"weights": weights, "kv_cache": max(cache_of_one, available - weights - PROCESS_BYTES)}
    sequences = parts["kv_cache"] / cache_of_one
    remark = f"keys and values of {sequences:,.{int(sequences < 10)}f} sequences of {longest:,} tokens at once"
    return Holding("engine", site.device_name, {**parts, "process": PROCESS_BYTES}, available, remark)


def _could_sleep(recipe: Recipe) -> bool:
    rollout = recipe.rollout
    return not rollout.sleep and recipe.trainer.ranks == 1 and not rollout.max_staleness and rollout.transport == "host"


def _engine_problems(stage: AnyStage, holding: Holding, recipe: Recipe, drawn: list[Architecture], site: Site) -> Iterator[str]:
    longest = longest_drawn(recipe, drawn)
    largest = max(drawn, key=lambda model: model.parameters)
    if holding.parts["kv_cache"] < longest * largest.cache_bytes_per_token:
        yield (
            f"stage {stage.name!r} does not fit: keys and values of one sequence of {longest:,} tokens take "
            f"{_gib(longest * largest.cache_bytes_per_token)} GiB, and the engine has {_gib(holding.parts['kv_cache'])}. "
            "(1) raise rollout.kv_cache_gib (2) lower max_completion_tokens (3) lower max_prompt_tokens"
        )
    if not holding.fits:
        cache = _gib(longest * largest.cache_bytes_per_token)
        if site.machine.num_gpus == 1 and _could_sleep(recipe):
            yield _refusal(
                stage, holding, ["rollout.sleep: true", "a GPU each for engine and trainer", "take a smaller model, or more memory"]
            )
            return
        own_gpus = "give engines GPUs of their own: at least rollout.workers + trainer.ranks in all, or fewer of those"
        shorter = f"lower max_completion_tokens: a sequence of {longest:,} tokens has {cache} GiB of keys and values"
        yield _refusal(stage, holding, [own_gpus, shorter, "take a smaller model, or more memory"])


# --- Trainer ranks --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rank:
    """One of the trainer's processes in a stage."""

    stage: TrainedStage
    recipe: Recipe
    model: Architecture
    site: Site
    base: Path
    engine_parameters: int

    @property
    def trained(self) -> int:
        lora = self.stage.lora and self.stage.lora.model_dump_json()
        return count_parameters(self.config.to_json_string(use_diff=False), lora).trained

    @property
    def config(self) -> PretrainedConfig:
        return config_from_json(json.dumps(self.model.config))

    def footprint(self) -> Footprint:
        reference = has_reference(self.stage, self.base)
        return footprint(self.config, self.stage, self.recipe.trainer, reference, self.site.machine.device)

    @property
    def available(self) -> float:
        return self.site.machine.free_for_a_rank(self.recipe, self.engine_parameters)

    def tokens(self, needed: Footprint) -> int:
        """Of one pass: the recipe's, what fits, or one sequence where nothing does."""
        longest = longest_sequence(self.stage)
        if self.stage.max_tokens_per_micro_batch is not None:
            return self.stage.max_tokens_per_micro_batch
        try:
            return settled_tokens(needed, longest, self.available, self.site.machine.device)
        except TrainingError:
            return longest

    def holding(self, needed: Footprint, tokens: int) -> Holding:
        parts = {
            "weights": needed.weights,
            "reference": needed.reference,
            "gradients": needed.gradients,
            "optimizer": needed.optimizer,
            "activations": tokens * needed.per_token + HEAD_BYTES,
        }
        return Holding("trainer rank", self.site.device_name, parts, int(self.available), f"passes of {tokens:,} tokens")

    def host(self, needed: Footprint) -> Iterator[Holding]:
        """Main memory of a node with GPUs: every rank reads the whole model there before it moves or shares it out.

        Where engines and trainer take turns, also while new weights are on their way to engines: the trainer is asleep, what it exported is there,
        each engine unpacks a copy, and the pinned memory that one slept in may be its for good.
        """
        if not self.site.machine.num_gpus:
            return
        ranks = -(-self.recipe.trainer.ranks // self.site.nodes)
        parts = {"models_as_read": ranks * 4 * self.model.parameters, "driver": DRIVER_BYTES}
        if self.site.machine.takes_turns(self.recipe):
            engines = self.recipe.rollout.workers * self._engine_weights
            syncing = {"trainer_asleep": needed.at_rest, "exported_weights": self._engine_weights, "unpacked_weights": engines}
            yield Holding(
                "node, in a sync", "main memory", {**syncing, "engines_asleep": engines, "driver": DRIVER_BYTES}, self.site.host_bytes
            )
            parts["engines_asleep"] = engines
        if self.recipe.trainer.offload_optimizer:
            shared_out = self.recipe.trainer.ranks if self.recipe.trainer.shard != "none" else 1
            parts["optimizer"] = ranks * 8 * self.trained // shared_out
        yield Holding("trainer ranks of a node", "main memory", parts, self.site.host_bytes)

    @property
    def _engine_weights(self) -> int:
        return (2 if self.recipe.rollout.dtype == "bfloat16" else 4) * self.engine_parameters

    def remedies(self) -> list[str]:
        """Three things to change: first those after which a rank fits, then those that save most; each with what it would then hold."""
        changed = [(text, rank.holding_after()) for text, rank in self._changes()]
        changed.sort(key=lambda change: (not change[1].fits, change[1].needed - change[1].available))
        named = [f"{text}: {_gib(holding.needed)} of {_gib(holding.available)} GiB" for text, holding in changed]
        return [*named, "a smaller model", "devices with more memory"][:3]

    def host_remedies(self) -> list[str]:
        ranks = self.recipe.trainer.ranks
        fewer = [f"trainer.ranks: {ranks // 2}"] if ranks > 1 else []
        spread = ["more nodes, with fewer ranks on each"] if ranks > 1 else []
        apart = ["a second GPU, without rollout.sleep"] if self.site.machine.takes_turns(self.recipe) else []
        return [*fewer, *spread, *apart, "nodes with more memory", "a smaller model", "a node each for engines and trainer"][:3]

    def holding_after(self) -> Holding:
        needed = self.footprint()
        return self.holding(needed, self.tokens(needed))

    def _changes(self) -> Iterator[tuple[str, _Rank]]:
        ranks, machine = self.recipe.trainer.ranks, self.site.machine
        if not self.stage.gradient_checkpointing:
            yield "gradient_checkpointing: true", self._with(gradient_checkpointing=True)
        if self.stage.lora is None:
            yield "lora: {rank: 16}", self._with(lora=Lora())
        if ranks > 1 and self.recipe.trainer.shard != "parameters":
            yield "trainer.shard: parameters", self._laid_out(shard="parameters")
        if machine.num_gpus and not self.recipe.trainer.offload_optimizer:
            yield "trainer.offload_optimizer: true", self._laid_out(offload_optimizer=True)
        actors = self.recipe.rollout.workers + ranks
        if machine.num_gpus == 1 and _could_sleep(self.recipe):
            rollout = self.recipe.rollout.model_copy(update={"sleep": True})
            yield "rollout.sleep: true", replace(self, recipe=self.recipe.model_copy(update={"rollout": rollout}))
        if 0 < machine.num_gpus < actors:
            yield f"{actors} GPUs, one for each worker and rank", replace(self, site=_with_gpus(self.site, actors))
        if machine.num_gpus:
            wider = replace(self, site=_with_gpus(self.site, 2 * machine.num_gpus))
            yield (
                f"twice the GPUs, with trainer: {{ranks: {2 * ranks}, shard: parameters}}",
                wider._laid_out(ranks=2 * ranks, shard="parameters"),
            )
        key = "max_completion_tokens" if self.stage.kind == "rl" else "max_tokens"
        shorter = getattr(self.stage, key) // 4
        yield f"{key}: {shorter}", self._with(**{key: shorter}, max_tokens_per_micro_batch=None)

    def _with(self, **settings: Any) -> _Rank:
        return replace(self, stage=self.stage.model_copy(update=settings))

    def _laid_out(self, **layout: Any) -> _Rank:
        trainer = self.recipe.trainer.model_copy(update=layout)
        return replace(self, recipe=self.recipe.model_copy(update={"trainer": trainer}))


def _with_gpus(site: Site, number: int) -> Site:
    return replace(site, machine=replace(site.machine, num_gpus=number))


def _refusal(stage: AnyStage, holding: Holding, remedies: list[str]) -> str:
    parts = ", ".join(f"{name.replace('_', ' ')} {_gib(size)}" for name, size in holding.parts.items() if size)
    place = f"a {holding.where}" if holding.where != "main memory" else f"a node's {holding.where}"
    may = f"{_gib(max(0, holding.available))} are available" if holding.available > 0 else "nothing is left for it"
    changes = " ".join(f"({number}) {text}" for number, text in enumerate(remedies, start=1))
    what = f"{place} holds {_gib(holding.needed)} GiB for {'the ' if holding.who.endswith('node') else 'one '}{holding.who} ({parts})"
    return f"stage {stage.name!r} does not fit: {what}, and {may}. {changes}"


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}"
