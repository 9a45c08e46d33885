"""Tests of completions, which must be the same in every process and after JSON, and of the samples' seeds."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.types import Completion, sample_seed


@pytest.mark.parametrize(
    "made",
    [
        Completion.of((5, 262143, 7), (-0.1, -math.pi, -1e-300), (True, True, True), "naïve ☃", "stop", ((0, 3),)),
        Completion.of((5, 6), (-0.5, math.nan), (True, False), "", "length", ((0, 3), (1, 4))),
        Completion.of((), (), (), "", "abort", ((0, 0),)),
    ],
    ids=["plain", "with-tool-tokens", "empty"],
)
def test_pickling_keeps_every_bit(made: Completion) -> None:
    back = pickle.loads(pickle.dumps(made))
    assert back == made and back.versions == made.versions and back.num_tokens == len(made.tokens)
    for column, expected in ((back.tokens, made.tokens), (back.logprobs, made.logprobs), (back.trainable, made.trainable)):
        assert column.dtype == expected.dtype and column.tobytes() == expected.tobytes()


def test_a_pickled_completion_is_compact() -> None:
    # 8 bytes for a token, 8 for its log-probability, 1 for its flag; as Python objects it would be 12 and a memo for each.
    many = Completion.of(range(1000), (-0.123,) * 1000, (True,) * 1000, "", "length", ((0, 0),))
    assert len(pickle.dumps(many)) < 17_500


def test_json_keeps_every_bit() -> None:
    made = Completion.of((5, 262143), (-0.1, -math.pi * 1e-7), (True, False), "naïve ☃", "stop", ((0, 3), (1, 4)))
    assert Completion.of_row(json.loads(json.dumps(made.as_row()))) == made


def test_completions_that_differ_are_unequal() -> None:
    made = Completion.of((5, 6), (-0.5, -0.25), (True, False), "a", "stop", ((0, 3),))
    again = Completion.of((5, 6), (-0.5, -0.25), (True, False), "a", "stop", ((0, 3),))
    assert made == again and hash(made) == hash(again)
    assert made != replace(made, text="b")
    assert made != Completion.of((5, 6), (-0.5, math.nextafter(-0.25, 0)), (True, False), "a", "stop", ((0, 3),))


@pytest.mark.parametrize("travels", [False, True])
def test_arrays_cannot_be_written_to(travels: bool) -> None:
    made = Completion.of((5, 6), (-0.5, -0.25), (True, True), "a", "stop", ((0, 3),))
    with pytest.raises(ValueError, match="read-only"):
        (pickle.loads(pickle.dumps(made)) if travels else made).tokens[0] = 7


def test_every_argument_changes_the_seed() -> None:
    samples = [(0, 0, "sums/0", 0), (1, 0, "sums/0", 0), (0, 1, "sums/0", 0), (0, 0, "sums/1", 0), (0, 0, "sums/0", 1)]
    assert len({sample_seed(*sample) for sample in samples}) == 5


def test_no_two_samples_of_a_step_share_a_seed() -> None:
    assert len({sample_seed(0, step, f"sums/{row}", j) for step in range(4) for row in range(64) for j in range(16)}) == 4 * 64 * 16


def test_neighbouring_samples_have_distant_seeds() -> None:
    # An engine that adds 1 to a seed for its next stream must not reach the seed of another sample.
    seeds = sorted(sample_seed(0, 0, f"sums/{row}", j) for row in range(64) for j in range(16))
    assert min(b - a for a, b in zip(seeds, seeds[1:], strict=False)) > 1000


@given(seed=st.integers(0, 2**70), step=st.integers(-1, 10**9), prompt_id=st.text(max_size=20), index=st.integers(0, 10**6))
def test_seeds_fit_a_signed_integer_and_repeat(seed: int, step: int, prompt_id: str, index: int) -> None:
    assert 0 <= sample_seed(seed, step, prompt_id, index) < 2**63
    assert sample_seed(seed, step, prompt_id, index) == sample_seed(seed, step, prompt_id, index)
