"""Who a sample is decides its random numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rollout.seeds import sample_seed


def test_every_argument_changes_the_seed() -> None:
    samples = [(0, 0, "sums/0", 0), (1, 0, "sums/0", 0), (0, 1, "sums/0", 0), (0, 0, "sums/1", 0), (0, 0, "sums/0", 1)]
    assert len({sample_seed(*who) for who in samples}) == 5


def test_a_whole_step_has_no_seed_twice() -> None:
    assert len({sample_seed(0, step, f"sums/{row}", j) for step in range(4) for row in range(64) for j in range(16)}) == 4 * 64 * 16


def test_neighbours_are_no_neighbours() -> None:
    # An engine that adds 1 to a seed for its next stream must not meet another sample's.
    seeds = sorted(sample_seed(0, 0, f"sums/{row}", j) for row in range(64) for j in range(16))
    assert min(b - a for a, b in zip(seeds, seeds[1:], strict=False)) > 1000


@given(seed=st.integers(0, 2**70), step=st.integers(-1, 10**9), prompt_id=st.text(max_size=20), index=st.integers(0, 10**6))
def test_seeds_fit_a_signed_integer_and_repeat(seed: int, step: int, prompt_id: str, index: int) -> None:
    assert 0 <= sample_seed(seed, step, prompt_id, index) < 2**63
    assert sample_seed(seed, step, prompt_id, index) == sample_seed(seed, step, prompt_id, index)
