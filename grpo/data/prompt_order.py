"""Which prompts does a step use? An order is an endless sequence of row numbers that follows from the seed alone.

Where a run stands in it is one whole number, its position: how many prompts it has consumed. A resumed run needs no other state.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from grpo.config import RlStage, source_weights
from grpo.data.difficulty import difficulty_of
from grpo.errors import DataError
from rollout.types import Prompt

KEPT_EPOCHS = 8


class Order(Protocol):
    def __getitem__(self, position: int) -> int:
        """The row at a position, counted from 0."""
        ...


def prompt_order(stage: RlStage, prompts: Sequence[Prompt], seed: int) -> Order:
    """The order in which an rl stage meets its prompts; those of one source stand together. Raises DataError where one cannot be ranked."""
    weights = source_weights(stage.prompts)
    if weights is not None:
        sizes = Counter(source_of(prompt) for prompt in prompts)
        missing = sorted(weights.keys() - sizes.keys())
        if missing:
            raise DataError(f"stage {stage.name!r}: no prompt of {missing[0]!r} is left to give it its weight; raise max_prompt_tokens")
        return Mixture(list(sizes.values()), [weights[name] for name in sizes], seed)
    if stage.curriculum is not None:
        sign = 1 if stage.curriculum.easy == "high" else -1
        easiness = [sign * difficulty_of(prompt.columns, stage.curriculum.by, prompt.id) for prompt in prompts]
        phases = [(phase.from_step * stage.prompts_per_step, phase.easiest_frac) for phase in stage.curriculum.phases]
        return EasyFirst(easiness, phases, seed)
    return Shuffled(len(prompts), seed)


def too_few(stage: RlStage, num_prompts: int) -> str | None:
    """What to say where a step is larger than what it draws from."""
    easiest_frac = min((phase.easiest_frac for phase in stage.curriculum.phases), default=1.0) if stage.curriculum else 1.0
    in_play = _share(easiest_frac, num_prompts)
    if in_play >= stage.prompts_per_step:
        return None
    return f"a step has {stage.prompts_per_step} prompts and draws from {in_play}, so some come twice in it; lower prompts_per_step"


def source_of(prompt: Prompt) -> str:
    """A prompt's id is "source/row"."""
    return prompt.id.rpartition("/")[0]


def taken(order: Order, position: int, count: int) -> list[int]:
    """The ``count`` rows from ``position`` on."""
    return [order[at] for at in range(position, position + count)]


@dataclass(frozen=True)
class Shuffled:
    """Each epoch is one permutation of all rows; an epoch follows the other, wherever a step ends."""

    num_rows: int
    seed: int
    salt: str = ""
    _epochs: dict[int, list[int]] = field(default_factory=dict, repr=False, compare=False)

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self.num_rows)
        if epoch not in self._epochs:
            if len(self._epochs) >= KEPT_EPOCHS:
                self._epochs.clear()
            rows = list(range(self.num_rows))
            random.Random(f"order-{self.salt}{self.seed}-{epoch}").shuffle(rows)
            self._epochs[epoch] = rows
        return self._epochs[epoch][place]


class Mixture:
    """Sources in proportion to their weights, each with epochs of its own.

    Every position goes to the source that is furthest behind its share, so after any number of prompts each has its share to within one
    prompt for two sources, and within a few for many. Within a source each of its epochs has every row once. Rows are numbered through:
    those of the first source first.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int, salt: str = ""):
        self.weights = [weight / sum(weights) for weight in weights]
        self._starts = [sum(sizes[:index]) for index in range(len(sizes))]
        self._orders = [Shuffled(size, seed, f"{salt}source-{index}-") for index, size in enumerate(sizes)]
        self._turns: list[tuple[int, int]] = []  # of each position: its source, and how many positions that source had before
        self._given = [0] * len(sizes)

    def __getitem__(self, position: int) -> int:
        while len(self._turns) <= position:
            behind = [weight * (len(self._turns) + 1) - given for weight, given in zip(self.weights, self._given, strict=True)]
            source = behind.index(max(behind))
            self._turns.append((source, self._given[source]))
            self._given[source] += 1
        source, place = self._turns[position]
        return self._starts[source] + self._orders[source][place]


class EasyFirst:
    """Phases, each drawing from the easiest rows only: within a phase, each of them once before any comes again.

    easiness    of each row, larger is easier; equally easy rows are ranked by chance
    phases      (position at which it begins, fraction of the rows in play), the first at 0
    """

    def __init__(self, easiness: Sequence[float], phases: Sequence[tuple[int, float]], seed: int):
        self.ranked = easiest_first(easiness, seed)
        self._begins = [position for position, _ in phases]
        self._orders = [Shuffled(_share(frac, len(easiness)), seed, f"phase-{number}-") for number, (_, frac) in enumerate(phases)]

    def __getitem__(self, position: int) -> int:
        phase = bisect_right(self._begins, position) - 1
        return self.ranked[self._orders[phase][position - self._begins[phase]]]


def easiest_first(easiness: Sequence[float], seed: int) -> list[int]:
    """Row numbers, those of the largest easiness first; equally easy rows stand by chance."""
    ranked = list(range(len(easiness)))
    random.Random(f"ranks-{seed}").shuffle(ranked)
    return sorted(ranked, key=lambda row: -easiness[row])


def _share(frac: float, count: int) -> int:
    """So much of ``count``, rounded up but for what a float adds to a whole number, and at least one."""
    return max(1, math.ceil(frac * count - 1e-9))


def cut_to_weights(sizes: Sequence[int], weights: Sequence[float], seed: int) -> list[list[int]]:
    """For a pass in which no row comes twice: of each source, which rows, so that the shares are as the weights say.

    The scarcest source for its weight gives all its rows, the others so many that the proportions hold, chosen by chance and in their order.
    """
    passes = min(size / weight for size, weight in zip(sizes, weights, strict=True))
    counts = [min(size, round(weight * passes)) for size, weight in zip(sizes, weights, strict=True)]
    chosen = []
    for index, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        order = Shuffled(size, seed, f"cut-{index}-")
        chosen.append(sorted(taken(order, 0, count)))
    return chosen
