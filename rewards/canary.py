"""Can the accuracy reward be trusted? Gold answers must score 1 and wrong ones 0, on the same path that training takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

from rewards.equality import plain_number, same_number
from rewards.runtime import RewardRuntime, Scored, ScoreInput
from rewards.words import words

CANARY_ROWS = 8
MAX_GOLDS_READ = 5000
"""A gold answer that is no plain number takes milliseconds to read; more of them are half a minute."""
RESERVED_VALUES = {"prompt": "", "prompt_id": "canary", "prefill": "", "finish": "stop", "tokens": ()}


def right_completions(think_tag: str = "think", answer_tag: str = "answer") -> list[str]:
    """Well-formed completions with {answer} where the answer belongs, in a box and bare: a reward that takes one of them is sound."""
    forms = (r"\boxed{{answer}}", "{answer}")
    return [f"<{think_tag}> see below </{think_tag}> <{answer_tag}> {form} </{answer_tag}>" for form in forms]


@dataclass(frozen=True)
class Trial:
    """An answer that was tried on a row: its own gold answer, or another row's, which is wrong here."""

    row: int
    answer: str
    is_gold: bool
    completion: str
    scored: Scored


def canary_trials(
    runtime: RewardRuntime,
    rows: Sequence[Mapping[str, Any]],
    render: Callable[[str], str],
    *,
    num_rows: int | None = CANARY_ROWS,
    column: str = "answer",
) -> list[Trial]:
    """Scores each row's gold answer, and up to two unequal ones of other rows, by all rewards of the runtime in one batch.

    render     a well-formed completion around an answer
    num_rows   rows to try, spread over all; None tries every row, which finds each gold answer that can't be read
    """
    step = 1 if num_rows is None else max(1, len(rows) // num_rows)
    chosen = list(range(0, len(rows), step))[:num_rows]
    golds = sorted({str(rows[index].get(column)) for index in chosen})
    cases = []
    for index in chosen:
        gold = str(rows[index].get(column))
        cases.append((index, gold, True))
        cases += [(index, other, False) for other in _unequal(gold, golds, most=2)]
    completions = [render(answer) for _, answer, _ in cases]
    inputs = [ScoreInput(_columns(rows[index], text)) for (index, _, _), text in zip(cases, completions, strict=True)]
    rules = {each: spec.weight for each, spec in runtime.specs.items() if not runtime.rewards[each].options.by_model}  # opinions cost
    scored = runtime.score(inputs, rules)
    return [Trial(*case, text, result) for case, text, result in zip(cases, completions, scored, strict=True)]


def canary_problems(
    runtime: RewardRuntime,
    rows: Sequence[Mapping[str, Any]],
    render: Callable[[str], str],
    *,
    name: str | None = None,
    num_rows: int | None = CANARY_ROWS,
    column: str = "answer",
) -> list[str]:
    """One line for each row in which the accuracy reward can't be trusted; see problems_of and canary_trials.

    name   the accuracy reward; by default the runtime's (with none, there is nothing to check)
    """
    name = name or runtime.accuracy
    if name is None or runtime.rewards[name].options.by_model or not rows:
        return []
    trials = canary_trials(runtime, rows, render, num_rows=num_rows, column=column)
    return problems_of(trials, rows, name, name in runtime.required, runtime.rewards[name].options.check_gold)


def refused_golds(
    runtime: RewardRuntime, rows: Sequence[Mapping[str, Any]], render: Callable[[str], str], *, name: str, column: str = "answer"
) -> list[int]:
    """Rows whose own gold answer reward ``name`` cannot read, or in time, or not find right: nothing that the policy says to them will be.

    Plain numbers are taken as read. Of the others MAX_GOLDS_READ different ones are tried, spread over all. Raises RewardError like the runtime.
    """
    by_gold: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        gold = row.get(column)
        if plain_number(str(gold)) is None:
            by_gold.setdefault("" if gold is None else str(gold), []).append(index)
    golds = list(by_gold)
    golds = golds[:: len(golds) // (MAX_GOLDS_READ + 1) + 1]
    inputs = [ScoreInput(_columns(rows[by_gold[gold][0]], render(gold))) for gold in golds]
    scored = runtime.score(inputs, {name: 1.0}) if inputs else []
    return sorted(index for gold, result in zip(golds, scored, strict=True) if result.parts[name] != 1 for index in by_gold[gold])


def problems_of(
    trials: Sequence[Trial],
    rows: Sequence[Mapping[str, Any]],
    name: str,
    is_strict: bool = True,
    check_gold: Callable[[str], str | None] | None = None,
) -> list[str]:
    """What is wrong with reward ``name``: a line for each row whose gold answer doesn't score 1, or whose wrong answers do.

    is_strict    False: the reward may give other numbers than 0 and 1, and has problems only if in no row it prefers the gold answer
    check_gold   what the reward has against the form of a gold answer: a wrong form equals itself, so scores don't show it
    """
    tried = [list(of_row) for _, of_row in groupby(trials, key=lambda trial: trial.row)]
    lines = [*_gold_refused(tried, name), *_wrong_accepted(tried, name)] if is_strict else [*_never_preferred(tried, name)]
    if check_gold is not None:
        wrong_form = list(_of_wrong_form(tried, check_gold))  # which says more than that it can't be read
        lines = [*(line for line in lines if line[0] not in dict(wrong_form)), *wrong_form]
    return [f"row {row}: {what}; row: {_shown(rows[row])}" for row, what in lines]


def rows_named(lines: Sequence[str]) -> set[str]:
    """The rows that what ``problems_of`` returned is about."""
    return {found[1] for line in lines if (found := re.match(r"row (\d+): ", line))}


def _of_wrong_form(tried: Sequence[Sequence[Trial]], check_gold: Callable[[str], str | None]) -> Iterator[tuple[int, str]]:
    for gold, *_ in tried:
        if what := check_gold(gold.answer):
            yield gold.row, f"its gold answer {_short(gold.answer)} {what}; name the column of answers, or extract them"


def _gold_refused(tried: Sequence[Sequence[Trial]], name: str) -> Iterator[tuple[int, str]]:
    for gold, *_ in tried:
        if gold.scored.parts[name] != 1:
            yield gold.row, f"its own gold answer {_short(gold.answer)} scores {_said(gold, name)} by {name!r}, not 1"


def _wrong_accepted(tried: Sequence[Sequence[Trial]], name: str) -> Iterator[tuple[int, str]]:
    """Two wrong answers must score 1, because golds may be equal in ways that only the reward knows."""
    for _, *wrong in tried:
        if wrong and all(trial.scored.parts[name] == 1 for trial in wrong):
            yield wrong[0].row, f"the wrong answer {_short(wrong[0].answer)} scores 1 by {name!r}, not 0"


def _never_preferred(tried: Sequence[Sequence[Trial]], name: str) -> Iterator[tuple[int, str]]:
    comparable = [(gold, wrong) for gold, *wrong in tried if wrong]
    if any(_prefers(name, gold, wrong) for gold, wrong in comparable):
        return
    for gold, wrong in comparable:
        others = ", ".join(f"{_short(trial.answer)} {_said(trial, name)}" for trial in wrong)
        yield (
            gold.row,
            f"its own gold answer {_short(gold.answer)} scores {_said(gold, name)} by {name!r}, no more than wrong ones: {others}",
        )


def _prefers(name: str, gold: Trial, wrong: Sequence[Trial]) -> bool:
    best = gold.scored.parts[name]
    return best is not None and any((value := trial.scored.parts[name]) is not None and best > value for trial in wrong)


def _said(trial: Trial, name: str) -> str:
    note = trial.scored.notes.get(name)
    return f"{trial.scored.parts[name]}{f' ({note})' if note else ''}"


def _unequal(gold: str, others: Iterable[str], most: int) -> list[str]:
    def differs(other: str) -> bool:
        return other.strip() != gold.strip() and not same_number(plain_number(gold), plain_number(other))

    return list(islice(filter(differs, others), most))


def _columns(row: Mapping[str, Any], text: str) -> dict[str, Any]:
    """What a reward is told. Without a tokenizer, ``num_tokens`` is the number of words."""
    return {**RESERVED_VALUES, "num_tokens": len(words(text)), **row, "completion": text}


def _shown(row: Mapping[str, Any]) -> str:
    return _short(dict(row), 300)


def _short(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
