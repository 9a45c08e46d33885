"""What does a mistake in a recipe look like to its author? One line: where, what, what was found, what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple

Keys = tuple[str | int, ...]


class Place(NamedTuple):
    """A line of a file; or, with line 0, an override as it was typed ("command line: stages.reason.steps=12")."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


class Problem(NamedTuple):
    """A mistake and its place. As a string it is one printable line."""

    place: Place
    text: str

    def __str__(self) -> str:
        return _printable(f"{self.place}: {self.text}")


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


def did_you_mean(word: Any, known: Iterable[str]) -> str | None:
    """The known word that ``word`` most resembles, or None where nothing comes near."""
    folded = {_folded(name): name for name in known}
    close = get_close_matches(_folded(str(word)), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def resembles_closely(word: Any, name: str) -> bool:
    """So that hardly anything else can have been meant."""
    return bool(get_close_matches(_folded(str(word)), [_folded(name)], cutoff=0.8))


def _folded(word: str) -> str:
    return word.lower().replace("-", "_").replace(" ", "_")


def suggestion(word: Any, known: Iterable[str]) -> str:
    """ "; did you mean 'steps'?", or nothing."""
    close = did_you_mean(word, known)
    return f"; did you mean {close!r}?" if close else ""


def listed(words: Iterable[Any]) -> str:
    """[a, b, c]"""
    return f"[{', '.join(map(str, words))}]"


def found(value: Any) -> str:
    """A value as a message shows it: short, and with nothing in it that a terminal would obey."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"a mapping with keys {listed(value)}" if value else "an empty mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]}...{text[-1]}"


def in_reading_order(problems: Iterable[Problem], recipe: str) -> list[str]:
    """The problems as lines: those of the file ``recipe`` first, then those of the files it extends, then the command line's."""

    def order(problem: Problem) -> tuple[bool, bool, str, int]:
        file, line = problem.place
        return line == 0, file != recipe, file if line else "", line

    return [str(problem) for problem in sorted(problems, key=order)]


def render_problems(problems: Sequence[str], ref: str | None = None) -> str:
    """All problems for the terminal, below a line that counts them and names the recipe (``ref``, or the first file they name)."""
    named = (match.group(1) for match in (re.match(r"(\S.*?\.ya?ml):\d+: ", problem) for problem in problems) if match)
    recipe = ref or next(named, None)
    count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
    header = f"{count}{f' in {recipe}' if recipe else ''}; nothing was loaded:"
    return "\n".join([_printable(header), *(f"  {_printable(problem)}" for problem in problems)])


def printable_lines(text: str) -> str:
    """``text`` with nothing in it that a terminal would obey: what is not printable is shown as Python writes it, but for line ends."""
    return "\n".join(map(_printable, text.split("\n")))


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
