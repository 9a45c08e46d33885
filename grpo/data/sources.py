"""Where do rows come from? Every source ends as a list of dicts with a ``prompt`` and whatever columns rewards ask for."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo.config import DataSource, Tags
from grpo.data.general import general_rows
from grpo.data.sums import worked_sum
from grpo.errors import DataError

Row = dict[str, Any]
MOST_DRAWS = 60  # of twice the rows asked for; a task that has so few distinct problems is refused


def load_source(name: str, sources: Mapping[str, DataSource], base: Path, tags: Tags) -> list[Row]:
    """The rows of the source called ``name``, without those whose prompt also stands in a source it is to be disjoint from.

    Generated sources have exactly ``rows`` rows, none of them twice; files and hub data sets at most so many.
    Raises DataError naming source, file and line.
    """
    source = sources[name]
    excluded = {_key(row) for other in source.disjoint_from for row in load_source(other, sources, base, tags)}
    if source.reasoning_gym is None:
        rows = [row for row in _finished(name, source, _read(name, source, base, tags), tags) if _key(row) not in excluded]
        return rows[: source.rows]
    return _generated(name, source, excluded, tags)


def _generated(name: str, source: DataSource, excluded: set[str], tags: Tags) -> list[Row]:
    """Draw until ``rows`` distinct, permitted problems are found; the generator's own duplicates are dropped."""
    wanted = source.rows or 1000
    rows: list[Row] = []
    seen = set(excluded)
    for attempt in range(MOST_DRAWS):
        drawn = _reasoning_gym(source, size=2 * wanted, seed=source.seed + 1_000_003 * attempt)
        for row in _finished(name, source, drawn, tags):
            if _key(row) not in seen and len(rows) < wanted:
                seen.add(_key(row))
                rows.append(row)
        if len(rows) == wanted:
            return rows
    raise DataError(
        f"data source {name!r}: only {len(rows)} distinct problems found, {wanted} asked for; ask for fewer rows or widen its settings"
    )


def _reasoning_gym(source: DataSource, size: int, seed: int) -> list[Row]:
    import reasoning_gym

    dataset = reasoning_gym.create_dataset(source.reasoning_gym, size=size, seed=seed, **source.settings)
    return [{**_plain(item["metadata"]), **{key: item[key] for key in ("question", "answer", "metadata")}} for item in dataset]


def _plain(metadata: Mapping[str, Any]) -> Row:
    return {key: value for key, value in metadata.items() if isinstance(value, str | int | float) and not key.startswith("source_")}


def _read(name: str, source: DataSource, base: Path, tags: Tags) -> list[Row]:
    if source.general:
        return general_rows(source.rows or 200, source.seed, tags)
    if source.jsonl:
        return read_jsonl(base / source.jsonl)
    if source.generator:
        return _from_generator(name, source, base)
    return _from_datasets(source, base)


def read_jsonl(path: Path) -> list[Row]:
    """Rows of a JSON-lines file; DataError names file and line of every line that is not a JSON object."""
    rows, problems = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"{path}:{number}: not JSON ({error.msg} at column {error.colno})")
            continue
        if isinstance(row, dict):
            rows.append(row)
        else:
            problems.append(f"{path}:{number}: expected an object, found {type(row).__name__}")
    if problems:
        raise DataError("\n".join(problems[:20]))
    return rows


def _from_generator(name: str, source: DataSource, base: Path) -> list[Row]:
    file, _, function = str(source.generator).rpartition(":")
    path = (base / file).resolve()
    if not path.is_file():
        raise DataError(f"data source {name!r}: generator {source.generator!r}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"_user_data_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, function, None)):
        raise DataError(f"data source {name!r}: there is no function {function!r} in {path}")
    return [dict(row) for row in getattr(module, function)(**source.settings)]


def _from_datasets(source: DataSource, base: Path) -> list[Row]:
    import datasets

    if source.hub:
        loaded = datasets.load_dataset(source.hub, split=source.split)
    else:
        kind, path = ("parquet", source.parquet) if source.parquet else ("csv", source.csv)
        loaded = datasets.load_dataset(kind, data_files=str(base / str(path)), split="train")
    return [dict(row) for row in loaded]


def _finished(name: str, source: DataSource, rows: list[Row], tags: Tags) -> list[Row]:
    """Rename columns, and write the prompt from ``question:`` or from the column question where there is no prompt yet."""
    finished = []
    for index, row in enumerate(rows):
        row = {**row, **{ours: _column(name, row, theirs, index) for ours, theirs in source.columns.items()}}
        if source.question is not None:
            row["prompt"] = _formatted(name, source.question, row, index)
        elif "prompt" not in row:
            row["prompt"] = _column(name, row, "question", index)
        if source.completion == "worked_sums":
            row["completion"] = worked_sum(_column(name, row, "expression", index), tags)
        if source.only is None or re.search(source.only, str(row["prompt"])):
            finished.append(row)
    return finished


def _column(name: str, row: Row, column: str, index: int) -> Any:
    if column not in row:
        raise DataError(f"data source {name!r}, row {index}: column {column!r} not found; found {sorted(row)}")
    return row[column]


def _formatted(name: str, pattern: str, row: Row, index: int) -> str:
    try:
        return pattern.format(**row)
    except (KeyError, IndexError) as error:
        raise DataError(f"data source {name!r}, row {index}: question {pattern!r} names column {error}; found {sorted(row)}") from None


def _key(row: Row) -> str:
    return json.dumps(row["prompt"], ensure_ascii=False, sort_keys=True)
