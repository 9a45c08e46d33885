"""What is there to read in a run's folder, finished or not? Pieces that are missing, torn or of another shape are left out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

BLOCK_BYTES, MAX_SAMPLE_BYTES = 1 << 18, 1 << 24
LARGEST = 1e100  # NaN and infinity are not below it either

Numbers = Mapping[str, float]
Row = dict[str, Any]


@dataclass(frozen=True)
class StageContents:
    """A stage as far as it got. ``status``: complete, unfinished (begun) or pending; ``before`` and ``after``: its two models' scores."""

    number: int
    name: str
    kind: str
    status: str
    start: str
    seconds: float | None
    output: str | None
    metrics: Numbers
    before: Numbers
    after: Numbers
    steps: list[Numbers]
    num_steps_planned: int | None
    samples: Path | None

    @property
    def makes_model(self) -> bool:
        return self.kind in ("sft", "rl", "distill")


@dataclass(frozen=True)
class RunContents:
    name: str
    description: str
    status: str
    recipe_yaml: str
    stages: list[StageContents]


@dataclass(frozen=True)
class Asked:
    """A prompt of one step and the rows of its samples."""

    step: float
    rows: list[Row] = field(repr=False)


def read_run(folder: Path) -> RunContents:
    summary = _mapping(_json(folder / "summary.json"))
    recipe_yaml = _text(folder / "recipe.yaml")
    recipe = _mapping(_yaml(recipe_yaml))
    planned = [_mapping(stage) for stage in _list(recipe.get("stages"))]
    summaries = [_mapping(stage) for stage in _list(summary.get("stages"))]
    found = {path.name: path for path in sorted(folder.glob("[0-9][0-9]-*")) if path.is_dir()}
    numbers = sorted({*range(1, max(len(planned), len(summaries)) + 1), *(int(name[:2]) for name in found)})
    stages = [_read_stage(folder, found, number, _at(planned, number), _at(summaries, number)) for number in numbers]
    name = summary.get("recipe") or recipe.get("name") or folder.resolve().name
    return RunContents(str(name), str(recipe.get("description") or ""), str(summary.get("status") or "unfinished"), recipe_yaml, stages)


def first_prompts(path: Path, limit: int) -> list[Asked]:
    """The first ``limit`` prompts of the first step in samples.jsonl; reads no further than that."""
    try:
        with path.open("rb") as file:
            return _of_one_step(_rows(_bounded(file)), limit)
    except OSError:
        return []


def last_prompts(path: Path, limit: int) -> list[Asked]:
    """The last ``limit`` prompts of the last step in samples.jsonl, in the order they were written; reads backwards from the end."""
    try:
        asked = _of_one_step(_rows(_lines_backwards(path)), limit)
    except OSError:
        return []
    return [Asked(one.step, one.rows[::-1]) for one in reversed(asked)]


def numbers_of(value: Any) -> Numbers:
    """The numbers of a mapping that an axis can hold."""
    known = _mapping(value).items()
    return {str(k): float(v) for k, v in known if isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < LARGEST}


def _read_stage(folder: Path, found: Mapping[str, Path], number: int, planned: Row, summary: Row) -> StageContents:
    prefix = f"{number:02d}-"
    unplanned = next((name.removeprefix(prefix) for name in found if name.startswith(prefix)), number)
    name = str(planned.get("name") or summary.get("name") or unplanned)
    own = found.get(prefix + name)  # only what is there: a name is no path
    record = _mapping(_json(own / "stage.json")) if own else {}
    known = {**summary, **record}
    start = planned.get("from") or known.get("from") or "?"
    evaluated = f"{name}_student" if isinstance(start, dict) else str(start)
    metrics = numbers_of(known.get("metrics"))
    steps = {
        row["step"]: row
        for row in map(numbers_of, _rows(_lines(own / "metrics.jsonl") if own else []))
        if abs(row.get("step", LARGEST)) < 1e12
    }
    total = planned.get("steps")
    return StageContents(
        number=number,
        name=name,
        kind=str(planned.get("kind") or known.get("kind") or "?"),
        status="complete" if record or known.get("status") == "complete" else "unfinished" if own else "pending",
        start=str(known.get("from") or (start.get("make") or start.get("path") if isinstance(start, dict) else start)),
        seconds=numbers_of(known).get("seconds"),
        output=str(known["output"]) if known.get("output") else None,
        metrics=metrics,
        before=_scores(folder, evaluated, metrics, "_before"),
        after=_scores(folder, name, metrics, "_after"),
        steps=[steps[step] for step in sorted(steps)],
        num_steps_planned=total if isinstance(total, int) else None,
        samples=own / "samples.jsonl" if own else None,
    )


def _scores(folder: Path, model: str, metrics: Numbers, suffix: str) -> Numbers:
    """accuracy, lenient and their standard errors: from the model's evaluation, or where that is gone from what the stage reported."""
    reported = {name: metrics[f"eval/{name}{suffix}"] for name in ("accuracy", "lenient") if f"eval/{name}{suffix}" in metrics}
    if suffix == "_after":
        reported |= {name: metrics[f"eval/{name}"] for name in ("accuracy_se", "lenient_se") if f"eval/{name}" in metrics}
    evaluated = numbers_of(_json(folder / "evals" / f"{model}.json")) if re.fullmatch(r"\w+", model) else {}
    return {**evaluated, **reported}


def _of_one_step(rows: Iterable[Row], limit: int) -> list[Asked]:
    """The first ``limit`` prompts, as long as the step stays the same."""
    asked: list[Asked] = []
    for (step, _), group in groupby(rows, key=lambda row: (row.get("step"), row.get("prompt_id"))):
        if not isinstance(step, int | float) or len(asked) == limit or (asked and asked[0].step != step):
            break
        asked.append(Asked(step, list(group)))
    return asked


def _bounded(lines: Iterable[bytes]) -> Iterator[bytes]:
    left = MAX_SAMPLE_BYTES
    for line in lines:
        left -= len(line)
        if left < 0:
            return
        yield line


def _lines_backwards(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        position = file.seek(0, 2)
        stop = max(0, position - MAX_SAMPLE_BYTES)
        rest = b""
        while position > stop:
            size = min(BLOCK_BYTES, position)
            position -= size
            file.seek(position)
            rest, *lines = (file.read(size) + rest).split(b"\n")
            yield from reversed(lines)
        if position == 0:
            yield rest


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\n")
    except OSError:
        return []


def _rows(lines: Iterable[bytes]) -> Iterator[Row]:
    """Lines that are JSON objects; the last one of a process that was killed may not be."""
    for line in lines:
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path) or "null")
    except ValueError:
        return None


def _yaml(text: str) -> Any:
    try:
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # the C one is ten times as fast, where it was built
    except yaml.YAMLError:
        return None


def _mapping(value: Any) -> Row:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _at(stages: list[Row], number: int) -> Row:
    return stages[number - 1] if 1 <= number <= len(stages) else {}
