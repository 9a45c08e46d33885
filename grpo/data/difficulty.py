"""How often was a prompt solved? Measured pass rates, from what an eval, reject or rl stage wrote down."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo.data.files import read_jsonl
from grpo.data.held_out import prompt_key
from grpo.errors import DataError
from rewards.load import missing_column


def measured_pass_rates(path: Path, part: str | None) -> dict[str, float]:
    """Pass rate by prompt_key: of each prompt's judged samples, the share whose ``part`` is 1.

    ``path`` is items.jsonl of an eval stage (parts: accuracy, lenient, well_formed) or samples.jsonl of a reject or rl stage (its rewards);
    ``part`` None is accuracy or math. Samples that nobody could judge do not count. Raises DataError with file and line.
    """
    if not path.is_file():
        raise DataError(f"measured: there is no file {path}; an eval stage leaves items.jsonl, a reject or rl stage samples.jsonl")
    judged: dict[str, list[bool]] = {}
    for number, row in enumerate(read_jsonl(path), start=1):
        parts = row["parts"] if isinstance(row.get("parts"), Mapping) else row
        name = part or ("accuracy" if "accuracy" in parts else "math")
        prompt = row.get("question", row.get("prompt"))
        if name not in parts or prompt is None:
            raise DataError(
                f"{path}:{number}: {missing_column(name if name not in parts else 'prompt', parts)}; measured_by: names another"
            )
        if parts[name] is not None:
            judged.setdefault(prompt_key(prompt), []).append(_as_float(parts[name], f"{path}:{number}: {name}") == 1.0)
    return {key: sum(right) / len(right) for key, right in judged.items()}


def difficulty_of(columns: Mapping[str, Any], column: str, place: str) -> float:
    """The number in a row's column. Raises DataError where there is none."""
    if columns.get(column) is None:
        raise DataError(f"{place}: no {column} is known for this prompt; found {sorted(columns)}; measured: FILE gives prompts a pass_rate")
    return _as_float(columns[column], f"{place}: {column}")


def _as_float(value: Any, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DataError(f"{what} is {value!r}, which is no number") from None
    if number != number:
        raise DataError(f"{what} is not a number (NaN)")
    return number
