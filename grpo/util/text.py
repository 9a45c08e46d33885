"""Text for people: suggestions for misspelt words, short values, and lines that a terminal can show safely."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from typing import Any


def did_you_mean(word: Any, known: Iterable[str]) -> str | None:
    """Return the known word that ``word`` most resembles, or None where nothing comes near."""
    return _closest(_folded(str(word)), tuple(known))


@lru_cache(maxsize=4096)  # one mistake is looked at from many places: 40 unknown keys would be compared 40,000 times
def _closest(folded_word: str, known: tuple[str, ...]) -> str | None:
    folded = {_folded(name): name for name in known}
    close = get_close_matches(folded_word, folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def resembles_closely(word: Any, name: str) -> bool:
    """Whether ``word`` is so close to ``name`` that hardly anything else can have been meant."""
    return bool(get_close_matches(_folded(str(word)), [_folded(name)], cutoff=0.8))


def _folded(word: str) -> str:
    return word.lower().replace("-", "_").replace(" ", "_")


def suggestion(word: Any, known: Iterable[str]) -> str:
    """Return "; did you mean 'steps'?", or nothing."""
    close = did_you_mean(word, known)
    return f"; did you mean {close!r}?" if close else ""


def listed(words: Iterable[Any]) -> str:
    """Return "[a, b, c]"."""
    return f"[{', '.join(map(str, words))}]"


def found(value: Any) -> str:
    """Return a value as a message shows it: short, and with nothing in it that a terminal would obey."""
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


def render_problems(problems: Sequence[str], ref: str | None = None) -> str:
    """Return all problems for the terminal, below a line that counts them and names the recipe (``ref``, or the first file they name)."""
    named = (match.group(1) for match in (re.match(r"(\S.*?\.ya?ml):\d+: ", problem) for problem in problems) if match)
    recipe = ref or next(named, None)
    count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
    header = f"{count}{f' in {recipe}' if recipe else ''}; nothing was loaded:"
    return "\n".join([printable(header), *(f"  {printable(problem)}" for problem in problems)])


def printable_lines(text: str) -> str:
    """Return ``text`` with everything unprintable but line ends shown as Python writes it."""
    return "\n".join(map(printable, text.split("\n")))


def printable(text: str) -> str:
    """Return ``text`` with everything unprintable shown as Python writes it."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
