"""What all stages of a run share: its rows, its template, its engines, its way of measuring."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from grpo.config import Recipe, RewardUse, RlStage, StageBase
from grpo.data.sources import Row, load_source, read_jsonl
from grpo.data.templates import Template
from grpo.errors import DataError
from grpo.policy.remote import RemoteTrainer
from grpo.policy.trainer import TrainerSpec
from grpo.run.progress import Progress
from grpo.types import Artifact, Checkpoint, Dataset
from rewards import RewardRuntime, RewardSpec, canary_problems
from rollout.engine import EngineSettings
from rollout.pool import PoolSettings, RolloutPool
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

    def __init__(self, recipe: Recipe, base: Path, folder: Path, artifacts: dict[str, Artifact], progress: Progress):
        self.recipe, self.base, self.folder, self.artifacts, self.progress = recipe, base, folder, artifacts, progress
        self.template = Template(recipe.template, recipe.tags, base)
        self.num_threads = os.cpu_count() or 1
        self._pool: RolloutPool | None = None
        self._pool_holds: Path | None = None
        self._rows: dict[str, list[Row]] = {}

    # ------------------------------------------------------------------------------------------------------------------- data

    def rows(self, names: str | Sequence[str]) -> list[Row]:
        """Rows of data sources and of earlier stages' datasets, in the order named."""
        names = [names] if isinstance(names, str) else names
        return [row for name in names for row in self._rows_of(name)]

    def prompts(
        self, names: str | Sequence[str], tokenizer: PreTrainedTokenizerBase, max_tokens: int, limit: int | None = None
    ) -> PromptSet:
        """The rows of ``names`` rendered as prompts; those over ``max_tokens`` are left out and counted. All over is a DataError."""
        names = [names] if isinstance(names, str) else list(names)
        prompts = [
            self.template.prompt(row, f"{name}/{index}", tokenizer)
            for name in names
            for index, row in enumerate(self._rows_of(name)[:limit])
        ]
        fitting = [prompt for prompt in prompts if len(prompt.tokens) <= max_tokens]
        if not fitting:
            lengths = sorted(len(prompt.tokens) for prompt in prompts) or [0]
            raise DataError(
                f"{', '.join(names)}: none of {len(prompts)} prompts fits max_prompt_tokens = {max_tokens}; "
                f"they have {lengths[0]} to {lengths[-1]} tokens; raise it"
            )
        return PromptSet(fitting, len(prompts) - len(fitting))

    def _rows_of(self, name: str) -> list[Row]:
        if name not in self._rows:
            artifact = self.artifacts.get(name)
            if isinstance(artifact, Dataset):
                self._rows[name] = read_jsonl(artifact.path / "rows.jsonl")
            else:
                self._rows[name] = load_source(name, self.recipe.data, self.base, self.recipe.tags)
        return self._rows[name]

    def checkpoint(self, name: str) -> Checkpoint:
        artifact = self.artifacts[name]
        assert isinstance(artifact, Checkpoint), f"{name} is not a model; the graph check lets no such recipe through"
        return artifact

    @staticmethod
    @cache
    def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder)

    # ---------------------------------------------------------------------------------------------------------------- engines

    def pool(self, model: Checkpoint) -> RolloutPool:
        """The rollout workers, holding ``model`` as version 0."""
        settings = self.recipe.rollout
        if self._pool is None:
            self.progress.doing(f"starting {settings.workers} {settings.engine} worker(s)")
            engine = EngineSettings(
                dtype=settings.dtype,
                kv_cache_gib=settings.kv_cache_gib,
                max_sequences=settings.max_sequences,
                max_tokens=self._longest_sequence(),
                num_threads=self.num_threads,
                gpu_share=self.gpu_share,
                gpu_memory_frac=settings.gpu_memory_frac or 0.9 * (self.gpu_share or 1.0),
            )
            workers = PoolSettings(
                settings.workers,
                settings.min_workers,
                settings.max_restarts,
                dispatch="fixed" if self.recipe.deterministic else "balanced",
            )
            self._pool = RolloutPool(settings.engine, engine, workers, settings.script, self.base, self.progress.say)
        if self._pool_holds != model.path or self._pool.version != 0:
            self._pool.load_model(model.path, version=0)
            self._pool_holds = model.path
        return self._pool

    @property
    def gpu_share(self) -> float:
        """Of a GPU for each engine and each trainer rank: a whole one where there are enough, else equal parts."""
        num_gpus = ray.cluster_resources().get("GPU", 0)
        actors = self.recipe.rollout.workers + self.recipe.trainer.ranks
        return 1.0 / math.ceil(actors / num_gpus) if num_gpus else 0.0

    @contextlib.contextmanager
    def trainer(self, spec: TrainerSpec) -> Iterator[RemoteTrainer]:
        trainer = RemoteTrainer(spec, self.gpu_share)
        try:
            yield trainer
        finally:
            trainer.close()

    def rewards(self, uses: Sequence[RewardUse]) -> RewardRuntime:
        """The runtime of these rewards, with the recipe's tag names where a reward asks for them."""
        return RewardRuntime([self.reward_spec(use) for use in uses], deadline_s=self.recipe.reward_deadline_s, base=self.base)

    def try_rewards(self, rewards: RewardRuntime, prompts: Sequence[Prompt]) -> None:
        """Before anything is trained: gold answers must score 1 and other rows' answers 0, by the very processes that will judge.

        Raises DataError with the rows for which that is not so, and RewardError where a reward's model can't be loaded.
        """
        self.progress.doing("loading the rewards")
        rewards.load()
        tags = self.recipe.tags
        text = self.recipe.canary
        if text is None:
            text = f"<{tags.think}> see below </{tags.think}> <{tags.answer}> " + r"\boxed{{answer}}" + f" </{tags.answer}>"
        rows = [prompt.columns for prompt in prompts]
        if not text or not all("answer" in row for row in rows):
            return
        self.progress.doing("trying the rewards on gold answers")
        problems = canary_problems(rewards, rows, lambda answer: text.replace("{answer}", answer))
        if problems:
            raise DataError(
                "the rewards cannot be trusted with these rows, so nothing was trained (canary: in the recipe says how a right completion is "
                "written):\n  " + "\n  ".join(problems)
            )

    def reward_spec(self, use: RewardUse) -> RewardSpec:
        return RewardSpec(use.use, use.name, use.weight_at(0), with_tags(use, self.recipe, self.base), use.required)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        if ray.is_initialized():
            ray.shutdown()

    def longest_prompt(self) -> int:
        """The longest prompt that any stage takes, 512 tokens where none says."""
        return max((stage.max_prompt_tokens for stage in self.recipe.stages if hasattr(stage, "max_prompt_tokens")), default=512)

    def _longest_sequence(self) -> int:
        """The longest sequence that any stage or evaluation may draw, so that one engine serves them all."""
        drawn = [stage.max_completion_tokens for stage in self.recipe.stages if hasattr(stage, "max_completion_tokens")]
        evaluations = [self.recipe.evaluation, *(getattr(stage, "evaluation", None) for stage in self.recipe.stages)]
        drawn += [evaluation.max_completion_tokens for evaluation in evaluations if evaluation is not None]
        return self.longest_prompt() + max(drawn, default=256)


def with_tags(use: RewardUse, recipe: Recipe, base: Path) -> dict[str, Any]:
    """The settings of a reward, with the recipe's tag names for those it has a setting for and the recipe does not set."""
    from rewards.load import build_reward

    names = {"think_tag": recipe.tags.think, "answer_tag": recipe.tags.answer}
    known = build_reward(use.use, use.settings, base).settings
    return {**{key: value for key, value in names.items() if key in known}, **use.settings}


def updates_of(stage: RlStage) -> int:
    return stage.steps * stage.updates_per_rollout


def seed_of(stage: StageBase, work: Workplace) -> int:
    return work.recipe.seed if stage.seed is None else stage.seed
