"""A completion is the same after it has gone from one process to another."""

from __future__ import annotations

import math
import pickle

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
    # Eight for a token, eight for its log-probability; as Python objects it would be twelve and a memo for each.
    many = Completion(tuple(range(1000)), (-0.123,) * 1000, (True,) * 1000, "", "length", ((0, 0),))
    assert len(pickle.dumps(many)) < 16_500
