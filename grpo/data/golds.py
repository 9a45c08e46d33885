"""Which rows of a source have a gold answer that the rewards of its samples cannot read? All of them are tried, as their samples will be."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from grpo.config import Recipe, RewardUse
from grpo.config.check_inputs import reading_uses
from rewards import RESERVED, SHIPPED, RewardError, RewardFn, RewardRuntime, RewardSpec, right_completions
from rewards.canary import MAX_GOLDS_READ, GoldsRead, read_golds
from rewards.load import build_reward
from rewards.rules.equality import damage

SHOWN_GOLDS = 3
MOST_UNREADABLE_FRAC = 0.1
"""Of a file's gold answers: more of them are another form of answer, or the wrong column, and not a few odd rows."""

NamedRows = Sequence[tuple[str, Mapping[str, Any]]]
_known: dict[str, GoldsRead] = {}
"""What shipped rewards made of gold answers: plan and run look at the same rows several times."""


@dataclass(frozen=True)
class Unreadable:
    """Gold answers that a reward cannot read, or find right: ``shown`` are the first, each with its place. ``sources`` says how many are of each."""

    reward: str
    num: int
    num_rows: int
    shown: Sequence[str]
    sources: Mapping[str, int]

    @property
    def are_many(self) -> bool:
        return self.num > MOST_UNREADABLE_FRAC * self.num_rows

    def __str__(self) -> str:
        more = ", ..." if self.num > len(self.shown) else ""
        where = ", ".join(f"data.{name}.filters" for name in self.sources) or "filters of the source"
        return (
            f"{self.num} of {self.num_rows} gold answers can't be read by {self.reward!r}, so samples of these rows get no reward. Correct them, or "
            f"leave them out by {where}: {{unreadable_gold: leave_out}}. Found: {', '.join(self.shown)}{more}"
        )


class GoldReader:
    """Says which of a source's rows are left out by ``filters: {unreadable_gold: leave_out}``: those that one of its rewards cannot read.

    most        different gold answers to read, for a plan; None for all
    num_unread  by source, rows that were not looked at because of that
    """

    def __init__(self, recipe: Recipe, base: Path, most: int | None = None):
        self.recipe, self.base, self.most = recipe, base, most
        self.num_unread: dict[str, int] = {}

    def __call__(self, source: str, rows: Sequence[Mapping[str, Any]]) -> set[int]:
        refused: set[int] = set()
        for use in reading_uses(self.recipe, source, self.base):
            with reward_runtime([use], self.recipe, self.base) as rewards:
                known, read = unreadable_golds(rewards, use.part, rows, self.recipe, self.base, self.most)
            refused.update(known[index] for index in read.refused)
            self.num_unread[source] = max(self.num_unread.get(source, 0), len(known) - read.num_rows)
        return refused


def unreadable_golds(
    rewards: RewardRuntime, name: str, rows: Sequence[Mapping[str, Any]], recipe: Recipe, base: Path, most: int | None = MAX_GOLDS_READ
) -> tuple[list[int], GoldsRead]:
    """The rows that reward ``name`` can judge, and which of those have gold answers that it cannot read, written as it reads them best."""
    fn = rewards.rewards[name]
    gold = fn.options.gold or "answer"
    known = [index for index, row in enumerate(rows) if not fn.missing({*row, *RESERVED})]
    asked = [rows[index] for index in known]
    judged = [fn.ref, fn.settings, recipe.canary, recipe.tags.model_dump(), most]
    text = json.dumps([*judged, [[row.get(column) for column in (gold, *fn.optional)] for row in asked]], default=repr)
    key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    if key in _known:
        return known, _known[key]
    best = GoldsRead(list(range(len(asked))), len(asked))
    for write in ways_to_write(fn, recipe):
        try:
            best = min(best, read_golds(rewards, asked, write, name=name, column=gold, most=most), key=lambda read: len(read.refused))
        except RewardError:  # on all of them
            pass
        rewards.forget_statistics()
        if not best.refused:
            break
    if fn.ref in SHIPPED:
        _known[key] = best
    return known, best


def describe(rows: NamedRows, read: GoldsRead, name: str, column: str, sources: Mapping[str, int]) -> Unreadable:
    """``rows``: those that the reward can judge, each with its place."""
    shown = [f"{rows[index][0]} {_gold_shown(rows[index][1].get(column))}" for index in read.refused[:SHOWN_GOLDS]]
    return Unreadable(name, len(read.refused), read.num_rows, shown, dict(sources))


def _gold_shown(gold: Any) -> str:
    lost = damage(gold) if isinstance(gold, str) else None
    return f"{gold!r:.60}{f' (it {lost})' if lost else ''}"


def reward_runtime(uses: Sequence[RewardUse], recipe: Recipe, base: Path) -> RewardRuntime:
    """The runtime of these rewards, with the recipe's tag names where a reward asks for them."""
    specs = [
        RewardSpec(
            use.use,
            use.name,
            use.weight_at(0),
            with_tags(use, recipe, base),
            use.required,
            0.0 if use.on_error == "stop" else use.max_error_frac,
        )
        for use in uses
    ]
    return RewardRuntime(specs, deadline_s=recipe.reward_deadline_s, base=base)


def with_tags(use: RewardUse, recipe: Recipe, base: Path) -> dict[str, Any]:
    """The settings of a reward, with the recipe's tag names for those it has a setting for and the recipe does not set."""
    names = {"think_tag": recipe.tags.think, "answer_tag": recipe.tags.answer}
    known = build_reward(use.use, use.settings, base).settings
    return {**{key: value for key, value in names.items() if key in known}, **use.settings}


def ways_to_write(fn: RewardFn, recipe: Recipe) -> list[Callable[[str], str]]:
    """From an answer to a completion that is right by ``fn``, in each of the ways that one may be written."""
    if recipe.canary:
        return [partial(recipe.canary.replace, "{answer}")]
    written, *others = [partial(text.replace, "{answer}") for text in right_completions(recipe.tags.think, recipe.tags.answer)]
    bare, wanted = others[-1], fn.options.write
    return [written, *others] if wanted is None else [lambda answer: bare(wanted(answer))]
