"""Dynamic sampling: zero-variance groups are replaced by groups of fresh prompts, a bounded number of times.

DAPO (arXiv:2503.14476, section 3.2) samples until the batch is full of groups with 0 < right < G, however long that takes; with prompts that
are too easy or too hard it never ends. Here a step samples at most ``max_rounds`` extra rounds and then continues with what it has: groups
that could not be replaced stay in the batch, where their advantage is 0.
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
    """A step's groups once zero-variance groups are replaced as far as possible.

    groups     [P] in the order in which they were sampled; as many as there were
    replaced   the groups that were sampled and are not among them
    position   of the first prompt that is not consumed yet
    rounds     the number of extra rounds
    unfilled   how many of ``groups``, the last ones, still have zero variance
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
        """A message if zero-variance groups are left."""
        if not self.unfilled:
            return None
        filled = len(self.groups) - self.unfilled
        alike = [reward for group in (*self.groups[filled:], *self.replaced) if (reward := mean_reward(group)) is not None]
        varied = [reward for group in self.groups[:filled] if (reward := mean_reward(group)) is not None]
        others = f", others {np.mean(varied):.2f}" if varied else ""
        scored = f"mean reward {np.mean(alike):.2f}{others}" if alike else "no reward could score them"
        return (
            f"{self.unfilled} of {len(self.groups)} groups have zero reward variance after {self.rounds} extra rounds ({scored}). "
            "If their prompts are too easy or too hard, leave them out with filters: {min_pass_rate, max_pass_rate}."
        )


def refill(
    groups: Sequence[Group],
    prompts_at: Callable[[int, int], Sequence[Prompt]],
    generate: Callable[[Sequence[Prompt]], Sequence[Group]],
    has_zero_variance: Callable[[Group], bool],
    position: int,
    max_rounds: int,
) -> Refilled:
    """Replace zero-variance groups, whose rewards give no sample an advantage.

    groups              [P] the step's first groups, whose prompts end before ``position``
    prompts_at          given a position and a count, returns the prompts from there on
    generate            samples and scores a group for each prompt
    has_zero_variance   called once for each group (the opposite of grpo.rl.advantages.has_signal)
    Sampling ends early if the next prompt already was in this step: the same prompt in the same step has the same samples.
    """
    wanted = len(groups)
    mixed: list[Group] = []
    zero_variance: list[Group] = []

    def sort(found: Iterable[Group]) -> None:
        for group in found:
            (zero_variance if has_zero_variance(group) else mixed).append(group)

    sort(groups)
    used = {group.prompt.id for group in groups}
    rounds = 0
    while len(mixed) < wanted and rounds < max_rounds:
        prompts = _until_seen(prompts_at(position, wanted - len(mixed)), used)
        if not prompts:
            break
        position += len(prompts)
        rounds += 1
        sort(generate(prompts))
    unfilled = wanted - len(mixed)
    return Refilled([*mixed, *zero_variance[:unfilled]], zero_variance[unfilled:], position, rounds, unfilled)


def _until_seen(prompts: Iterable[Prompt], used: set[str]) -> list[Prompt]:
    """The prompts before the first that is in ``used``; they are added to it."""
    unseen = []
    for prompt in prompts:
        if prompt.id in used:
            break
        used.add(prompt.id)
        unseen.append(prompt)
    return unseen


def mean_reward(group: Group) -> float | None:
    rewards: list[Any] = [sample.reward for sample in group.samples if sample.reward is not None]
    return float(np.mean(rewards)) if rewards else None
