"""What a stage writes down as it goes: metrics.jsonl and samples.jsonl, an object a line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grpo.util.storage import log_error


class JsonLines:
    """A file that only grows; every line is on disk before the next step begins. Raises StorageError where there is no room for it."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("a", encoding="utf-8")

    @property
    def num_bytes(self) -> int:
        return self._file.tell()

    def sync(self) -> None:
        """Return once what was written is on the disk."""
        os.fsync(self._file.fileno())

    def cut(self, num_bytes: int) -> int:
        """Forget what stands after the first ``num_bytes``. Returns how many bytes were lost of those, which a deleted file has."""
        lost = max(0, num_bytes - self.path.stat().st_size)
        self._file.truncate(num_bytes - lost)
        self._file.seek(0, 2)
        return lost

    def write(self, row: Mapping[str, Any]) -> None:
        self.write_all([row])

    def write_all(self, rows: Iterable[Mapping[str, Any]]) -> None:
        lines = [json.dumps(without_nan(row), ensure_ascii=False) + "\n" for row in rows]
        with self._room():
            self._file.writelines(lines)
            self._file.flush()

    def close(self) -> None:
        with self._room():
            self._file.close()

    @contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise log_error(self.path, error) from error

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_jsonl_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a file written by JsonLines; none where there is no such file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(without_nan(value), indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` at once, so that a reader never sees half of it. Raises StorageError where it can't be written."""
    temporary = path.with_name(path.name + ".writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise log_error(path, error) from error


def without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity: both become null, "not known"."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value
