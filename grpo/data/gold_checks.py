"""Can rewards be trusted with rows? Gold answers must score 1 and other rows' answers 0, by the very processes that will judge samples.

A stage asks of the prompts that it draws. Before a run begins its stages' rows are asked too, as far as they are at hand. Some of them may still be
left out, by length or in a mixture, so only what is wrong with every row that was tried keeps a run from beginning, or gold answers of which many
cannot be read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo.config import SOURCE_COLUMN, DataSource, Recipe, RewardUse, StageBase, source_names
from grpo.data.golds import GoldReader, NamedRows, Unreadable, describe, reward_runtime, unreadable_golds, ways_to_write
from grpo.data.preview import is_looked_at
from grpo.data.sources import Sources
from grpo.errors import DataError
from rewards import RESERVED, RewardError, RewardRuntime, canary_problems
from rewards.canary import CANARY_ROWS, MAX_GOLDS_READ, rows_named

GENERATED_ROWS = 64
"""Of a task that can be drawn without end: as many as show whether a reward reads its answers."""


@dataclass(frozen=True)
class Trial:
    """``problems``: why rewards cannot be trusted with these rows, a line each. ``unreadable``: gold answers that they cannot read."""

    problems: list[str] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)

    @property
    def refused(self) -> list[str]:
        """What is wrong with single rows, in words."""
        return [str(found) for found in self.unreadable]

    def raise_problems(self) -> None:
        """Raises DataError where the rewards cannot be trusted, or cannot read many of the gold answers."""
        many = [str(found) for found in self.unreadable if found.are_many]
        if many and not self.problems:
            raise DataError("too many gold answers can't be read, so nothing was trained:\n  " + "\n  ".join(many))
        if self.problems:
            raise DataError(
                "the rewards cannot be trusted with these rows, so nothing was trained (canary: in the recipe says how a right completion is "
                "written; '' tries nothing):\n  " + "\n  ".join(self.problems)
            )


def try_before_the_run(recipe: Recipe, base: Path, stages: Sequence[StageBase] | None = None) -> Trial:
    """Of ``stages`` (all by default), what can be told without a model, a network, or running anybody's code but those rewards' own."""
    if recipe.canary == "":
        return Trial()
    few = {name: _few(source) for name, source in recipe.data.items()}
    sources = Sources(few, base, recipe.tags, unreadable=GoldReader(recipe, base, MAX_GOLDS_READ))
    found = Trial()
    tried: list[Any] = []
    for stage in recipe.stages if stages is None else stages:
        names = [name for name in source_names(getattr(stage, "prompts", None)) if name in recipe.data and is_looked_at(recipe, name, base)]
        uses = _by_gold(getattr(stage, "rewards", []), recipe, base) if names else []
        limit = getattr(stage, "rows", None)
        asked = (names, limit, [(use.use, use.settings) for use in uses])
        if not uses or asked in tried:
            continue
        tried.append(asked)
        loaded = [(name, sources.load(name)) for name in names]
        rows = [
            (place, {SOURCE_COLUMN: name, **row})
            for name, one in loaded
            for place, row in zip(one.places[:limit], one.rows[:limit], strict=True)
        ]
        with reward_runtime(uses, recipe, base) as rewards:
            of_stage = try_rewards(rewards, rows, recipe, base)
        if len(rows_named(of_stage.problems)) == min(CANARY_ROWS, len(rows)):
            found.problems.extend(line for line in of_stage.problems if line not in found.problems)
        found.unreadable.extend(one for one in of_stage.unreadable if one not in found.unreadable)
    return found


def _by_gold(uses: Sequence[RewardUse], recipe: Recipe, base: Path) -> list[RewardUse]:
    """Those that are tried, with nothing beside them: what else a stage pays for may be anything, such as a service that is not up yet."""
    with reward_runtime(uses, recipe, base) as runtime:
        names = tried_of(runtime)
        return [use for use in uses if use.part in names and not runtime.rewards[use.part].options.by_model]


def try_rewards(rewards: RewardRuntime, rows: NamedRows, recipe: Recipe, base: Path) -> Trial:
    """``rows``: what each is called, and its columns. Rewards that a model gives are not asked: opinions cost.

    Rows whose gold answers can't be read are told apart; whether a reward can be trusted is tried on the others, if there are any.
    """
    columns = [row for _, row in rows]
    rewards.expect_columns({name for row in columns for name in row})
    found = Trial()
    for name in tried_of(rewards):
        fn = rewards.rewards[name]
        refused: set[int] = set()
        if name in _required_golds(rewards) and fn.reads_gold:
            known, read = unreadable_golds(rewards, name, columns, recipe, base)
            if 0 < len(read.refused) < len(known):
                refused = {known[index] for index in read.refused}
                sources = Counter(str(columns[index][SOURCE_COLUMN]) for index in sorted(refused) if SOURCE_COLUMN in columns[index])
                found.unreadable.append(describe([rows[index] for index in known], read, name, fn.options.gold or "answer", sources))
        found.problems.extend(_gold_problems(rewards, name, columns, refused, recipe))
    return found


def tried_of(rewards: RewardRuntime) -> list[str]:
    """The accuracy reward, and all that are required and know a column of gold answers."""
    return list(dict.fromkeys(name for name in (rewards.accuracy, *_required_golds(rewards)) if name is not None))


def _required_golds(rewards: RewardRuntime) -> list[str]:
    return [name for name in rewards.rewards if name in rewards.required and rewards.rewards[name].options.gold]


def _gold_problems(rewards: RewardRuntime, name: str, rows: Sequence[Mapping[str, Any]], skip: Container[int], recipe: Recipe) -> list[str]:
    """What is wrong with reward ``name`` on the rows that it can judge, with right completions written as it likes them best."""
    fn = rewards.rewards[name]
    gold = fn.options.gold or "answer"
    known = [row for index, row in enumerate(rows) if index not in skip and gold in row and not fn.missing({*row, *RESERVED})]
    refused: list[list[str]] = []
    crashed: list[list[str]] = []
    for write in ways_to_write(fn, recipe) if known else []:
        try:
            refused.append(canary_problems(rewards, known, write, name=name, column=gold))
        except RewardError as error:
            crashed.append([str(error)])
        rewards.forget_statistics()
        if refused and not refused[-1]:
            return []
    return min(refused or crashed, key=len, default=[])


def _few(source: DataSource) -> DataSource:
    if not source.reasoning_gym:
        return source
    return source.model_copy(update={"rows": min(GENERATED_ROWS, source.rows or GENERATED_ROWS), "disjoint_from": []})
