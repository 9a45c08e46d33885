"""Tests of generate() and of the scripted engine."""

from __future__ import annotations

import types
from collections.abc import Sequence
from pathlib import Path

import pytest

from rollout.engines.base import generate
from rollout.engines.scripted import ScriptedEngine, load_script
from rollout.errors import EngineError
from rollout.types import Finished, Request, SamplingParams

REQUESTS = [Request(f"r{i}", (i,), SamplingParams(max_tokens=4), seed=i) for i in range(5)]


@pytest.fixture
def echo(tiny_qwen2: Path) -> ScriptedEngine:
    """Repeats the prompt, then its version, then the end token if there is room."""
    engine = ScriptedEngine(lambda request, version: (*request.tokens, 65 + version, *engine._ends))
    engine.load_model(tiny_qwen2, version=3)
    return engine


def in_turn(engine: ScriptedEngine, order: Sequence[int]) -> None:
    """Make ``engine`` finish one request a poll, in this order; then nothing."""
    every, poll = list(order), engine.poll

    def one(timeout_s: float) -> list[Finished]:
        waiting = engine._waiting
        if not every:
            return []
        chosen = next(request for request in waiting if request.id == f"r{every[0]}")
        every.pop(0)
        engine._waiting = [chosen]
        finished = poll(timeout_s)
        engine._waiting = [request for request in waiting if request is not chosen]
        return finished

    engine.poll = one  # type: ignore[method-assign]


def test_completions_return_in_the_order_of_requests(echo: ScriptedEngine) -> None:
    in_turn(echo, [3, 0, 4, 2, 1])
    assert [int(completion.tokens[0]) for completion in generate(echo, REQUESTS, deadline_s=10)] == [0, 1, 2, 3, 4]


def test_no_requests_give_no_completions(echo: ScriptedEngine) -> None:
    assert generate(echo, [], deadline_s=0.0) == []


def one_second_a_poll(engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give ``engine`` a clock that advances by a second in each poll, and at no other time."""
    clock, poll = types.SimpleNamespace(now=0), engine.poll

    def slow(timeout_s: float) -> list[Finished]:
        clock.now += 1
        return poll(timeout_s)

    engine.poll = slow  # type: ignore[method-assign]
    monkeypatch.setattr("rollout.engines.base.time", types.SimpleNamespace(monotonic=lambda: clock.now))


def test_the_deadline_names_and_cancels_what_is_missing(echo: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    in_turn(echo, [1, 0])
    one_second_a_poll(echo, monkeypatch)
    with pytest.raises(EngineError, match="3 of 5 requests were not done after 3 s; the first is r2"):
        generate(echo, REQUESTS, deadline_s=3)
    assert echo._waiting == []


def test_what_finishes_with_the_deadline_is_kept(echo: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    one_second_a_poll(echo, monkeypatch)
    assert len(generate(echo, REQUESTS, deadline_s=0.5)) == 5


def test_a_failed_request_is_named_and_others_are_cancelled(echo: ScriptedEngine) -> None:
    echo.poll = lambda timeout_s: [Finished("r1", None, "out of memory")]  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="request r1 failed: out of memory"):
        generate(echo, REQUESTS, deadline_s=10)
    assert echo._waiting == []


def test_completions_record_their_finish_and_version(echo: ScriptedEngine) -> None:
    (end,) = echo._ends
    ended, cut = generate(
        echo, [Request("a", (66,), SamplingParams(max_tokens=3), 0), Request("b", (66,), SamplingParams(max_tokens=2), 0)], 10
    )
    assert (ended.tokens.tolist(), ended.finish, ended.version) == ([66, 68, end], "stop", 3)
    assert (cut.tokens.tolist(), cut.finish, cut.version) == ([66, 68], "length", 3)
    assert ended.text == cut.text == echo._text.of([66, 68])  # the end token is no text
    assert len(ended.logprobs) == len(ended.trainable) == 3


def test_load_script_returns_the_users_function(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def twice(request, version):\n    return [*request.tokens, *request.tokens]\n")
    assert load_script("./mine.py:twice", tmp_path)(REQUESTS[3], 0) == [3, 3]


@pytest.mark.parametrize(("ref", "said"), [("./no.py:twice", "there is no file"), ("./mine.py:thrice", "there is no function 'thrice'")])
def test_a_missing_script_is_named(tmp_path: Path, ref: str, said: str) -> None:
    (tmp_path / "mine.py").write_text("def twice(request, version):\n    return []\n")
    with pytest.raises(EngineError, match=f"rollout.script '{ref}': {said}"):
        load_script(ref, tmp_path)
