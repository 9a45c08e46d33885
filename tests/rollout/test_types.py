"""A completion is the same after it has gone from one process to another."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace

import pytest

from rollout.types import Completion


def test_a_completion_travels_unchanged() -> None:
    plain = Completion((5, 262143, 7), (-0.1, -math.pi, -1e-300), (True, True, True), "naïve ☃", "stop", ((0, 3),))
    of_a_tool = Completion((5, 6), (-0.5, math.nan), (True, False), "", "length", ((0, 3), (1, 4)))
    empty = Completion((), (), (), "", "abort", ((0, 0),))
    for completion in (plain, empty):
        assert pickle.loads(pickle.dumps(completion)) == completion
    back = pickle.loads(pickle.dumps(of_a_tool))
    assert back.trainable == (True, False) and math.isnan(back.logprobs[1]) and back.versions == ((0, 3), (1, 4)) and back.version == 4
    assert all(type(token) is int for token in back.tokens) and all(type(flag) is bool for flag in back.trainable)


def test_a_million_numbers_are_few_bytes() -> None:
    # Eight for a token, eight for its log-probability, one for its flag; as Python objects it would be twelve and a memo for each.
    many = Completion(tuple(range(1000)), (-0.123,) * 1000, (True,) * 1000, "", "length", ((0, 0),))
    assert len(pickle.dumps(many)) < 17_500


def test_a_completion_from_another_process_makes_tuples_only_when_asked() -> None:
    made = Completion((5, 6), (-0.5, -0.25), (True, False), "a", "stop", ((0, 3),))
    back = pickle.loads(pickle.dumps(made))
    assert back.arrays.tokens.tolist() == [5, 6] and back.num_tokens == 2 and "tokens" not in vars(back)
    assert hash(back) == hash(made) and back.tokens == (5, 6) and "tokens" in vars(back)
    assert replace(back, text="b") == replace(made, text="b") != made
    with pytest.raises(AttributeError, match="token_ids"):
        _ = back.token_ids


def test_a_completion_is_the_same_after_json() -> None:
    made = Completion((5, 262143), (-0.1, -math.pi * 1e-7), (True, False), "naïve ☃", "stop", ((0, 3), (1, 4)))
    back = Completion.of_row(json.loads(json.dumps(made.as_row())))
    assert back == made and type(back.trainable[1]) is bool


def test_arrays_from_another_process_cannot_be_written_to() -> None:
    back = pickle.loads(pickle.dumps(Completion((5, 6), (-0.5, -0.25), (True, True), "a", "stop", ((0, 3),))))
    with pytest.raises(ValueError, match="read-only"):
        back.arrays.tokens[0] = 7
