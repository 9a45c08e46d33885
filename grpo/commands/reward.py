"""`grpo reward`: which rewards are there, and what does one make of a file's rows, scored by the runtime that training uses?"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from grpo.config import DataSource, Tags
from grpo.config.check_inputs import source_columns
from grpo.config.load import key_value_pairs
from grpo.data.files import Row, read_jsonl
from grpo.data.sources import Sources
from grpo.errors import DataError, RecipeError, RewardError
from grpo.util.text import found, suggestion
from rewards import RESERVED, SHIPPED, RewardFn, RewardRuntime, RewardSpec, ScoreInput, check_reward, load_reward, right_completions
from rewards.canary import Trial, canary_trials, problems_of
from rewards.function import BATCH_NAMES
from rewards.load import SAME_MEANING, describe_reward, installed_rewards, missing_column
from rewards.rules.tokenize import words

SOURCE_OF_SUFFIX = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}
ANSWER_COLUMNS, PROMPT_COLUMNS = SAME_MEANING
NO_DEFAULT = "(no default)"
KINDS = {"gold": "gold answers", "wrong": "wrong answers", "completion": "completions"}


@dataclass(frozen=True)
class Attempt:
    """One thing that was scored. ``kind``: gold (the row's own answer, in a right completion), wrong (another row's), completion."""

    row: int
    kind: str
    text: str
    score: float | None
    note: str
    seconds: float | None


@dataclass(frozen=True)
class Tried:
    """What ``grpo reward test`` found. ``problems`` holds a line for each row whose answers are not scored as they should be."""

    reward: str
    settings: Mapping[str, Any]
    gold_column: str | None
    attempts: Sequence[Attempt]
    counts: Mapping[str, int]
    problems: Sequence[str]
    first_error: str | None
    is_counted_in_words: bool

    @property
    def median_s(self) -> float | None:
        return _percentile(self.attempts, 50)

    @property
    def p95_s(self) -> float | None:
        return _percentile(self.attempts, 95)

    def scores(self, kind: str) -> list[float]:
        """Of those attempts that the reward judged."""
        return [attempt.score for attempt in self.attempts if attempt.kind == kind and attempt.score is not None]

    def mean_score(self, kind: str) -> float | None:
        scores = self.scores(kind)
        return sum(scores) / len(scores) if scores else None

    def as_json(self) -> dict[str, Any]:
        return {
            "reward": self.reward,
            "settings": dict(self.settings),
            "gold_column": self.gold_column,
            "scored": [vars(attempt) for attempt in self.attempts],
            "mean": {kind: self.mean_score(kind) for kind in KINDS},
            "judged": {kind: len(self.scores(kind)) for kind in KINDS},
            "failures": dict(self.counts),
            "seconds": {"median": self.median_s, "p95": self.p95_s},
            "problems": list(self.problems),
            "passed": not self.problems,
        }


def list_rewards() -> list[dict[str, Any]]:
    """The shipped rewards, then those that installed distributions offer: name, what it says of itself, columns, settings, where from."""
    rows = [_described(name, "shipped") for name in SHIPPED]
    return rows + [_described(name, value) for name, value in sorted(installed_rewards().items())]


def try_reward(
    ref: str,
    data: str,
    completions: str | None = None,
    settings: Sequence[str] = (),
    columns: Sequence[str] = (),
    answer: str | None = None,
    canary: str | None = None,
    num_rows: int = 100,
    deadline_s: float = 5.0,
    is_strict: bool = True,
) -> Tried:
    """Scores gold answers as right, other rows' as wrong, and completions from a file, all by the reward that ``ref`` names.

    data         a .jsonl, .csv or .parquet file
    completions  a .jsonl file: completion (or text), with row (a number from 0) or prompt; a run's samples.jsonl is one
    settings     "key=value", values as in a recipe
    columns      "ours=theirs", as data sources rename columns in a recipe
    answer       the column of gold answers; by default the one by which the reward itself asks for them
    canary       a right completion around {answer}; by default thinking and an answer, in a box or bare, in the tags that its settings name
    num_rows     rows to try gold and wrong answers on, spread over the file
    is_strict    a gold answer must score 1 and a wrong one must not; else gold answers need only score higher

    Raises RecipeError or DataError for what cannot be tried, RewardError for a reward that fails on everything.
    """
    values, problems = key_value_pairs(settings)
    renames, wrong = key_value_pairs(columns)
    problems += wrong
    rows = _rows_of(data, {ours: str(theirs) for ours, theirs in renames.items()}, problems)
    given = _completions_of(completions, rows, problems) if completions else []
    names = {name for row in rows for name in row}
    problems += [_with_remedy(problem) for problem in check_reward(ref, values, names if rows else None)]
    if answer is not None and rows and answer not in names:
        problems.append(f"--answer {answer}: {missing_column(answer, names)}")
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))

    fn = load_reward(ref, **values)
    gold_column = answer or _gold_column(fn)
    shown_column = gold_column or next((name for name in sorted(ANSWER_COLUMNS) if name in names), None)
    if shown_column is None and not given:
        raise RecipeError(f"reward {ref!r} asks for no answer, and {data} has none: there is nothing to score; give --completions FILE")
    if {"tokens", "completion_ids"} & set(fn.columns):
        raise RecipeError(f"reward {ref!r} asks for token ids, and there is no tokenizer here; try it in a run of one step")
    tags = {name: str(fn.settings[name]) for name in ("think_tag", "answer_tag") if name in fn.settings}
    texts = [canary] if canary else right_completions(**tags)
    with RewardRuntime([RewardSpec(ref, settings=values)], deadline_s=deadline_s) as runtime:
        trials, trial_problems = [], []
        if shown_column is not None:
            trials, trial_problems = _best_trials(runtime, rows, texts, num_rows, shown_column, is_strict if gold_column else None)
        attempts = [_attempt_of(trial, fn.name) for trial in trials if trial.is_gold or gold_column]
        if given:
            scored = runtime.score([ScoreInput(columns) for _, columns in given])
            attempts += [
                Attempt(row, "completion", columns["completion"], one.parts[fn.name], one.notes.get(fn.name, ""), one.seconds.get(fn.name))
                for (row, columns), one in zip(given, scored, strict=True)
            ]
        first_error = runtime.first_error.get(fn.name)
    return Tried(
        reward=ref,
        settings=fn.settings,
        gold_column=gold_column,
        attempts=sorted(attempts, key=lambda attempt: attempt.row),
        counts=Counter(attempt.note.partition(":")[0] for attempt in attempts if attempt.note),
        problems=trial_problems,
        first_error=first_error,
        is_counted_in_words="num_tokens" in (*fn.columns, *fn.optional),
    )


def _best_trials(
    runtime: RewardRuntime, rows: Sequence[Row], texts: Sequence[str], num_rows: int, column: str, is_strict: bool | None
) -> tuple[list[Trial], list[str]]:
    """The trials of the first right completion with which nothing is wrong, else of the one with the fewest problems, and those.

    is_strict None: nothing can be wrong. Raises RewardError where the reward fails on everything, whatever the completion.
    """
    ((name, fn),) = runtime.rewards.items()
    found, errors = [], []
    for text in texts:
        try:
            trials = canary_trials(runtime, rows, partial(text.replace, "{answer}"), num_rows=num_rows, column=column)
        except RewardError as error:
            errors.append(error)
            continue
        problems = [] if is_strict is None else problems_of(trials, rows, name, is_strict, fn.options.check_gold)
        found.append((trials, problems))
        if not problems:
            break
    if not found:
        raise errors[0]
    return min(found, key=lambda one: len(one[1]))


def table_of(tried: Tried, limit: int = 24) -> list[list[str]]:
    """Rows of the table that a person sees: at most ``limit``, those with a note or an unexpected score before others, in the file's order."""
    expected = {"gold": 1.0, "wrong": 0.0}
    odd = [bool(attempt.note) or attempt.score != expected.get(attempt.kind, attempt.score) for attempt in tried.attempts]
    first = sorted(range(len(odd)), key=lambda index: not odd[index])[:limit]
    return [_cells(tried.attempts[index]) for index in sorted(first)]


def totals_of(tried: Tried) -> list[str]:
    """What a person reads below the table."""
    scored = []
    for kind, what in KINDS.items():
        num, judged = sum(attempt.kind == kind for attempt in tried.attempts), len(tried.scores(kind))
        if num:
            of_them = "" if judged == num else f", {judged} of {num} judged"
            scored.append(f"{num} {what}{of_them}, mean {_number(tried.mean_score(kind))}")
    failures = ", ".join(f"{number} {kind}" for kind, number in tried.counts.items()) or "none"
    lines = ["; ".join(scored), f"failures: {failures}", f"latency of a sample: median {_ms(tried.median_s)} ms, p95 {_ms(tried.p95_s)} ms"]
    if tried.gold_column is None:
        lines.append("the reward asks for no answer, so nothing here can be called right or wrong")
    if tried.is_counted_in_words:
        lines.append("there is no tokenizer here: num_tokens is the number of words where the completions do not say")
    return lines


def _described(name: str, source: str) -> dict[str, Any]:
    try:
        fn = describe_reward(name)
    except RewardError as error:
        return {"name": name, "about": str(error), "columns": [], "settings": {}, "from": source}
    settings = {key: NO_DEFAULT if value is inspect.Parameter.empty else value for key, value in fn.settings.items()}
    about = (inspect.getdoc(fn.function) or "").partition("\n")[0]
    return {
        "name": name,
        "about": about,
        "columns": [*fn.columns, *(f"{column}?" for column in fn.optional)],
        "settings": settings,
        "from": source,
    }


def _rows_of(data: str, renames: Mapping[str, str], problems: list[str]) -> list[Row]:
    """The file's rows; none, and problems, where it cannot be read. A prompt is not asked for."""
    path = Path(data)
    if path.suffix not in SOURCE_OF_SUFFIX:
        problems.append(f"--data {data}: expected a {', '.join(SOURCE_OF_SUFFIX)} file, found {path.suffix or 'no suffix'}")
        return []
    if missing := _no_file("--data", path):
        problems.append(missing)
        return []
    source = DataSource.model_validate({SOURCE_OF_SUFFIX[path.suffix]: str(path.resolve()), "columns": dict(renames)})
    if source_columns("data", source, Path())[1]:
        source = source.model_copy(update={"question": "?"})
        if findings := source_columns("data", source, Path())[1]:
            problems += [f"--data {data}: {finding.text}" for finding in findings]
            return []
    try:
        return Sources({"data": source}, Path(), Tags()).load("data").rows
    except DataError as error:
        problems.append(f"--data {data}: {error}")
        return []


def _completions_of(file: str, rows: Sequence[Row], problems: list[str]) -> list[tuple[int, dict[str, Any]]]:
    """(row, what the reward is told) of each completion in a file, matched by row number or by prompt."""
    path = Path(file)
    if missing := _no_file("--completions", path):
        problems.append(missing)
        return []
    row_of_prompt = {str(row["prompt"]): index for index, row in reversed(list(enumerate(rows)))}
    matched = []
    for number, given in enumerate(read_jsonl(path)):
        text = given.get("completion", given.get("text"))
        index = given.get("row", row_of_prompt.get(str(given.get("prompt"))))
        if not isinstance(text, str):
            problems.append(f"{file}, completion {number}: there is no text in column 'completion' or 'text'; found {sorted(given)}")
        elif not isinstance(index, int) or not 0 <= index < len(rows):
            problems.append(
                f"{file}, completion {number}: no row of the data has its row (from 0) or prompt, {found(given.get('row', given.get('prompt')))}"
            )
        else:
            matched.append((index, _told(rows[index], given, text)))
    return matched


def _told(row: Row, given: Mapping[str, Any], text: str) -> dict[str, Any]:
    num_tokens = given.get("num_tokens", given.get("completion_tokens", len(words(text))))
    facts = {"prompt_id": str(given.get("prompt_id", "")), "prefill": given.get("prefill", ""), "finish": given.get("finish", "stop")}
    return {**row, **facts, "tokens": (), "num_tokens": num_tokens, "completion": text}


def _with_remedy(problem: str) -> str:
    return f"{problem} (--column OURS=THEIRS renames one)" if ": column '" in problem and "did you mean" in problem else problem


def _gold_column(fn: RewardFn) -> str | None:
    """The column by which a reward asks for the right answer."""
    own = [name for name in (*fn.columns, *fn.optional) if name not in RESERVED and name not in BATCH_NAMES]
    return next((name for name in own if name in ANSWER_COLUMNS), None)


def _attempt_of(trial: Trial, name: str) -> Attempt:
    kind = "gold" if trial.is_gold else "wrong"
    return Attempt(
        trial.row, kind, trial.answer, trial.scored.parts[name], trial.scored.notes.get(name, ""), trial.scored.seconds.get(name)
    )


def _no_file(option: str, path: Path) -> str | None:
    if path.is_file():
        return None
    siblings = sorted(item.name for item in path.parent.iterdir()) if path.parent.is_dir() else []
    return f"{option} {path}: there is no such file{suggestion(path.name, siblings)}"


def _percentile(attempts: Sequence[Attempt], percent: float) -> float | None:
    import numpy as np

    seconds = [attempt.seconds for attempt in attempts if attempt.seconds is not None]
    return float(np.percentile(seconds, percent)) if seconds else None


def _cells(attempt: Attempt) -> list[str]:
    return [str(attempt.row), attempt.kind, found(attempt.text), _number(attempt.score), attempt.note, _ms(attempt.seconds)]


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _ms(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds * 1000:.3g}"
