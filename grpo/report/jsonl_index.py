"""How is a file of JSON objects read that may be torn, foreign, still growing, or larger than memory?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_WHOLE_BYTES, NUM_WINDOWS = 1 << 27, 64
MAX_LINE_BYTES = 1 << 24

Row = dict[str, Any]


@dataclass
class Lines:
    """The rows of ``path`` in their order, one at a time; afterwards ``num_unread`` lines were no JSON objects.

    Of a file over ``max_bytes``, only ``NUM_WINDOWS`` pieces at equal distances are read, from its beginning to its end, ``max_bytes`` in all.
    """

    path: Path
    max_bytes: int = MAX_WHOLE_BYTES
    num_unread: int = field(default=0, init=False)
    num_bytes: int = field(default=0, init=False)

    @property
    def is_sampled(self) -> bool:
        return self.num_bytes > self.max_bytes

    def __iter__(self) -> Iterator[Row]:
        self.num_unread = 0
        try:
            with self.path.open("rb") as file:
                self.num_bytes = file.seek(0, 2)
                for start, end in self._windows():
                    yield from self._rows(file, start, end)
        except OSError:
            return

    def _windows(self) -> list[tuple[int, int]]:
        if not self.is_sampled:
            return [(0, self.num_bytes)]
        size, last = self.max_bytes // NUM_WINDOWS, self.num_bytes - self.max_bytes // NUM_WINDOWS
        starts = [last * i // (NUM_WINDOWS - 1) for i in range(NUM_WINDOWS)]
        return [(start, start + size) for start in starts]

    def _rows(self, file: Any, start: int, end: int) -> Iterator[Row]:
        """Of the lines that begin in [start, end)."""
        file.seek(max(0, start - 1))
        if start:
            while (piece := file.readline(MAX_LINE_BYTES)) and not piece.endswith(b"\n"):
                pass
        while file.tell() < end and (line := file.readline(MAX_LINE_BYTES)):
            is_whole = len(line) < MAX_LINE_BYTES or line.endswith(b"\n")
            while not is_whole and (piece := file.readline(MAX_LINE_BYTES)) and not piece.endswith(b"\n"):
                pass
            if not line.strip():
                continue
            row = _parsed(line) if is_whole else None
            if isinstance(row, dict):
                yield row
            else:
                self.num_unread += 1


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
