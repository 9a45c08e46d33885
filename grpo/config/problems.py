"""What does a mistake in a recipe look like to its author? One line: where, what, what was found, what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from grpo.util.text import printable

Keys = tuple[str | int, ...]


class SourceLocation(NamedTuple):
    """A line of a file; or, with line 0, an override as it was typed ("command line: stages.reason.steps=12")."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


class Problem(NamedTuple):
    """A mistake and its place. As a string it is one printable line."""

    location: SourceLocation
    text: str

    def __str__(self) -> str:
        return printable(f"{self.location}: {self.text}")


@dataclass(frozen=True)
class Finding:
    """A mistake known by the keys that lead to it. ``relies_on``: what else must be as written for this to be a mistake at all."""

    keys: Keys
    text: str
    relies_on: tuple[Keys, ...] = ()

    def holds_without(self, damaged: Iterable[Keys]) -> bool:
        """Is it still a mistake, when the values at ``damaged`` were put there only to be able to read on?"""
        return not any(_overlap(keys, damage) for keys in (self.keys, *self.relies_on) for damage in damaged)


def _overlap(one: Keys, other: Keys) -> bool:
    shared = min(len(one), len(other))
    return one[:shared] == other[:shared]


def dotted(keys: Keys, data: Any) -> str:
    """The keys as one writes them on a command line, a stage by its name: stages.reason.rewards.0.weight."""
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
    """The problems as lines: those of the file ``recipe`` first, then those of the files it extends, then the command line's."""

    def order(problem: Problem) -> tuple[bool, bool, str, int]:
        file, line = problem.location
        return line == 0, file != recipe, file if line else "", line

    return [str(problem) for problem in sorted(problems, key=order)]
