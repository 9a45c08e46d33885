"""Can rewards be trusted with rows? Gold answers must score 1 and other rows' answers 0, by the very processes that will judge samples.

A stage asks of the prompts that it draws. Before a run begins its stages' rows are asked too, as far as they are at hand. Some of them may still be
left out, by length or in a mixture, so only what is wrong with every row that was tried keeps a run from beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from grpo.config import SOURCE_COLUMN, DataSource, Recipe, RewardUse, StageBase, source_names
from grpo.data.preview import is_looked_at
from grpo.data.sources import Sources
from grpo.errors import DataError
from rewards import RESERVED, RewardError, RewardFn, RewardRuntime, RewardSpec, canary_problems, refused_golds, right_completions
from rewards.canary import CANARY_ROWS, rows_named
from rewards.load import build_reward

GENERATED_ROWS = 64
"""Of a task that can be drawn without end: as many as show whether a reward reads its answers."""

NamedRows = Sequence[tuple[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Trial:
    """``problems``: why rewards cannot be trusted with these rows, a line each. ``refused``: what is wrong with single rows, in words."""

    problems: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def raise_problems(self) -> None:
        if self.problems:
            raise DataError(
                "the rewards cannot be trusted with these rows, so nothing was trained (canary: in the recipe says how a right completion is "
                "written; '' tries nothing):\n  " + "\n  ".join(self.problems)
            )


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


def try_before_the_run(recipe: Recipe, base: Path, stages: Sequence[StageBase] | None = None) -> Trial:
    """Of ``stages`` (all by default), what can be told without a model, a network, or running anybody's code but those rewards' own."""
    if recipe.canary == "":
        return Trial()
    sources = Sources({name: _few(source) for name, source in recipe.data.items()}, base, recipe.tags)
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
        rows = [
            (f"{name}/{index}", {SOURCE_COLUMN: name, **row}) for name in names for index, row in enumerate(sources.load(name).rows[:limit])
        ]
        with reward_runtime(uses, recipe, base) as rewards:
            of_stage = try_rewards(rewards, rows, recipe)
        if len(rows_named(of_stage.problems)) == min(CANARY_ROWS, len(rows)):
            found.problems.extend(line for line in of_stage.problems if line not in found.problems)
        found.refused.extend(line for line in of_stage.refused if line not in found.refused)
    return found


def _by_gold(uses: Sequence[RewardUse], recipe: Recipe, base: Path) -> list[RewardUse]:
    """Those that are tried, with nothing beside them: what else a stage pays for may be anything, such as a service that is not up yet."""
    with reward_runtime(uses, recipe, base) as runtime:
        names = tried_of(runtime)
        return [use for use in uses if use.part in names and not runtime.rewards[use.part].options.by_model]


def try_rewards(rewards: RewardRuntime, rows: NamedRows, recipe: Recipe) -> Trial:
    """``rows``: what each is called, and its columns. Rewards that a model gives are not asked: opinions cost."""
    columns = [row for _, row in rows]
    rewards.expect_columns({name for row in columns for name in row})
    problems = [problem for name in tried_of(rewards) for problem in _gold_problems(rewards, name, columns, recipe)]
    reading = [name for name in _required_golds(rewards) if rewards.rewards[name].options.check_gold is not None]  # others only compare
    return Trial(problems, [] if problems else [line for name in reading for line in _refused(rewards, name, rows, recipe)])


def tried_of(rewards: RewardRuntime) -> list[str]:
    """The accuracy reward, and all that are required and know a column of gold answers."""
    return list(dict.fromkeys(name for name in (rewards.accuracy, *_required_golds(rewards)) if name is not None))


def _required_golds(rewards: RewardRuntime) -> list[str]:
    return [name for name in rewards.rewards if name in rewards.required and rewards.rewards[name].options.gold]


def _refused(rewards: RewardRuntime, name: str, rows: NamedRows, recipe: Recipe) -> Iterator[str]:
    fn = rewards.rewards[name]
    gold = fn.options.gold or "answer"
    known = [(called, row) for called, row in rows if not fn.missing({*row, *RESERVED})]
    refused: Sequence[int] = range(len(known))
    for write in _right_completions(fn, recipe):
        try:
            refused = min(refused, refused_golds(rewards, [row for _, row in known], write, name=name, column=gold), key=len)
        except RewardError:  # on all of them
            pass
        rewards.forget_statistics()
        if not refused:
            return
    shown = ", ".join(f"{known[index][0]} {str(known[index][1].get(gold))[:60]!r}" for index in refused[:3])
    yield (
        f"{len(refused)} of {len(rows)} gold answers are not right by {name!r} themselves, so no sample of theirs can be: {shown}"
        f"{', ...' if len(refused) > 3 else ''}; correct or remove them"
    )


def _gold_problems(rewards: RewardRuntime, name: str, rows: Sequence[Mapping[str, Any]], recipe: Recipe) -> list[str]:
    """What is wrong with reward ``name`` on the rows that it can judge, with right completions written as it likes them best."""
    fn = rewards.rewards[name]
    gold = fn.options.gold or "answer"
    known = [row for row in rows if gold in row and not fn.missing({*row, *RESERVED})]
    refused: list[list[str]] = []
    crashed: list[list[str]] = []
    for write in _right_completions(fn, recipe) if known else []:
        try:
            refused.append(canary_problems(rewards, known, write, name=name, column=gold))
        except RewardError as error:
            crashed.append([str(error)])
        rewards.forget_statistics()
        if refused and not refused[-1]:
            return []
    return min(refused or crashed, key=len, default=[])


def _right_completions(fn: RewardFn, recipe: Recipe) -> list[Callable[[str], str]]:
    """From an answer to a completion that is right by ``fn``, in each of the ways that one may be written."""
    if recipe.canary is not None:
        return [partial(recipe.canary.replace, "{answer}")]
    written, *others = [partial(text.replace, "{answer}") for text in right_completions(recipe.tags.think, recipe.tags.answer)]
    bare, wanted = others[-1], fn.options.write
    return [written, *others] if wanted is None else [lambda answer: bare(wanted(answer))]


def _few(source: DataSource) -> DataSource:
    if not source.reasoning_gym:
        return source
    return source.model_copy(update={"rows": min(GENERATED_ROWS, source.rows or GENERATED_ROWS), "disjoint_from": []})
