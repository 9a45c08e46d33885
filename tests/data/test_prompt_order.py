"""Each epoch is every row once, whatever a step's size; mixtures keep their shares; easy comes first; nothing but the arguments decides."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.config import RlStage
from grpo.data.prompt_order import EasyFirst, Mixture, Order, Shuffled, cut_to_weights, prompt_order, taken, too_few
from grpo.errors import DataError
from rollout.types import Prompt

# ---------------------------------------------------------------------------------------------------------------------------- one epoch


@given(num_rows=st.integers(1, 40), seed=st.integers(0, 5))
def test_each_epoch_has_every_row_once(num_rows: int, seed: int) -> None:
    rows = taken(Shuffled(num_rows, seed), 0, 3 * num_rows)
    for epoch in range(3):
        assert sorted(rows[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    epochs = taken(Shuffled(50, 0), 0, 100)
    assert epochs[:50] != epochs[50:] and epochs[:50] != taken(Shuffled(50, 1), 0, 50) and epochs[:50] != list(range(50))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Shuffled(7, 0),
        lambda: Mixture([7, 3, 11], [3, 1, 2], 0),
        lambda: EasyFirst([float(i % 5) for i in range(12)], [(0, 0.3), (20, 1.0)], 0),
    ],
)
def test_a_position_does_not_depend_on_those_asked_for_before(make: Any) -> None:
    """What makes an integer enough of a state for a resumed run."""
    whole, resumed = make(), make()
    assert taken(resumed, 117, 40) == taken(whole, 0, 157)[117:]
    assert taken(resumed, 3, 9) == taken(whole, 0, 12)[3:]


# ----------------------------------------------------------------------------------------------------------------------------- mixtures


def test_a_mixture_keeps_its_shares_at_every_length() -> None:
    order = Mixture([100, 10], [3, 1], seed=0)
    for count in range(1, 200):
        second = sum(row >= 100 for row in taken(order, 0, count))
        assert abs(second - count / 4) <= 1


@given(weights=st.lists(st.floats(0.05, 10), min_size=2, max_size=5), seed=st.integers(0, 3))
def test_no_source_of_a_mixture_falls_behind(weights: list[float], seed: int) -> None:
    order = Mixture([5] * len(weights), weights, seed)
    counts = Counter(row // 5 for row in taken(order, 0, 400))
    for source, weight in enumerate(weights):
        assert abs(counts[source] - 400 * weight / sum(weights)) <= len(weights)


def test_within_a_mixture_each_source_has_epochs_of_its_own() -> None:
    rows = taken(Mixture([6, 4], [1, 1], seed=0), 0, 48)
    first, second = ([row for row in rows if row < 6], [row for row in rows if row >= 6])
    assert [sorted(first[start : start + 6]) for start in range(0, 24, 6)] == [[0, 1, 2, 3, 4, 5]] * 4
    assert [sorted(second[start : start + 4]) for start in range(0, 24, 4)] == [[6, 7, 8, 9]] * 6


def test_a_pass_without_repetition_is_cut_to_the_weights() -> None:
    # b is the scarcest for its weight: 20 rows for a quarter, so 60 rows of a
    first, second = cut_to_weights([100, 20], [3, 1], seed=0)
    assert (len(first), second) == (60, list(range(20)))
    assert len(set(first)) == 60 and first == sorted(first) != list(range(60))
    assert cut_to_weights([100, 20], [3, 1], seed=0)[0] == first != cut_to_weights([100, 20], [3, 1], seed=1)[0]


# ------------------------------------------------------------------------------------------------------------------------------ easy first


def test_a_phase_draws_from_its_easiest_rows_each_once_before_any_again() -> None:
    easiness = [row / 10 for row in range(10)]  # row 9 is the easiest
    order = EasyFirst(easiness, [(0, 0.3), (12, 1.0)], seed=0)
    easy = taken(order, 0, 12)
    assert [sorted(easy[start : start + 3]) for start in range(0, 12, 3)] == [[7, 8, 9]] * 4
    assert sorted(taken(order, 12, 10)) == list(range(10))


def test_a_fraction_rounds_up_and_is_never_of_nothing() -> None:
    # 0.3 x 10 is 3, though 0.1 + 0.2 is a little more than 0.3; 0.01 x 10 is still one row
    assert len(set(taken(EasyFirst([0.0] * 10, [(0, 0.1 + 0.2)], 0), 0, 50))) == 3
    assert len(set(taken(EasyFirst([0.0] * 10, [(0, 0.01)], 0), 0, 50))) == 1


def test_equally_easy_rows_are_ranked_by_chance() -> None:
    first = [frozenset(taken(EasyFirst([0.5] * 10, [(0, 0.3)], seed), 0, 3)) for seed in range(5)]
    assert len(set(first)) > 1


# ---------------------------------------------------------------------------------------------------------------------- from a stage's keys


def stage(**keys: Any) -> RlStage:
    return RlStage.model_validate({"name": "s", "kind": "rl", "prompts": "a", "rewards": [{"use": "math"}], "steps": 9, **keys})


def prompts(*rates: Any, source: str = "a") -> list[Prompt]:
    return [Prompt(f"{source}/{number}", (1,), {"prompt": "p", "pass_rate": rate}) for number, rate in enumerate(rates)]


def test_phases_begin_with_their_steps() -> None:
    keys = {"phases": [{"from_step": 0, "easiest_frac": 0.25}, {"from_step": 2, "easiest_frac": 1.0}]}
    given_prompts = prompts(0.1, 0.9, 0.5, 0.3)
    order: Order = prompt_order(stage(prompts_per_step=3, curriculum=keys), given_prompts, seed=0)
    assert taken(order, 0, 6) == [1] * 6  # two steps of three prompts, all the easiest
    assert sorted(taken(order, 6, 4)) == [0, 1, 2, 3]
    order = prompt_order(stage(prompts_per_step=3, curriculum={**keys, "easy": "low"}), given_prompts, seed=0)
    assert taken(order, 0, 6) == [0] * 6


@pytest.mark.parametrize(
    ("rate", "said"), [(None, "a/1: no pass_rate is known for this prompt"), ("often", "is 'often', which is no number")]
)
def test_a_prompt_that_cannot_be_ranked_is_named(rate: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        prompt_order(stage(curriculum={"phases": [{"from_step": 0, "easiest_frac": 1.0}]}), prompts(0.5, rate), seed=0)


def test_weights_go_by_name_whatever_fits_of_each_source() -> None:
    keys = {"prompts": [{"use": "a", "weight": 1}, {"use": "b", "weight": 3}]}
    both = [*prompts(1, 1, 1), *prompts(1, 1, source="b")]
    drawn = taken(prompt_order(stage(**keys), both, seed=0), 0, 40)
    assert sum(row >= 3 for row in drawn) == 30
    with pytest.raises(DataError, match="no prompt of 'b' is left"):
        prompt_order(stage(**keys), both[:3], seed=0)


def test_a_step_that_is_larger_than_what_it_draws_from_is_said() -> None:
    assert too_few(stage(prompts_per_step=8), 8) is None
    assert str(too_few(stage(prompts_per_step=8), 7)).startswith("a step has 8 prompts and draws from 7, so some come twice in it")
    keys = {"phases": [{"from_step": 0, "easiest_frac": 0.25}, {"from_step": 2, "easiest_frac": 1.0}]}
    assert str(too_few(stage(prompts_per_step=8, curriculum=keys), 28)).startswith("a step has 8 prompts and draws from 7")
    assert too_few(stage(prompts_per_step=8, curriculum=keys), 29) is None
