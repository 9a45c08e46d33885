"""Which kinds of answers are there, and what are the parts of each?"""

from __future__ import annotations

from typing import NamedTuple

from rewards.rules.formula import Tree
from rewards.rules.numbers import Number


class NoAnswer(ValueError):
    """A text that commits to no answer, or that can't be read; the message says why."""


class Value(NamedTuple):
    """One value. ``tree`` is None where only math-verify may read ``latex``. ``unit``: None where none is known, even if words followed."""

    tree: Tree | None
    latex: str
    number: Number | None = None
    unit: str | None = None
    in_units: Value | None = None  # type: ignore[misc]
    r"""The other reading of "5 m": five metres, and not 5 times m."""


class Words(NamedTuple):
    text: str


class Several(NamedTuple):
    """Answers side by side, in no order: 1 and 2."""

    parts: tuple[Node, ...]


class Bracketed(NamedTuple):
    """(a, b), [a, b), {a, b} or <a, b>: a point, an interval or a set."""

    opening: str
    parts: tuple[Node, ...]
    closing: str


class Union(NamedTuple):
    parts: tuple[Node, ...]


class Relation(NamedTuple):
    """Sides with a sign between each two of them: x = 5, 2 < x <= 9."""

    sides: tuple[Node, ...]
    signs: tuple[str, ...]


class Table(NamedTuple):
    """A matrix or a column."""

    rows: tuple[tuple[Node, ...], ...]
    latex: str


class Time(NamedTuple):
    """Of a day, in minutes from 0:00 or from noon; ``half``: am, pm or nothing said."""

    minutes: int
    half: str


class InBase(NamedTuple):
    digits: str
    base: str


class Ratio(NamedTuple):
    parts: tuple[Node, ...]


Node = Value | Words | Several | Bracketed | Union | Relation | Table | Time | InBase | Ratio
