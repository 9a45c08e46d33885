"""Which of a stage's samples does a person see? Some of each of several steps, and the same prompts again; read in one pass, few kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from grpo.report.jsonl_index import Lines, Row

NUM_MOMENTS, NUM_PROMPTS, NUM_REPEATED, NUM_VISITS = 8, 4, 4, 6
NUM_CANDIDATES = 64
NUM_OF_FATE, MAX_FATES = 4, 12
MAX_CHARS = 4000
LARGEST = 1e100  # NaN and infinity are not below it either
LOW, HIGH = 10, 90  # per cent

Numbers = Mapping[str, float]
T = TypeVar("T")


@dataclass(frozen=True)
class Shown:
    """A row and why it was chosen: best, median, worst, ..."""

    why: str
    row: Row = field(repr=False)


@dataclass(frozen=True)
class Asked:
    """A prompt at one step: how its samples did, and those that stand for them."""

    step: float
    prompt_id: str
    num_samples: int
    mean_reward: float | None
    shown: Sequence[Shown]


@dataclass(frozen=True)
class SamplesShown:
    """``moments``: the first prompts of some steps, from the first step to the last. ``repeated``: prompts that came more than once, by step.
    ``fates``: of a stage that filters, some of what it kept and of what it dropped for each reason. ``token_spread``: the LOW and HIGH
    percentile of completion lengths by step. ``highest``: each reward part's largest value.
    """

    moments: Sequence[Sequence[Asked]] = ()
    repeated: Sequence[Sequence[Asked]] = ()
    fates: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    token_spread: Mapping[float, tuple[float, float]] = field(default_factory=dict)
    highest: Numbers = field(default_factory=dict)
    num_unread: int = 0
    is_sampled: bool = False


class Spaced(Generic[T]):
    """At most ``2 * limit`` of the items put in, at equal distances, and always the first and the last."""

    def __init__(self, limit: int):
        self.limit = limit
        self._kept: list[T] = []
        self._last: T | None = None
        self._distance, self._seen = 1, 0

    def put(self, item: T) -> None:
        if self._seen % self._distance == 0:
            self._kept.append(item)
            self._last = None
        else:
            self._last = item
        self._seen += 1
        if len(self._kept) > 2 * self.limit:
            self._kept = self._kept[::2]
            self._distance *= 2

    def chosen(self) -> list[T]:
        """At most ``limit`` of them, in order."""
        items = [*self._kept, *([self._last] if self._last is not None else [])]
        if len(items) <= self.limit:
            return items
        return [items[round(i * (len(items) - 1) / (self.limit - 1))] for i in range(self.limit)]


def read_samples(path: Path) -> SamplesShown:
    """What to show of a samples.jsonl, in one pass and with few rows in memory, however long it is."""
    lines = Lines(path)
    moments: Spaced[list[Asked]] = Spaced(NUM_MOMENTS)
    visits: dict[str, Spaced[Asked]] = {}
    token_spread: dict[float, tuple[float, float]] = {}
    highest: dict[str, float] = {}
    fates: dict[str, list[Row]] = {}
    for step, groups in groupby(_groups(_noted(lines, highest, fates)), key=lambda group: group[0]):
        prompts: list[Asked] = []
        tokens: list[float] = []
        for _, prompt_id, rows in groups:
            tokens += [numbers_of(row)["completion_tokens"] for row in rows if "completion_tokens" in numbers_of(row)]
            is_candidate = prompt_id in visits or (len(token_spread) == 0 and len(visits) < NUM_CANDIDATES)
            if len(prompts) < NUM_PROMPTS or is_candidate:
                asked = _asked(step, prompt_id, rows)
                if len(prompts) < NUM_PROMPTS:
                    prompts.append(asked)
                if is_candidate:
                    visits.setdefault(prompt_id, Spaced(NUM_VISITS)).put(asked)
        moments.put(prompts)
        token_spread[step] = (float(np.percentile(tokens, LOW)), float(np.percentile(tokens, HIGH))) if tokens else (0.0, 0.0)
    repeated = sorted((one.chosen() for one in visits.values()), key=lambda asked: -len(asked))
    return SamplesShown(
        moments=moments.chosen(),
        repeated=[asked for asked in repeated if len(asked) > 1][:NUM_REPEATED],
        fates=fates,
        token_spread={step: spread for step, spread in token_spread.items() if spread != (0.0, 0.0)},
        highest=highest,
        num_unread=lines.num_unread,
        is_sampled=lines.is_sampled,
    )


def numbers_of(value: Any) -> dict[str, float]:
    """The numbers of a mapping that an axis can hold."""
    known = value.items() if isinstance(value, dict) else ()
    return {str(k): float(v) for k, v in known if isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < LARGEST}


def _noted(rows: Iterable[Row], highest: dict[str, float], fates: dict[str, list[Row]]) -> Iterator[Row]:
    """The rows as they come; on the way the largest reward parts and some rows of each fate are noted."""
    for row in rows:
        for name, value in numbers_of(row.get("parts")).items():
            highest[name] = max(value, highest.get(name, value))
        if "dropped" in row:
            name = "kept" if row["dropped"] is None else str(row["dropped"])
            fate = fates.setdefault(name, []) if len(fates) < MAX_FATES else fates.get(name, [])
            if len(fate) < NUM_OF_FATE and all(row.get("prompt_id") != other.get("prompt_id") for other in fate):
                fate.append(_short(row))
        yield row


def _groups(rows: Iterable[Row]) -> Iterator[tuple[float, str, list[Row]]]:
    """(step, prompt, its rows); rows without a step have no place."""
    placed = (row for row in rows if "step" in numbers_of(row))
    for (step, prompt_id), group in groupby(placed, key=lambda row: (row["step"], str(row.get("prompt_id")))):
        yield float(step), prompt_id, list(group)


def _asked(step: float, prompt_id: str, rows: Sequence[Row]) -> Asked:
    """The best, the middle and the worst by reward, so that neither end is hidden, and one that nobody could judge."""
    judged = sorted((row for row in rows if "reward" in numbers_of(row)), key=lambda row: -row["reward"])
    unjudged = [row for row in rows if "reward" not in numbers_of(row)]
    places = {0: "best", len(judged) // 2: "median", len(judged) - 1: "worst"} if len(judged) > 2 else {0: "best", 1: "worst"}
    shown = [Shown(why, _short(judged[place])) for place, why in places.items() if place < len(judged)]
    shown += [Shown("one of those that nobody could judge", _short(row)) for row in unjudged[:1]]
    mean = sum(row["reward"] for row in judged) / len(judged) if judged else None
    return Asked(step, prompt_id, len(rows), mean, shown)


def shortened(text: str, limit: int = MAX_CHARS) -> str:
    """Its beginning and its end, where the answer stands."""
    if len(text) <= limit:
        return text
    return f"{text[: limit * 3 // 5]}\n[... {len(text) - limit:,} characters left out ...]\n{text[-(limit * 2 // 5) :]}"


def _short(row: Row) -> Row:
    return {key: shortened(value) if isinstance(value, str) else value for key, value in row.items()}
