"""What all stages of a run share: its rows, its template, its engines, its way of measuring."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from grpo.config import (
    SOURCE_COLUMN,
    EvalStage,
    Evaluation,
    Mixture,
    Recipe,
    RewardUse,
    RlStage,
    StageBase,
    imitated_sources,
    source_names,
    source_weights,
)
from grpo.data.files import Row, read_jsonl
from grpo.data.gold_checks import reward_runtime, try_rewards
from grpo.data.golds import GoldReader
from grpo.data.held_out import held_out_sources
from grpo.data.prompt_order import cut_to_weights
from grpo.data.sources import Sources
from grpo.data.template_checks import template_warnings
from grpo.data.templates import Template
from grpo.errors import DataError
from grpo.resources.gpu_sharing import GpuSharing
from grpo.run.folder import RunFolder
from grpo.run.interruption import Interruption
from grpo.run.progress import Progress
from grpo.run.records import write_json
from grpo.run.trackers import Trackers
from grpo.trainer.machine import Machine
from grpo.trainer.policy_trainer import TrainerSpec
from grpo.trainer.remote import RemoteTrainer
from grpo.types import Artifact, Checkpoint, Dataset
from grpo.util.cores import num_cores
from grpo.util.model_folder import positions_of
from rewards import RewardRuntime
from rollout.engines.base import EngineSettings
from rollout.errors import EngineError
from rollout.pool import PoolSettings, RolloutPool
from rollout.text import end_ids
from rollout.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Outcome:
    """What a stage made, and what it says of it (summary.json)."""

    artifact: Artifact | None
    metrics: Mapping[str, float]


@dataclass
class PromptSet:
    """Prompts that fit, and how many rows did not."""

    prompts: list[Prompt]
    num_too_long: int


class Workplace:
    """Held by the driver for one run. Engines start when a stage first needs them, and serve the stages after it."""

    def __init__(
        self,
        recipe: Recipe,
        base: Path,
        folder: Path,
        artifacts: dict[str, Artifact],
        progress: Progress,
        interruption: Interruption | None = None,
    ):
        self.recipe, self.base, self.folder, self.artifacts, self.progress = recipe, base, folder, artifacts, progress
        self.interruption = interruption or Interruption(progress.say)
        self.template = Template.of(recipe, base)
        self.num_threads = num_cores()
        self.trackers = Trackers(recipe.trackers, recipe.name, folder, base, progress.say)
        self._pool: RolloutPool | None = None
        self._pool_holds: Path | None = None
        self._gpu_sharing = GpuSharing()
        self._rows: dict[str, list[Row]] = {}
        self._tokenizers: dict[Path, PreTrainedTokenizerBase] = {}
        self._said: set[str] = set()
        self._counts: dict[str, Any] = _json_of(folder / "data.json")
        held_out, taught = held_out_sources(recipe), imitated_sources(recipe)
        reader = GoldReader(recipe, base)
        self._sources = Sources(recipe.data, base, recipe.tags, held_out, self._prompt_tokens, self._samples_of, reader, taught)

    # ------------------------------------------------------------------------------------------------------------------- data

    def rows(self, sources: Mixture) -> list[Row]:
        """Rows of data sources and of earlier stages' datasets, in the order named; with weights, as many of each as they say."""
        return [row for _, rows in self._parts(sources) for _, row in rows]

    def _parts(self, sources: Mixture, limit: int | None = None) -> list[tuple[str, list[tuple[int, Row]]]]:
        """Of each source its name and its numbered rows: the first ``limit``, and of a mixture the share that its weight gives."""
        parts = [(name, list(enumerate(self._rows_of(name)[:limit]))) for name in source_names(sources)]
        weights = source_weights(sources)
        if weights is None:
            return parts
        chosen = cut_to_weights([len(rows) for _, rows in parts], [weights[name] for name, _ in parts], self.recipe.seed)
        mixed = [(name, [rows[i] for i in kept]) for (name, rows), kept in zip(parts, chosen, strict=True)]
        used = ", ".join(f"{len(kept)} of {len(rows)} rows of {name}" for (name, kept), (_, rows) in zip(mixed, parts, strict=True))
        self.progress.say(f"  mixture: {used}")
        return mixed

    def prompts(
        self,
        sources: Mixture,
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: float,
        limit: int | None = None,
        is_endless: bool = False,
        called: str = "max_prompt_tokens",
    ) -> PromptSet:
        """The rows of ``sources`` rendered as prompts; those over ``max_tokens`` are left out and counted. All over is a DataError.

        A prompt's id is "source/row". ``is_endless``: all rows, also of a mixture, because whoever draws from them keeps to its weights.
        ``called`` is how the recipe calls the limit.
        """
        names = source_names(sources)
        parts = self._parts(list(names) if is_endless else sources, limit)
        prompts = [self.template.prompt(row, f"{name}/{index}", tokenizer) for name, rows in parts for index, row in rows]
        fitting = [prompt for prompt in prompts if len(prompt.tokens) <= max_tokens]
        if not fitting:
            lengths = sorted(len(prompt.tokens) for prompt in prompts) or [0]
            raise DataError(
                f"{', '.join(names)}: none of {len(prompts)} prompts fits {called} = {max_tokens}; "
                f"they have {lengths[0]} to {lengths[-1]} tokens; raise it"
            )
        return PromptSet(fitting, len(prompts) - len(fitting))

    def record_rows(self, name: str, kept: int, left_out: Mapping[str, int]) -> None:
        """Into data.json: how many of its rows a stage uses, and why not the others."""
        self._counts[name] = {"rows": kept, "left_out": dict(left_out)}
        write_json(self.folder / "data.json", self._counts)

    def _rows_of(self, name: str) -> list[Row]:
        if name not in self._rows:
            artifact = self.artifacts.get(name)
            if isinstance(artifact, Dataset):
                self._rows[name] = read_jsonl(artifact.path / "rows.jsonl")
            else:
                loaded = self._sources.load(name)
                self._rows[name] = loaded.rows
                self._counts[name] = {"rows": len(loaded.rows), "left_out": dict(loaded.dropped)}
                write_json(self.folder / "data.json", self._counts)
                if loaded.dropped:
                    self.progress.say(f"  data source {name!r}: {loaded}")
                for note in loaded.notes:
                    self.progress.say(f"  data source {name!r}: {note}")
            for row in self._rows[name]:
                row.setdefault(SOURCE_COLUMN, name)
        return self._rows[name]

    def _samples_of(self, stage: str) -> Path:
        """Where a stage wrote down what it sampled and how that was judged."""
        number = [each.name for each in self.recipe.stages].index(stage)
        name = "items.jsonl" if self.recipe.stages[number].kind == "eval" else "samples.jsonl"
        return RunFolder(self.folder).stage(number + 1, stage) / name

    def _prompt_tokens(self, prompt: Any) -> int:
        """The length of a prompt as the recipe's model receives it."""
        tokenizer = self.tokenizer(self.checkpoint("base").path)
        return len(self.template.prompt({"prompt": prompt}, "", tokenizer).tokens)

    def checkpoint(self, name: str) -> Checkpoint:
        artifact = self.artifacts[name]
        assert isinstance(artifact, Checkpoint), f"{name} is not a model; the graph check lets no such recipe through"
        return artifact

    def tokenizer(self, folder: Path) -> PreTrainedTokenizerBase:
        """The tokenizer of a model, checked against the recipe's template when it is first asked for."""
        if folder not in self._tokenizers:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(folder)
            for warning in template_warnings(self.template, tokenizer, end_ids(folder)):
                if warning not in self._said:
                    self._said.add(warning)
                    self.progress.say(f"  template {self.recipe.template}: {warning}")
            self._tokenizers[folder] = tokenizer
        return self._tokenizers[folder]

    # ---------------------------------------------------------------------------------------------------------------- engines

    def pool(self, model: Checkpoint) -> RolloutPool:
        """The rollout workers, holding ``model`` as version 0."""
        settings = self.recipe.rollout
        if self._pool is None:
            self.progress.doing(f"starting {settings.workers} {settings.engine} worker(s)")
            is_colocated = self.is_colocated
            engine = EngineSettings(
                dtype=settings.dtype,
                kv_cache_gib=settings.kv_cache_gib,
                max_sequences=settings.max_sequences,
                max_tokens=self.engine_tokens,
                num_threads=self.num_threads,
                gpu_share=self.gpu_share if settings.gpus_per_worker == 1 else settings.gpus_per_worker,
                tensor_parallel=settings.gpus_per_worker,
                sleeps=is_colocated,
                gpu_memory_frac=Machine(0, self.num_gpus).engine_frac(self.recipe),
                keep=self.recipe.tags.texts,
            )
            workers = PoolSettings(
                settings.workers,
                settings.min_workers,
                settings.max_restarts,
                dispatch="fixed" if self.recipe.deterministic else "balanced",
                transport=settings.transport,
            )
            turn = self._gpu_sharing.engines if is_colocated else lambda: None
            self._pool = RolloutPool(settings.engine, engine, workers, settings.script, self.base, self.progress.say, turn)
            self._gpu_sharing.pool = self._pool
        if self._pool_holds != model.path or self._pool.version != 0:
            self._pool.load_model(model.path, version=0)
            self._pool_holds = model.path
        return self._pool

    @property
    def gpu_share(self) -> float:
        """Of a GPU for each engine and each trainer rank: a whole one where there are enough, else equal parts.

        Engines over several GPUs share theirs with nobody; EngineError where there are too few, or too many for weights to stay on one.
        """
        num_gpus = self.num_gpus
        if self.recipe.rollout.transport == "cuda_ipc" and num_gpus != 1:
            raise EngineError(
                f"rollout.transport: cuda_ipc needs engines and trainer on one GPU, and Ray has {num_gpus}; write host, or nixl"
            )
        if (each := self.recipe.rollout.gpus_per_worker) > 1:
            needed = each * self.recipe.rollout.workers + self.recipe.trainer.ranks
            if needed > num_gpus:
                raise EngineError(
                    f"rollout.workers x gpus_per_worker and trainer.ranks need {needed} GPUs, and there are {num_gpus}; lower one of them"
                )
            return 1.0
        return Machine(0, num_gpus).gpu_share(self.recipe)

    @property
    def num_gpus(self) -> int:
        """Of the cluster."""
        return int(ray.cluster_resources().get("GPU", 0))

    @property
    def is_colocated(self) -> bool:
        """Whether engines and trainer share one device in sleep mode."""
        return Machine(0, self.num_gpus).is_colocated(self.recipe)

    @contextlib.contextmanager
    def trainer(self, spec: TrainerSpec) -> Iterator[RemoteTrainer]:
        turn = self._gpu_sharing.trainers if self.is_colocated else lambda: None
        turn()  # a trainer is made awake
        trainer = self._gpu_sharing.trainer = RemoteTrainer(spec, self.gpu_share, self.recipe.rollout.transport, turn)
        try:
            yield trainer
            if self.is_colocated:
                trainer.sleep()  # a process that is told to end may hold its GPU for a while yet
        finally:
            self._gpu_sharing.trainer = None
            trainer.close()

    def rewards(self, uses: Sequence[RewardUse]) -> RewardRuntime:
        return reward_runtime(uses, self.recipe, self.base)

    def try_rewards(self, rewards: RewardRuntime, prompts: Sequence[Prompt]) -> None:
        """Before a stage trains anything. Raises DataError where its rewards cannot be trusted, and RewardError where one's model can't be loaded."""
        self.progress.doing("loading the rewards")
        rewards.load()
        if self.recipe.canary == "":
            return
        self.progress.doing("trying the rewards on gold answers")
        trial = try_rewards(rewards, [(self._place_of(prompt.id), prompt.columns) for prompt in prompts], self.recipe, self.base)
        trial.raise_problems()
        for found in trial.unreadable:
            self.progress.say(f"  {found}")
            for name, number in found.sources.items():
                self._counts.setdefault(name, {})["unreadable_gold"] = number
        if trial.unreadable:
            write_json(self.folder / "data.json", self._counts)

    def _place_of(self, prompt_id: str) -> str:
        """Where the row of a prompt was read, "rows.jsonl:3"; of an earlier stage's rows, the prompt's id."""
        name, _, index = prompt_id.rpartition("/")
        places = self._sources.load(name).places if name in self._counts and name in self.recipe.data else []
        return places[int(index)] if index.isdigit() and int(index) < len(places) else prompt_id

    def close(self) -> None:
        self.trackers.close()
        if self._pool is not None:
            self._pool.close()
            self._pool = self._gpu_sharing.pool = None
        if ray.is_initialized():
            ray.shutdown()

    @cached_property
    def engine_tokens(self) -> int:
        """The longest sequence of any stage or evaluation: one engine serves them all."""
        longest = self.longest_prompt() + self._longest_completion()
        for settings in self._evaluations():
            source = self.recipe.data.get(settings.prompts)
            if source is None or source.measured_in is not None:  # its rows are known once a stage has run
                continue
            base = self.checkpoint("base")
            rows, room = self._rows_of(settings.prompts)[: settings.rows], self._room(settings, base)
            lengths = (len(self.template.prompt(row, "", self.tokenizer(base.path)).tokens) for row in rows)
            fitting = max((length for length in lengths if length <= room), default=0)
            longest = max(longest, fitting + settings.max_completion_tokens)
        return longest

    def prompt_limit(self, settings: Evaluation, model: Checkpoint) -> float:
        """The longest prompt that an evaluation of ``model`` asks: by its own setting, or by what model and engine have room for."""
        return min(self._room(settings, model), self.engine_tokens - settings.max_completion_tokens)

    def _room(self, settings: Evaluation, model: Checkpoint) -> float:
        if settings.max_prompt_tokens is not None:
            return settings.max_prompt_tokens
        return (self.positions(model.path) or math.inf) - settings.max_completion_tokens

    def _evaluations(self) -> list[Evaluation]:
        own = [stage.evaluation for stage in self.recipe.stages if isinstance(stage, EvalStage)]
        return [settings for settings in (self.recipe.evaluation, *own) if settings is not None]

    def longest_prompt(self) -> int:
        """The longest prompt that any stage samples; where none says, 512 tokens, or what the model has room for beside a completion.

        Raises DataError where that is nothing.
        """
        stated = [stage.max_prompt_tokens for stage in self.recipe.stages if hasattr(stage, "max_prompt_tokens")]
        if stated:
            return max(stated)
        positions = self.positions(self.checkpoint("base").path) or math.inf
        room = positions - self._longest_completion()
        if room < 1:
            raise DataError(
                f"max_completion_tokens = {self._longest_completion()} leaves no room for a prompt: the model has {positions} positions; lower it"
            )
        return int(min(512, room))

    def positions(self, model: Path) -> int | None:
        """The longest sequence that the model of a folder is made for."""
        return positions_of(_json_of(model / "config.json"))

    def _longest_completion(self) -> int:
        drawn = [stage.max_completion_tokens for stage in self.recipe.stages if hasattr(stage, "max_completion_tokens")]
        drawn += [settings.max_completion_tokens for settings in self._evaluations()]
        return max(drawn, default=256)


def _json_of(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def updates_of(stage: RlStage) -> int:
    return stage.steps * stage.updates_per_rollout


def seed_of(stage: StageBase, work: Workplace) -> int:
    return work.recipe.seed if stage.seed is None else stage.seed
