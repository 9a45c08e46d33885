"""Can the accuracy reward be trusted? Gold answers must score 1 and wrong ones 0, on the same path that training takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, NamedTuple

from rewards.rules.equality import plain_number, same_number
from rewards.rules.tokenize import words
from rewards.runtime import RewardRuntime, Scored, ScoreInput

CANARY_ROWS = 8
MAX_GOLDS_READ = 5000
"""A gold answer that is no plain number takes milliseconds to read; more of them are half a minute."""
RESERVED_VALUES = {"prompt": "", "prompt_id": "canary", "prefill": "", "finish": "stop", "tokens": ()}


def right_completions(think_tag: str = "think", answer_tag: str = "answer") -> list[str]:
    """Well-formed completions with {answer} where the answer belongs, in a box and bare: a reward that takes one of them is sound."""
    forms = (r"\boxed{{answer}}", "{answer}")
    return [f"<{think_tag}> see below </{think_tag}> <{answer_tag}> {form} </{answer_tag}>" for form in forms]


class GoldsRead(NamedTuple):
    """Rows whose gold answers are no good, and how many rows were looked at."""

    refused: list[int]
    num_rows: int


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
    name: str | None = None,
    num_rows: int | None = CANARY_ROWS,
    column: str = "answer",
    skip: Container[int] = (),
) -> list[Trial]:
    """Scores each row's gold answer, then up to two unequal ones of the rows after it that scored 1 there, by all rewards of the runtime.

    render     a well-formed completion around an answer
    name       the reward that says what is right; by default the runtime's accuracy reward, or its only one
    num_rows   rows to try, spread over all; None tries every row, which finds each gold answer that can't be read
    skip       rows that are not tried

    Of a gold answer that is a list, all parts together must score 1, or each of them: what scored least is its trial.
    """
    name = name or runtime.accuracy or next(iter(runtime.rewards))
    there = [index for index in range(len(rows)) if index not in skip]
    step = 1 if num_rows is None else max(1, len(there) // num_rows)
    chosen = there[::step][:num_rows]
    golds = {index: gold_texts(rows[index].get(column)) for index in chosen}
    tried = _scored(runtime, rows, render, [(index, text, True) for index in chosen for text in golds[index]])
    right = {index: _gold_trial([trial for trial in tried if trial.row == index], name) for index in chosen}
    readable = [index for index in chosen if _is_right(right[index], name)]
    cases = []
    for number, index in enumerate(chosen):
        after = sorted([*chosen[number + 1 :], *chosen[:number]], key=lambda other: other not in readable)
        cases += [(index, other, False) for other in _unequal(golds[index][0], dict.fromkeys(golds[other][0] for other in after), most=2)]
    if cases:  # with a right one before them: a reward that fails on wrong answers alone is not one that fails on everything
        first = right[readable[0] if readable else chosen[0]]
        tried = _scored(runtime, rows, render, [(first.row, first.answer, True), *cases])[1:]
    wrong = [trial for trial in tried if not trial.is_gold]
    return [trial for index in chosen for trial in (right[index], *(trial for trial in wrong if trial.row == index))]


def gold_texts(gold: Any) -> list[str]:
    """How a gold answer may be written: as it is, and a list as all of its parts, then as each of them."""
    if not isinstance(gold, list | tuple) or not gold:
        return ["" if gold is None else str(gold)]
    parts = [str(part) for part in gold]
    return parts if len(parts) == 1 else [", ".join(parts), *parts]


def _scored(
    runtime: RewardRuntime, rows: Sequence[Mapping[str, Any]], render: Callable[[str], str], cases: Sequence[tuple[int, str, bool]]
) -> list[Trial]:
    completions = [render(answer) for _, answer, _ in cases]
    inputs = [ScoreInput(_columns(rows[index], text)) for (index, _, _), text in zip(cases, completions, strict=True)]
    rules = {each: spec.weight for each, spec in runtime.specs.items() if not runtime.rewards[each].options.by_model}  # opinions cost
    scored = runtime.score(inputs, rules)
    return [Trial(*case, text, result) for case, text, result in zip(cases, completions, scored, strict=True)]


def _gold_trial(trials: Sequence[Trial], name: str) -> Trial:
    """Of the ways to write a row's gold answer: all of its parts if that is right, else the part that scores least."""
    whole, *parts = trials
    return whole if not parts or _is_right(whole, name) else min(parts, key=lambda trial: _value(trial, name))


def _is_right(trial: Trial, name: str) -> bool:
    return _value(trial, name) == 1


def _value(trial: Trial, name: str) -> float:
    value = trial.scored.parts.get(name)
    return -float("inf") if value is None else value


def canary_problems(
    runtime: RewardRuntime,
    rows: Sequence[Mapping[str, Any]],
    render: Callable[[str], str],
    *,
    name: str | None = None,
    num_rows: int | None = CANARY_ROWS,
    column: str = "answer",
    skip: Container[int] = (),
) -> list[str]:
    """One line for each row in which the accuracy reward can't be trusted; see problems_of and canary_trials.

    name   the accuracy reward; by default the runtime's (with none, there is nothing to check)
    """
    name = name or runtime.accuracy
    if name is None or runtime.rewards[name].options.by_model or not rows:
        return []
    trials = canary_trials(runtime, rows, render, name=name, num_rows=num_rows, column=column, skip=skip)
    return problems_of(trials, rows, name, name in runtime.required, runtime.rewards[name].options.check_gold)


def refused_golds(
    runtime: RewardRuntime, rows: Sequence[Mapping[str, Any]], render: Callable[[str], str], *, name: str, column: str = "answer"
) -> list[int]:
    """Rows whose own gold answer reward ``name`` cannot read; see read_golds, of MAX_GOLDS_READ different ones."""
    return read_golds(runtime, rows, render, name=name, column=column, most=MAX_GOLDS_READ).refused


def read_golds(
    runtime: RewardRuntime,
    rows: Sequence[Mapping[str, Any]],
    render: Callable[[str], str],
    *,
    name: str,
    column: str = "answer",
    most: int | None = None,
) -> GoldsRead:
    """Rows whose own gold answer reward ``name`` cannot read, or in time, or not find right, or has something against the form of: nothing
    that the policy says to them will be right.

    Plain numbers are taken as read where the reward has a say about forms. Of the others ``most`` different ones are tried, spread over all; by
    default every one.
    Raises RewardError like the runtime.
    """
    fn = runtime.rewards[name]
    check_gold = fn.options.check_gold
    of_gold = [known for known in (*fn.columns, *fn.optional) if known not in RESERVED_VALUES and known != "completion"]
    num_plain, same = 0, dict[str, list[int]]()
    for index, row in enumerate(rows):
        gold = row.get(column)
        if check_gold is not None and not isinstance(gold, list | tuple | Mapping) and plain_number(str(gold)) is not None:
            num_plain += 1
        else:
            same.setdefault(repr(["" if (value := row.get(known)) is None else value for known in (column, *of_gold)]), []).append(index)
    looked_at = list(same.values())
    if most is not None:
        looked_at = looked_at[:: len(looked_at) // (most + 1) + 1]
    cases = [(indices[0], text, True) for indices in looked_at for text in gold_texts(rows[indices[0]].get(column))]
    inputs = [ScoreInput(_columns(rows[index], render(text))) for index, text, _ in cases]
    scored = runtime.score(inputs, {name: 1.0}) if inputs else []
    values: dict[int, list[float | None]] = {}
    for (index, _, _), result in zip(cases, scored, strict=True):
        values.setdefault(index, []).append(result.parts[name])
    refused = []
    for indices in looked_at:
        whole, *parts = values[indices[0]]
        is_right = whole == 1 or (bool(parts) and all(value == 1 for value in parts))
        form = check_gold and check_gold(gold_texts(rows[indices[0]].get(column))[0])
        refused += [] if is_right and not form else indices
    return GoldsRead(sorted(refused), num_plain + sum(map(len, looked_at)))


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
