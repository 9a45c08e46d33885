"""Each epoch is every row once, whatever a step's size, and nothing but the arguments decides."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.data import order
from grpo.data.order import indices_of_step


def drawn(num_prompts: int, per_step: int, steps: int, seed: int = 0) -> list[int]:
    return [index for step in range(steps) for index in indices_of_step(num_prompts, per_step, step, seed)]


@given(num_prompts=st.integers(1, 40), per_step=st.integers(1, 50), seed=st.integers(0, 5))
def test_each_epoch_has_every_row_once_even_where_steps_cross_it(num_prompts: int, per_step: int, seed: int) -> None:
    indices = drawn(num_prompts, per_step, steps=-(-3 * num_prompts // per_step), seed=seed)
    for epoch in range(3):
        assert sorted(indices[epoch * num_prompts : (epoch + 1) * num_prompts]) == list(range(num_prompts))


def test_a_step_over_the_end_of_an_epoch_goes_on_in_the_next() -> None:
    # 5 rows by threes: step 1 holds the last two of the first epoch and the first of the second
    first, second = drawn(5, 5, steps=1), drawn(5, 5, steps=2)[5:]
    assert indices_of_step(5, 3, 1, seed=0) == [*first[3:], second[0]]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    epochs = drawn(50, 50, steps=2)
    assert epochs[:50] != epochs[50:] and epochs[:50] != drawn(50, 50, steps=1, seed=1) and epochs[:50] != list(range(50))


def test_a_step_does_not_depend_on_the_steps_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    later = drawn(7, 3, steps=40)[-3:]
    monkeypatch.setattr(order, "_cache", {})
    assert indices_of_step(7, 3, 39, seed=0) == later
