"""What generate() returns and when it gives up, with engines of a few lines."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from rollout.engines.base import generate
from rollout.engines.scripted import ScriptedEngine, load_script
from rollout.errors import EngineError
from rollout.types import Finished, Request, Sampling

REQUESTS = [Request(f"r{i}", (i,), Sampling(max_tokens=4), seed=i) for i in range(5)]


@pytest.fixture
def echo(tiny_qwen2: Path) -> ScriptedEngine:
    """Answers a request with its prompt and its version, and an end where there is room for one."""
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


def test_completions_come_back_in_the_order_of_the_requests(echo: ScriptedEngine) -> None:
    in_turn(echo, [3, 0, 4, 2, 1])
    assert [completion.tokens[0] for completion in generate(echo, REQUESTS, deadline_s=10)] == [0, 1, 2, 3, 4]


def test_nothing_to_draw_is_nothing_drawn(echo: ScriptedEngine) -> None:
    assert generate(echo, [], deadline_s=0.0) == []


def test_past_the_deadline_it_says_what_is_missing_and_cancels_that(echo: ScriptedEngine) -> None:
    in_turn(echo, [1, 0])
    with pytest.raises(EngineError, match="3 of 5 requests were not done after 0 s; the first is r2"):
        generate(echo, REQUESTS, deadline_s=0.2)
    assert echo._waiting == []


def test_what_arrives_with_the_deadline_is_not_thrown_away(echo: ScriptedEngine) -> None:
    poll = echo.poll
    echo.poll = lambda timeout_s: (time.sleep(0.05), poll(timeout_s))[1]  # type: ignore[method-assign]
    assert len(generate(echo, REQUESTS, deadline_s=0.01)) == 5


def test_a_failed_request_is_named_and_the_others_are_cancelled(echo: ScriptedEngine) -> None:
    echo.poll = lambda timeout_s: [Finished("r1", None, "out of memory")]  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="request r1 failed: out of memory"):
        generate(echo, REQUESTS, deadline_s=10)
    assert echo._waiting == []


def test_a_completion_says_how_it_ended_and_which_version_drew_it(echo: ScriptedEngine) -> None:
    (end,) = echo._ends
    ended, cut = generate(echo, [Request("a", (66,), Sampling(max_tokens=3), 0), Request("b", (66,), Sampling(max_tokens=2), 0)], 10)
    assert (ended.tokens, ended.finish, ended.version) == ((66, 68, end), "stop", 3)
    assert (cut.tokens, cut.finish, cut.version) == ((66, 68), "length", 3)
    assert ended.text == cut.text == echo._text.of([66, 68])  # the end token is no text
    assert len(ended.logprobs) == len(ended.trainable) == 3


def test_a_script_is_a_users_function(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def twice(request, version):\n    return [*request.tokens, *request.tokens]\n")
    assert load_script("./mine.py:twice", tmp_path)(REQUESTS[3], 0) == [3, 3]


@pytest.mark.parametrize(("ref", "said"), [("./no.py:twice", "there is no file"), ("./mine.py:thrice", "there is no function 'thrice'")])
def test_a_script_that_is_not_there_is_named(tmp_path: Path, ref: str, said: str) -> None:
    (tmp_path / "mine.py").write_text("def twice(request, version):\n    return []\n")
    with pytest.raises(EngineError, match=f"rollout.script '{ref}': {said}"):
        load_script(ref, tmp_path)
