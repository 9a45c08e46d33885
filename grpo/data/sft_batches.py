"""Which rows does a supervised update learn from, and how fast? A course is a sequence of lessons that follows from settings and seed alone.

Where a run stands in it is one whole number, the update. A resumed run needs no other state.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, Protocol

from grpo.config import SupervisedKeys, SupervisedPhase, Thirds
from grpo.data.difficulty import difficulty_of
from grpo.data.prompt_order import Mixture, Order, Shuffled, easiest_first, taken
from grpo.errors import DataError


@dataclass(frozen=True)
class Lesson:
    """What one update learns from.

    rows            row numbers
    num_before      rows that all earlier lessons had
    rate            of the stage's learning rate
    weight_decay    None: the stage's own
    place           where in the course it stands, as metrics
    """

    rows: list[int]
    num_before: int
    rate: float = 1.0
    weight_decay: float | None = None
    place: Mapping[str, float] = field(default_factory=dict)


class Course(Protocol):
    def __len__(self) -> int:
        """Updates of the stage."""
        ...

    def __getitem__(self, update: int) -> Lesson:
        """Of an update, counted from 0."""
        ...


def course_of(settings: SupervisedKeys, rows: Sequence[Mapping[str, Any]], seed: int) -> Course:
    """Epochs, or the phases of a curriculum. Raises DataError where a row cannot be ranked, or a phase has none to draw from."""
    if settings.curriculum is None:
        return Epochs(len(rows), settings.batch_size, settings.epochs, seed)
    by, sign = settings.curriculum.by, 1 if settings.curriculum.easy == "high" else -1
    phases = settings.curriculum.phases
    is_ranked = any(phase.mix is not None for phase in phases)
    easiness = [sign * difficulty_of(row, by, f"row {index}") if is_ranked else 0.0 for index, row in enumerate(rows)]
    return Phases(phases, easiness, settings.batch_size, seed)


class Epochs:
    """Every row once an epoch, each epoch in an order of its own; the last update of an epoch may be smaller."""

    def __init__(self, num_rows: int, per_update: int, epochs: int, seed: int):
        self.num_rows, self.per_update, self.epochs, self.seed = num_rows, per_update, epochs, seed
        self.updates_per_epoch = math.ceil(num_rows / per_update)

    def __len__(self) -> int:
        return self.updates_per_epoch * self.epochs

    def __getitem__(self, update: int) -> Lesson:
        epoch, place = divmod(update, self.updates_per_epoch)
        first = place * self.per_update
        rows = _epoch_order(self.num_rows, self.seed, epoch)[first : first + self.per_update]
        return Lesson(rows, epoch * self.num_rows + first, place={"data/epoch": epoch + 1})


class Phases:
    """A curriculum's phases, one after the other; within a phase, and each third of the rows it mixes, no row comes again before all have come.

    easiness    of each row, larger is easier
    """

    def __init__(self, phases: Sequence[SupervisedPhase], easiness: Sequence[float], per_update: int, seed: int):
        self.phases = phases
        self.ranked = easiest_first(easiness, seed)
        self.sizes = [phase.batch_size or per_update for phase in phases]
        self._begins = [0, *accumulate(phase.updates for phase in phases)]
        self._rows_before = [0, *accumulate(phase.updates * size for phase, size in zip(phases, self.sizes, strict=True))]
        self._orders = [_order_of(phase.mix, len(easiness), seed, number) for number, phase in enumerate(phases, start=1)]

    def __len__(self) -> int:
        return self._begins[-1]

    def __getitem__(self, update: int) -> Lesson:
        number = bisect_right(self._begins, update) - 1
        phase, size = self.phases[number], self.sizes[number]
        first = (update - self._begins[number]) * size
        rows = [self.ranked[rank] for rank in taken(self._orders[number], first, size)]
        place = {"data/phase": number + 1}
        return Lesson(rows, self._rows_before[number] + first, phase.learning_rate_frac, phase.weight_decay, place)


def _order_of(mix: Thirds | None, num_rows: int, seed: int, number: int) -> Order:
    """Of ranks, 0 being the easiest row's."""
    salt = f"sft-phase-{number}-"
    if mix is None:
        return Shuffled(num_rows, seed, salt)
    sizes = [end - begin for begin, end in pairwise(round(third * num_rows / 3) for third in range(4))]
    if any(weight and not size for weight, size in zip(mix.weights, sizes, strict=True)):
        raise DataError(f"phase {number} of the curriculum mixes thirds of {num_rows} rows, and one of them is empty; give it more rows")
    return Mixture(sizes, mix.weights, seed, salt)


@lru_cache(maxsize=2)
def _epoch_order(num_rows: int, seed: int, epoch: int) -> list[int]:
    order = list(range(num_rows))
    random.Random(f"sft-{seed}-{epoch}").shuffle(order)
    return order


class Replay:
    """So many rows of earlier stages beside each lesson that they are ``frac`` of both together, to within one row over the whole course."""

    def __init__(self, num_rows: int, frac: float, seed: int):
        self.per_row = frac / (1 - frac)
        self._order = Shuffled(num_rows, seed, "replay-")

    def beside(self, lesson: Lesson) -> list[int]:
        """Row numbers, each epoch of the earlier rows in an order of its own."""
        first, end = (math.floor(rows * self.per_row + 1e-9) for rows in (lesson.num_before, lesson.num_before + len(lesson.rows)))
        return taken(self._order, first, end - first)
