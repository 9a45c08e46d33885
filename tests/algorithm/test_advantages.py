"""How much better than its siblings: by hand, for equal groups, and with rewards that are missing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from grpo.algorithm.advantages import batch_normalised, group_centre, group_zscore, leave_one_out

ADVANTAGES = [group_centre, group_zscore, leave_one_out]


def counted(rewards_PG: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(rewards_PG, dtype=torch.bool)


def test_centred_reward_is_reward_minus_the_mean_of_its_group() -> None:
    # means 0.5 and 2; the second group does not see the first
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 2.0, 5.0]])
    assert group_centre(rewards, counted(rewards)).tolist() == [[0.5, -0.5, -0.5, 0.5], [-2.0, -1.0, 0.0, 3.0]]


def test_zscore_divides_by_the_deviation_of_n_minus_one() -> None:
    # mean 1/2, squares 4 * 1/4 = 1, variance 1 / (4 - 1), so A = (1/2) / sqrt(1/3) = sqrt(3) / 2. With n it would be 1.
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    high = math.sqrt(3) / 2
    assert group_zscore(rewards, counted(rewards))[0].tolist() == pytest.approx([high, -high, -high, high], rel=1e-15)


def test_zscore_of_an_uneven_group() -> None:
    # mean 2, centred -2 -1 0 3, squares 4 + 1 + 0 + 9 = 14, variance 14/3
    rewards = torch.tensor([[0.0, 1.0, 2.0, 5.0]])
    deviation = math.sqrt(14 / 3)
    expected = [-2 / deviation, -1 / deviation, 0.0, 3 / deviation]
    assert group_zscore(rewards, counted(rewards))[0].tolist() == pytest.approx(expected, rel=1e-15)


def test_a_rare_success_counts_more_under_the_zscore_than_under_the_centre() -> None:
    # One right of 4: centred 3/4; variance (9/16 + 3/16) / 3 = 1/4, so z = (3/4) / (1/2) = 3/2. Half right: centred 1/2, z = 0.87.
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert group_centre(rewards, counted(rewards))[0].tolist() == [0.75, -0.25, -0.25, -0.25]
    assert group_zscore(rewards, counted(rewards))[0].tolist() == [1.5, -0.5, -0.5, -0.5]


@pytest.mark.parametrize("advantage", ADVANTAGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_six_equal_rewards_of_1_7_have_exactly_zero_advantage(advantage, dtype: torch.dtype) -> None:
    # In float32 their mean is 1.7000002, and the residue, divided by a deviation as small, would be an advantage of 0.9.
    rewards = torch.full((1, 6), 1.7, dtype=dtype)
    assert advantage(rewards, counted(rewards)).tolist() == [[0.0] * 6]


@pytest.mark.parametrize("advantage", ADVANTAGES)
@given(value=st.floats(-1e6, 1e6), size=st.integers(1, 17), dtype=st.sampled_from([torch.float32, torch.float64]))
@example(value=0.1, size=3, dtype=torch.float64)  # 0.1 + 0.1 + 0.1 is 0.30000000000000004
@example(value=1.7, size=7, dtype=torch.float64)
def test_a_group_of_equal_rewards_has_exactly_zero_advantage(advantage, value: float, size: int, dtype: torch.dtype) -> None:
    rewards = torch.full((1, size), value, dtype=dtype)
    assert advantage(rewards, counted(rewards)).tolist() == [[0.0] * size]


@pytest.mark.parametrize("advantage", ADVANTAGES)
@pytest.mark.parametrize(
    "rewards",
    [
        [0.2 + 0.1 - 0.3, 0.0, 0.0, 0.0],  # 5.6e-17: format and language against the length penalty
        [0.1 + 0.2, 0.3, 0.3, 0.3],
        [1.0 + 0.1 + 0.2, 1.3, 1.0 + (0.1 + 0.2), 1.3],
        [math.exp(-410), math.exp(-500), 0.0, 0.0],  # a smooth reward, far from its mark
        [1e-160, 0.0, 0.0, 0.0],
        [1e200, 1e200 * (1 + 1e-15), 1e200, 1e200],
    ],
)
def test_rewards_that_differ_by_rounding_are_equal(advantage, rewards: list[float]) -> None:
    rewards_1G = torch.tensor([rewards], dtype=torch.float64)
    assert advantage(rewards_1G, counted(rewards_1G)).tolist() == [[0.0] * 4]


@pytest.mark.parametrize("one", [1e-8, 1e-3, 1.0, 1e160, 1e200, 1e308])
def test_one_right_of_four_has_the_same_zscores_at_any_scale(one: float) -> None:
    # mean one/4, centred 3/4 and -1/4, deviation 1/2 of it. 1e200 squared is infinite, and 1e-8 is still a signal.
    rewards = torch.tensor([[one, 0.0, 0.0, 0.0]], dtype=torch.float64)
    assert group_zscore(rewards, counted(rewards))[0].tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-12)


@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_a_mean_of_huge_rewards_does_not_overflow(advantage) -> None:
    rewards = torch.tensor([[1e308, 1e308, 1e308, 0.5e308]], dtype=torch.float64)
    expected = advantage(rewards / 1e308, counted(rewards)) * (1.0 if advantage is group_zscore else 1e308)
    assert advantage(rewards, counted(rewards))[0].tolist() == pytest.approx(expected[0].tolist(), rel=1e-12)


@given(rewards=st.lists(st.floats(-5, 5), min_size=2, max_size=16), missing=st.integers(0, 15))
def test_scaling_before_squaring_changes_no_bit_of_a_zscore(rewards: list[float], missing: int) -> None:
    rewards_1G = torch.tensor([rewards], dtype=torch.float64)
    counts = torch.arange(len(rewards))[None, :] != missing
    centred = group_centre(rewards_1G, counts)
    mean = rewards_1G.where(counts, 0.0).sum(dim=1, keepdim=True) / counts.sum().clamp(min=1)
    assert centred.tolist() == (rewards_1G - mean).where(centred != 0, 0.0).tolist()
    deviation = (centred.square().sum(dim=1, keepdim=True) / (counts.sum() - 1).clamp(min=1)).sqrt()
    assert group_zscore(rewards_1G, counts).tolist() == (centred / deviation).where(centred != 0, 0.0).tolist()


@pytest.mark.parametrize("advantage", ADVANTAGES)
@given(rewards=st.lists(st.integers(-20, 20).map(lambda tenths: tenths / 10), min_size=1, max_size=16))
def test_advantages_of_a_group_sum_to_zero(advantage, rewards: list[float]) -> None:
    rewards_1G = torch.tensor([rewards], dtype=torch.float64)
    assert advantage(rewards_1G, counted(rewards_1G)).sum().item() == pytest.approx(0.0, abs=1e-12)


@given(
    rewards=st.lists(st.integers(-20, 20), min_size=2, max_size=8).filter(lambda values: len(set(values)) > 1),
    scale=st.sampled_from([0.25, 0.5, 2.0, 8.0]),
    shift=st.integers(-8, 8),
)
def test_zscore_does_not_depend_on_the_scale_or_the_zero_of_rewards(rewards: list[int], scale: float, shift: int) -> None:
    plain = torch.tensor([rewards], dtype=torch.float64)
    moved = plain * scale + shift
    torch.testing.assert_close(group_zscore(moved, counted(moved)), group_zscore(plain, counted(plain)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("advantage", ADVANTAGES)
@pytest.mark.parametrize("stand_in", [0.0, 100.0, math.nan])
def test_a_missing_reward_counts_for_nothing(advantage, stand_in: float) -> None:
    # Whatever stands in its place, the others have the advantages of a group of three: 1, 0, 2 -> 0, -1, 1 (deviation 1).
    rewards = torch.tensor([[1.0, stand_in, 0.0, 2.0]])
    counts = torch.tensor([[True, False, True, True]])
    most = 1.5 if advantage is leave_one_out else 1.0  # 2 against the mean of 1 and 0
    assert advantage(rewards, counts).tolist() == [[0.0, 0.0, -most, most]]


@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_equality_is_among_counted_rewards(advantage) -> None:
    rewards = torch.tensor([[1.7, 9.0, 1.7, 1.7]])
    assert advantage(rewards, torch.tensor([[True, False, True, True]])).tolist() == [[0.0] * 4]


@pytest.mark.parametrize("advantage", ADVANTAGES)
@pytest.mark.parametrize("num_counted", [0, 1])
def test_a_group_with_fewer_than_two_counted_rewards_has_zero_advantage(advantage, num_counted: int) -> None:
    counts = torch.arange(4)[None, :] < num_counted
    assert advantage(torch.tensor([[3.0, 1.0, 2.0, 5.0]]), counts).tolist() == [[0.0] * 4]


def test_leave_one_out_compares_with_the_mean_of_the_others() -> None:
    # 0 against (1 + 2 + 5) / 3, 1 against 7/3, 2 against 6/3, 5 against 3/3
    rewards = torch.tensor([[0.0, 1.0, 2.0, 5.0]])
    assert leave_one_out(rewards, counted(rewards))[0].tolist() == pytest.approx([-8 / 3, -4 / 3, 0.0, 4.0], rel=1e-15)


def test_batch_normalised_divides_by_the_deviation_over_all_groups() -> None:
    # centred 1 -1, 3 -3 and an equal group: squares 2 + 18 = 20 over 6 - 1 samples, deviation 2; the equal group keeps its zeros
    advantages = torch.tensor([[1.0, -1.0], [3.0, -3.0], [0.0, 0.0]])
    assert batch_normalised(advantages, counted(advantages)).tolist() == [[0.5, -0.5], [1.5, -1.5], [0.0, 0.0]]


def test_batch_normalised_squares_nothing_that_overflows() -> None:
    advantages = torch.tensor([[1e200, -1e200], [3e200, -3e200], [0.0, 0.0]], dtype=torch.float64)
    assert batch_normalised(advantages, counted(advantages)).tolist() == [[0.5, -0.5], [1.5, -1.5], [0.0, 0.0]]


def test_batch_normalised_leaves_a_batch_without_advantage_as_it_is() -> None:
    advantages = torch.zeros(2, 3)
    assert batch_normalised(advantages, counted(advantages)).tolist() == [[0.0] * 3] * 2


def test_batch_normalised_ignores_samples_without_a_reward() -> None:
    # 2 and -2 of two counted samples: deviation sqrt(8 / 1); what stands at the third does not matter
    found = batch_normalised(torch.tensor([[2.0, -2.0, 99.0]]), torch.tensor([[True, True, False]]))
    assert found[0].tolist() == pytest.approx([1 / math.sqrt(2), -1 / math.sqrt(2), 0.0])
