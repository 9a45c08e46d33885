"""The rollout workers of a run, the lengths they must have room for, and their part of the machine."""

from __future__ import annotations

import json
import math
from functools import cached_property
from pathlib import Path

import ray

from grpo.config import Evaluation
from grpo.config.sequence_lengths import evaluations_of, longest_completion, longest_prompt
from grpo.errors import DataError
from grpo.resources.context import RunContext
from grpo.resources.gpu_sharing import GpuSharing
from grpo.resources.prompts import Prompts
from grpo.trainer.machine import Machine
from grpo.types import Checkpoint
from grpo.util.model_folder import positions_of
from rollout.engines.base import EngineSettings
from rollout.pool import PoolSettings, RolloutPool


def cluster_machine() -> Machine:
    """The GPUs of the cluster. Their memory is not looked at."""
    return Machine(0, int(ray.cluster_resources().get("GPU", 0)))


def positions_of_model(folder: Path) -> int | None:
    """The longest sequence that the model of a folder is made for."""
    config = folder / "config.json"
    return positions_of(json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {})


class Engines:
    """Starts the rollout workers when a stage first needs them; they serve the stages after it."""

    def __init__(self, context: RunContext, prompts: Prompts, sharing: GpuSharing):
        self.context, self.prompts, self._sharing = context, prompts, sharing
        self._pool: RolloutPool | None = None
        self._model: Path | None = None

    def pool(self, model: Checkpoint) -> RolloutPool:
        """The rollout workers, holding ``model`` as version 0."""
        settings = self.context.recipe.rollout
        if self._pool is None:
            self.context.progress.doing(f"starting {settings.workers} {settings.engine} worker(s)")
            machine = cluster_machine()
            is_colocated = machine.is_colocated(self.context.recipe)
            engine = EngineSettings(
                dtype=settings.dtype,
                kv_cache_gib=settings.kv_cache_gib,
                max_sequences=settings.max_sequences,
                max_tokens=self.engine_tokens,
                num_threads=self.context.num_threads,
                gpu_share=machine.gpus_of_engine(self.context.recipe),
                tensor_parallel=settings.gpus_per_worker,
                sleeps=is_colocated,
                gpu_memory_frac=machine.engine_frac(self.context.recipe),
                keep=self.context.recipe.tags.texts,
            )
            workers = PoolSettings(
                settings.workers,
                settings.min_workers,
                settings.max_restarts,
                dispatch="fixed" if self.context.recipe.deterministic else "balanced",
                transport=settings.transport,
            )
            turn = self._sharing.engines if is_colocated else lambda: None
            self._pool = RolloutPool(settings.engine, engine, workers, settings.script, self.context.base, self.context.progress.say, turn)
            self._sharing.pool = self._pool
        if self._model != model.path or self._pool.version != 0:
            self._pool.load_model(model.path, version=0)
            self._model = model.path
        return self._pool

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = self._sharing.pool = None

    @cached_property
    def engine_tokens(self) -> int:
        """The longest sequence of any stage or evaluation: one engine serves them all."""
        longest = self.longest_prompt() + longest_completion(self.context.recipe)
        for settings in evaluations_of(self.context.recipe):
            source = self.context.recipe.data.get(settings.prompts)
            if source is None or source.measured_in is not None:  # its rows are known once a stage has run
                continue
            base = self.context.checkpoint("base")
            rows, room = self.prompts.rows(settings.prompts)[: settings.rows], self._room(settings, base)
            lengths = (len(self.prompts.template.prompt(row, "", self.prompts.tokenizer(base.path)).tokens) for row in rows)
            fitting = max((length for length in lengths if length <= room), default=0)
            longest = max(longest, fitting + settings.max_completion_tokens)
        return longest

    def _base_positions(self) -> int | None:
        return positions_of_model(self.context.checkpoint("base").path)

    def prompt_limit(self, settings: Evaluation, model: Checkpoint) -> float:
        """The longest prompt that an evaluation of ``model`` asks: by its own setting, or by what model and engine have room for."""
        return min(self._room(settings, model), self.engine_tokens - settings.max_completion_tokens)

    def _room(self, settings: Evaluation, model: Checkpoint) -> float:
        if settings.max_prompt_tokens is not None:
            return settings.max_prompt_tokens
        return (positions_of_model(model.path) or math.inf) - settings.max_completion_tokens

    def longest_prompt(self) -> int:
        """The longest prompt that any stage samples. Raises DataError if completions leave no room for one."""
        recipe = self.context.recipe
        longest = longest_prompt(recipe, self._base_positions)
        if longest < 1:
            raise DataError(
                f"max_completion_tokens = {longest_completion(recipe)} leaves no room for a prompt: "
                f"the model has {self._base_positions()} positions; lower it"
            )
        return longest
