"""What if all samples of a group are worth the same? Dynamic sampling replaces it by a group of a fresh prompt, a bounded number of times.

DAPO (arXiv:2503.14476, section 3.2) draws until the batch is full of groups with 0 < right < G, for as long as it takes; with prompts that are
too easy or too hard that is for ever. Here a step draws at most ``max_rounds`` more times and then goes on with what it has: the groups that
could not be replaced stay in the batch, where their advantage is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grpo.types import Group
from rollout.types import Prompt


@dataclass(frozen=True)
class Refilled:
    """A step's groups once those that teach nothing are replaced as far as possible.

    groups     [P] in the order their prompts were drawn; as many as there were
    replaced   the groups that were drawn and are not among them
    position   of the first prompt that is not consumed yet
    rounds     how many more times was drawn
    unfilled   how many of ``groups`` still have equal rewards, the last ones
    """

    groups: list[Group]
    replaced: list[Group]
    position: int
    rounds: int
    unfilled: int

    def metrics(self) -> dict[str, float]:
        return {
            "rollout/rounds": float(1 + self.rounds),
            "rollout/groups_replaced": float(len(self.replaced)),
            "rollout/groups_unfilled": float(self.unfilled),
            "data/prompts_consumed": float(self.position),
        }

    def warning(self) -> str | None:
        """What to say where groups with equal rewards are left."""
        if not self.unfilled:
            return None
        filled = len(self.groups) - self.unfilled
        stuck = [reward for group in (*self.groups[filled:], *self.replaced) if (reward := mean_reward(group)) is not None]
        told = [reward for group in self.groups[:filled] if (reward := mean_reward(group)) is not None]
        at = f"; groups of equal rewards are at {np.mean(stuck):.2f} on average" if stuck else "; nobody could judge them"
        others = f", the others at {np.mean(told):.2f}" if told and stuck else ""
        return (
            f"{self.unfilled} of {len(self.groups)} groups teach nothing after {self.rounds} extra rounds, because their rewards are equal{at}"
            f"{others}: prompts are too easy where that is the best reward there is, too hard where it is the worst; "
            "filters: {min_pass_rate, max_pass_rate} leaves such prompts out"
        )


def refill(
    groups: Sequence[Group],
    prompts_at: Callable[[int, int], Sequence[Prompt]],
    draw: Callable[[Sequence[Prompt]], Sequence[Group]],
    is_equal: Callable[[Group], bool],
    position: int,
    max_rounds: int,
) -> Refilled:
    """Replace zero-variance groups, whose rewards give no sample an advantage.

    groups       [P] those first drawn, whose prompts end before ``position``
    prompts_at   of a position and a count: the prompts from there on
    draw         samples and scores a group of each prompt
    is_equal     is a group one of those? Asked once of each (grpo.resources.scoring.has_signal says no)
    Drawing ends early where the next prompt was drawn in this step already: the same prompt in the same step has the same samples.
    """
    wanted = len(groups)
    mixed: list[Group] = []
    equal: list[Group] = []

    def sort(found: Iterable[Group]) -> None:
        for group in found:
            (equal if is_equal(group) else mixed).append(group)

    sort(groups)
    drawn = {group.prompt.id for group in groups}
    rounds = 0
    while len(mixed) < wanted and rounds < max_rounds:
        prompts = _until_seen(prompts_at(position, wanted - len(mixed)), drawn)
        if not prompts:
            break
        position += len(prompts)
        rounds += 1
        sort(draw(prompts))
    unfilled = wanted - len(mixed)
    return Refilled([*mixed, *equal[:unfilled]], equal[unfilled:], position, rounds, unfilled)


def _until_seen(prompts: Iterable[Prompt], drawn: set[str]) -> list[Prompt]:
    """The prompts before the first that was drawn already; they are added to ``drawn``."""
    unseen = []
    for prompt in prompts:
        if prompt.id in drawn:
            break
        drawn.add(prompt.id)
        unseen.append(prompt)
    return unseen


def mean_reward(group: Group) -> float | None:
    rewards: list[Any] = [sample.reward for sample in group.samples if sample.reward is not None]
    return float(np.mean(rewards)) if rewards else None
