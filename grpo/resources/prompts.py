"""The rows and prompts of a run's data sources, its tokenizers, and data.json, which counts what was left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo.config import SOURCE_COLUMN, Mixture, imitated_sources, source_names, source_weights
from grpo.data.files import Row, read_jsonl
from grpo.data.gold_checks import try_rewards
from grpo.data.golds import GoldReader
from grpo.data.held_out import held_out_sources
from grpo.data.prompt_order import cut_to_weights
from grpo.data.sources import Sources
from grpo.data.template_checks import template_warnings
from grpo.data.templates import Template
from grpo.errors import DataError
from grpo.resources.context import RunContext
from grpo.run.folder import RunFolder
from grpo.run.records import write_json
from grpo.types import Dataset
from rewards import RewardRuntime
from rollout.text import end_ids
from rollout.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class PromptSet:
    """Prompts that fit, and how many rows did not."""

    prompts: list[Prompt]
    num_too_long: int


class Prompts:
    """Reads each data source once, when a stage first asks for it."""

    def __init__(self, context: RunContext):
        self.context, recipe = context, context.recipe
        self.template = Template.of(recipe, context.base)
        self._rows: dict[str, list[Row]] = {}
        self._tokenizers: dict[Path, PreTrainedTokenizerBase] = {}
        self._reported: set[str] = set()
        self._counts_file = context.folder / "data.json"
        self._counts: dict[str, Any] = json.loads(self._counts_file.read_text(encoding="utf-8")) if self._counts_file.is_file() else {}
        held_out, imitated = held_out_sources(recipe), imitated_sources(recipe)
        reader = GoldReader(recipe, context.base)
        self._sources = Sources(recipe.data, context.base, recipe.tags, held_out, self._prompt_tokens, self._samples_of, reader, imitated)

    def rows(self, sources: Mixture) -> list[Row]:
        """Rows of data sources and of earlier stages' datasets, in the order named; with weights, as many of each as they say."""
        return [row for _, rows in self._parts(sources) for _, row in rows]

    def _parts(self, sources: Mixture, limit: int | None = None) -> list[tuple[str, list[tuple[int, Row]]]]:
        """Of each source its name and its numbered rows: the first ``limit``, and of a mixture the share that its weight gives."""
        parts = [(name, list(enumerate(self._rows_of(name)[:limit]))) for name in source_names(sources)]
        weights = source_weights(sources)
        if weights is None:
            return parts
        chosen = cut_to_weights([len(rows) for _, rows in parts], [weights[name] for name, _ in parts], self.context.recipe.seed)
        mixed = [(name, [rows[i] for i in kept]) for (name, rows), kept in zip(parts, chosen, strict=True)]
        used = ", ".join(f"{len(kept)} of {len(rows)} rows of {name}" for (name, kept), (_, rows) in zip(mixed, parts, strict=True))
        self.context.progress.say(f"  mixture: {used}")
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

        A prompt's id is "source/row". ``is_endless``: all rows, also of a mixture, because the caller samples them by its weights.
        ``called`` is the limit's key in the recipe.
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
        """Record in data.json how many of its rows a stage uses, and why it leaves out the others."""
        self._counts[name] = {"rows": kept, "left_out": dict(left_out)}
        write_json(self._counts_file, self._counts)

    def _rows_of(self, name: str) -> list[Row]:
        if name not in self._rows:
            artifact = self.context.artifacts.get(name)
            if isinstance(artifact, Dataset):
                self._rows[name] = read_jsonl(artifact.path / "rows.jsonl")
            else:
                loaded = self._sources.load(name)
                self._rows[name] = loaded.rows
                self._counts[name] = {"rows": len(loaded.rows), "left_out": dict(loaded.dropped)}
                write_json(self._counts_file, self._counts)
                if loaded.dropped:
                    self.context.progress.say(f"  data source {name!r}: {loaded}")
                for note in loaded.notes:
                    self.context.progress.say(f"  data source {name!r}: {note}")
            for row in self._rows[name]:
                row.setdefault(SOURCE_COLUMN, name)
        return self._rows[name]

    def _samples_of(self, stage: str) -> Path:
        """The file of a stage's samples and their scores."""
        number = [each.name for each in self.context.recipe.stages].index(stage)
        name = "items.jsonl" if self.context.recipe.stages[number].kind == "eval" else "samples.jsonl"
        return RunFolder(self.context.folder).stage(number + 1, stage) / name

    def _prompt_tokens(self, prompt: Any) -> int:
        """The length of a prompt as the recipe's model receives it."""
        tokenizer = self.tokenizer(self.context.checkpoint("base").path)
        return len(self.template.prompt({"prompt": prompt}, "", tokenizer).tokens)

    def tokenizer(self, folder: Path) -> PreTrainedTokenizerBase:
        """The tokenizer of a model, checked against the recipe's template when it is first asked for."""
        if folder not in self._tokenizers:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(folder)
            for warning in template_warnings(self.template, tokenizer, end_ids(folder)):
                if warning not in self._reported:
                    self._reported.add(warning)
                    self.context.progress.say(f"  template {self.context.recipe.template}: {warning}")
            self._tokenizers[folder] = tokenizer
        return self._tokenizers[folder]

    def try_rewards(self, rewards: RewardRuntime, prompts: Sequence[Prompt]) -> None:
        """Load the rewards and try them on gold answers, before a stage trains anything.

        Raises DataError if they cannot be trusted, and RewardError if a reward's model can't be loaded.
        """
        self.context.progress.doing("loading the rewards")
        rewards.load()
        if self.context.recipe.canary == "":
            return
        self.context.progress.doing("trying the rewards on gold answers")
        trial = try_rewards(
            rewards, [(self._place_of(prompt.id), prompt.columns) for prompt in prompts], self.context.recipe, self.context.base
        )
        trial.raise_problems()
        for found in trial.unreadable:
            self.context.progress.say(f"  {found}")
            for name, number in found.sources.items():
                self._counts.setdefault(name, {})["unreadable_gold"] = number
        if trial.unreadable:
            write_json(self._counts_file, self._counts)

    def _place_of(self, prompt_id: str) -> str:
        """Where the row of a prompt was read, "rows.jsonl:3"; of an earlier stage's rows, the prompt's id."""
        name, _, index = prompt_id.rpartition("/")
        places = self._sources.load(name).places if name in self._counts and name in self.context.recipe.data else []
        return places[int(index)] if index.isdigit() and int(index) < len(places) else prompt_id
