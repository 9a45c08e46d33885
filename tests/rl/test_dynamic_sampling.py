"""Zero-variance groups are replaced, a bounded number of times, and every prompt is counted once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.algorithm import GRPO
from grpo.data.prompt_order import Shuffled, taken
from grpo.rl.advantages import has_signal
from grpo.rl.dynamic_sampling import Refilled, refill
from grpo.types import Group, Sample
from rollout.types import Completion, Prompt

MIXED, EASY, HARD, UNJUDGED = (1.0, 0.0), (1.0, 1.0), (0.0, 0.0), (None, None)
Rewards = tuple[float | None, ...]


def group(prompt: Prompt, rewards: Rewards) -> Group:
    completion = Completion.of((1,), (-1.0,), (True,), "x", "stop", ((0, 0),))
    return Group(prompt, tuple(Sample(prompt.id, completion, reward, {}) for reward in rewards))


class Run:
    """Steps over prompts whose rewards are known beforehand, without a model: what rl.py does between drawing and updating."""

    def __init__(self, rewards: Sequence[Rewards], per_step: int, max_rounds: int, position: int = 0):
        self.prompts = [Prompt(f"p/{index}", (1,)) for index in range(len(rewards))]
        self.rewards = {prompt.id: reward for prompt, reward in zip(self.prompts, rewards, strict=True)}
        self.order, self.per_step, self.max_rounds, self.position = Shuffled(len(rewards), seed=0), per_step, max_rounds, position
        self.drawn: list[str] = []

    def prompts_at(self, position: int, count: int) -> list[Prompt]:
        return [self.prompts[i] for i in taken(self.order, position, count)]

    def draw(self, prompts: Sequence[Prompt]) -> list[Group]:
        self.drawn += [prompt.id for prompt in prompts]
        return [group(prompt, self.rewards[prompt.id]) for prompt in prompts]

    def step(self) -> Refilled:
        groups = self.draw(self.prompts_at(self.position, self.per_step))
        has_zero_variance = lambda group: not has_signal(GRPO, group, {})  # noqa: E731
        refilled = refill(groups, self.prompts_at, self.draw, has_zero_variance, self.position + self.per_step, self.max_rounds)
        self.position = refilled.position
        return refilled


def rewards_in_order(make: Callable[[int], Rewards], num_prompts: int) -> list[Rewards]:
    """The n-th prompt of the order gets make(n)."""
    rewards: list[Rewards] = [MIXED] * num_prompts
    for number, row in enumerate(taken(Shuffled(num_prompts, seed=0), 0, num_prompts)):
        rewards[row] = make(number)
    return rewards


def test_groups_of_equal_rewards_are_replaced_by_the_next_prompts() -> None:
    # drawn: E M H M, then two more: M U, then one more: M
    pattern = [EASY, MIXED, HARD, MIXED, MIXED, UNJUDGED, MIXED, MIXED]
    run = Run(rewards_in_order(lambda n: pattern[n], 8), per_step=4, max_rounds=3)
    refilled = run.step()
    ids = [prompt.id for prompt in run.prompts_at(0, 8)]
    assert [g.prompt.id for g in refilled.groups] == [ids[1], ids[3], ids[4], ids[6]]
    assert [g.prompt.id for g in refilled.replaced] == [ids[0], ids[2], ids[5]]
    assert (refilled.rounds, refilled.position, refilled.unfilled, refilled.warning()) == (2, 7, 0, None)


def test_a_full_step_draws_nothing_more() -> None:
    refilled = Run([MIXED] * 8, per_step=4, max_rounds=3).step()
    assert (refilled.rounds, refilled.position, refilled.replaced) == (0, 4, [])


@pytest.mark.parametrize(("rewards", "mean"), [(EASY, "1.00"), (HARD, "0.00")])
def test_data_too_easy_or_too_hard_end_after_the_last_round_with_a_full_step_and_a_warning(rewards: Rewards, mean: str) -> None:
    run = Run([rewards] * 100, per_step=4, max_rounds=3)
    refilled = run.step()
    assert (len(refilled.groups), refilled.rounds, refilled.position, refilled.unfilled) == (4, 3, 16, 4)
    assert f"4 of 4 groups have zero reward variance after 3 extra rounds (mean reward {mean})" in str(refilled.warning())
    assert run.step().position == 32


def test_groups_that_nobody_could_judge_are_replaced_and_called_so() -> None:
    assert "(no reward could score them)" in str(Run([UNJUDGED] * 9, per_step=2, max_rounds=1).step().warning())


def test_no_prompt_is_drawn_twice_in_a_step_even_where_there_are_few() -> None:
    """The same prompt in the same step would have the very same samples."""
    run = Run([HARD] * 5, per_step=2, max_rounds=9)
    refilled = run.step()
    assert sorted(run.drawn) == [f"p/{index}" for index in range(5)]
    assert (refilled.position, refilled.unfilled) == (5, 2)


@given(
    rewards=st.lists(st.sampled_from([MIXED, EASY, HARD, UNJUDGED]), min_size=6, max_size=40),
    max_rounds=st.integers(1, 4),
    stop_after=st.integers(0, 5),
)
def test_every_prompt_of_an_epoch_is_drawn_once_and_a_resumed_run_draws_the_same(
    rewards: list[Rewards], max_rounds: int, stop_after: int
) -> None:
    whole = Run(rewards, per_step=3, max_rounds=max_rounds)
    groups = []
    for step in range(6):
        if step == stop_after:
            resumed = Run(rewards, per_step=3, max_rounds=max_rounds, position=whole.position)
        groups.append(whole.step())
    assert [resumed.step() for _ in range(6 - stop_after)] == groups[stop_after:]
    assert whole.drawn[-len(resumed.drawn) :] == resumed.drawn
    assert len(whole.drawn) == whole.position
    counted = [g.prompt.id for refilled in groups for g in (*refilled.groups, *refilled.replaced)]
    assert Counter(counted) == Counter(whole.drawn)  # none is lost, whether it was used or replaced
    for epoch in range(whole.position // len(rewards)):
        assert len(set(whole.drawn[epoch * len(rewards) : (epoch + 1) * len(rewards)])) == len(rewards)
