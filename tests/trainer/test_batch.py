"""Sample j of prompt i keeps its tokens, its log-probabilities and its advantage on the way into a batch."""

from __future__ import annotations

import math

import numpy as np
import pytest

from grpo.trainer.batch import Batch, batch_of_groups, make_batch
from grpo.types import Group, Sample
from rollout.types import Completion, Prompt

NAN = float("nan")


def sample(tokens: tuple[int, ...], reward: float | None, trainable: tuple[bool, ...] | None = None) -> Sample:
    """A sample whose log-probabilities are its tokens, negative."""
    trainable = trainable or (True,) * len(tokens)
    return Sample("p", Completion.of(tokens, tuple(-float(t) for t in tokens), trainable, "", "stop", ((0, 0),)), reward, {})


@pytest.fixture
def batch() -> Batch:
    first = Group(Prompt("0", (1, 2)), (sample((10, 11), 1.0), sample((12,), None), sample((13, 14, 15), 0.0, (True, False, True))))
    second = Group(Prompt("1", (3,)), (sample((20,), None), sample((21, 22), 0.5), sample((23,), 0.25)))
    return batch_of_groups([first, second], [[0.1, 9.0, 0.3], [9.0, 0.5, 0.6]])


def test_each_sample_has_its_own_tokens_and_advantage_and_unjudged_ones_are_left_out(batch: Batch) -> None:
    sequences = [batch.tokens[b, :length].tolist() for b, length in enumerate(batch.lengths)]
    last = batch.advantages[np.arange(len(batch)), batch.lengths - 1]
    assert list(zip(sequences, last.tolist(), batch.group.tolist(), strict=True)) == [
        ([1, 2, 10, 11], pytest.approx(0.1), 0),
        ([1, 2, 13, 14, 15], pytest.approx(0.3), 0),
        ([3, 21, 22], pytest.approx(0.5), 1),
        ([3, 23], pytest.approx(0.6), 1),
    ]


def test_the_loss_is_on_the_tokens_that_the_policy_wrote(batch: Batch) -> None:
    written = [batch.tokens[b, batch.loss_mask[b]].tolist() for b in range(len(batch))]
    assert written == [[10, 11], [13, 15], [21, 22], [23]]


def test_column_t_belongs_to_token_t_in_every_array(batch: Batch) -> None:
    known = ~np.isnan(batch.sampled_logprobs)
    np.testing.assert_array_equal(-batch.sampled_logprobs[known], batch.tokens[known])
    assert known.sum() == 8  # 2 + 3 + 2 + 1 completion tokens, a tool's included
    assert np.isnan(batch.old_logprobs).all()
    assert (batch.advantages != 0).tolist() == known.tolist()  # none of a prompt's tokens has one


def test_weights_are_those_of_the_whole_batch_and_travel_with_its_parts(batch: Batch) -> None:
    # 4 samples of 2, 2, 2 and 1 counted tokens: 1/8 a token, 1/4 in the last
    whole = batch.with_weights("sequence_mean", max_tokens=10)
    assert whole.weights[whole.loss_mask].tolist() == [0.125] * 6 + [0.25]
    part = whole.take(np.array([3, 1]))
    assert part.weights.sum(axis=1).tolist() == [0.25, 0.25]
    assert part.tokens[0, :2].tolist() == [3, 23] and part.advantages.max(axis=1).tolist() == pytest.approx([0.6, 0.3])


def test_groups_that_nobody_could_judge_make_an_empty_batch() -> None:
    assert len(batch_of_groups([Group(Prompt("0", (1,)), (sample((2,), None),))], [[0.0]])) == 0


def test_sequences_without_groups_have_nothing_in_common() -> None:
    assert make_batch([(1, 2), (1, 2)], [(3,), (4,)]).group.tolist() == [0, 1]


def test_tokens_whose_log_probability_by_the_engine_is_not_finite_do_not_count() -> None:
    odd = Completion.of((8, 9, 10), (-1.0, math.nan, -math.inf), (True,) * 3, "", "stop", ((0, 0),))
    batch = batch_of_groups([Group(Prompt("0", (1,)), (Sample("0", odd, 1.0, {}),))], [[1.0]])
    assert batch.tokens[batch.loss_mask].tolist() == [8]
