"""Problems of a recipe, each shown as one line that says where it is, what is wrong, and what to do."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from grpo.util.text import printable, suggestion

Keys = tuple[str | int, ...]


class SourceLocation(NamedTuple):
    """A line of a file. With line 0 it is an override as it was typed ("command line: stages.reason.steps=12")."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


class Problem(NamedTuple):
    """A mistake and its location. As a string it is one printable line."""

    location: SourceLocation
    text: str

    def __str__(self) -> str:
        return printable(f"{self.location}: {self.text}")


@dataclass(frozen=True)
class Finding:
    """A mistake at the keys that lead to it. ``relies_on``: the other keys whose values make it a mistake."""

    keys: Keys
    text: str
    relies_on: tuple[Keys, ...] = ()

    def holds_without(self, damaged: Iterable[Keys]) -> bool:
        """Return whether it is still a mistake if the values at ``damaged`` are only stand-ins, with which validation continued."""
        return not any(_overlap(keys, damage) for keys in (self.keys, *self.relies_on) for damage in damaged)


def _overlap(one: Keys, other: Keys) -> bool:
    shared = min(len(one), len(other))
    return one[:shared] == other[:shared]


def clash(at: Keys, text: str, *names: str) -> Finding:
    """Return a finding at the first of the settings ``names`` below ``at`` that relies on all of them."""
    return Finding((*at, names[0]), text, tuple((*at, name) for name in names[1:]))


def dotted(keys: Keys, data: Any) -> str:
    """Return the keys as they are written on a command line, a stage by its name: stages.reason.rewards.0.weight."""
    words = []
    for key in keys:
        if isinstance(data, list) and isinstance(key, int):
            data = data[key]
        else:
            data = data.get(key) if isinstance(data, Mapping) else None
        name = data.get("name") if words == ["stages"] and isinstance(data, Mapping) else None
        words.append(name if isinstance(name, str) else str(key))
    return ".".join(words)


def in_reading_order(problems: Iterable[Problem], recipe: str) -> list[str]:
    """Return the problems as lines: first those of the file ``recipe``, then of the files it extends, then of the command line."""

    def order(problem: Problem) -> tuple[bool, bool, str, int]:
        file, line = problem.location
        return line == 0, file != recipe, file if line else "", line

    return [str(problem) for problem in sorted(problems, key=order)]


def no_file(path: Path) -> str:
    """Return the message for a file that does not exist, with the file beside it that is most alike."""
    siblings = sorted(item.name for item in path.parent.iterdir()) if path.parent.is_dir() else []
    what = "is a folder, not a file" if path.is_dir() else "does not exist"
    return f"file {shown_path(path)} {what}{suggestion(path.name, siblings)}"


def shown_path(path: Path) -> str:
    """Return a path without "." and ".."."""
    return os.path.normpath(path)
