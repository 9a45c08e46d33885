"""Coroutines wait together: a chunk takes as long as its slowest sample, and one that blocks or hangs costs its own sample only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rewards import RewardRuntime, RewardSpec, ScoreInput, load_reward

MINE = """
    import asyncio, sys, time
    from rewards import Undecidable, reward

    at_once = most_at_once = 0

    async def waits(completion):
        global at_once, most_at_once
        at_once += 1
        most_at_once = max(most_at_once, at_once)
        await asyncio.sleep(0.3)
        at_once -= 1
        return float(most_at_once)

    @reward(undecidable=0.0)
    async def trouble(completion):
        if completion == "hang":
            await asyncio.sleep(60)
        if completion == "block":
            time.sleep(60)
        if completion == "deaf":
            while True:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    pass
        if completion == "exit":
            sys.exit("bye")
        if completion == "own timeout":
            raise TimeoutError("the far side was late")
        if completion == "?":
            raise Undecidable("who knows")
        await asyncio.sleep(0.01)
        return 1.0

    async def together(completions, **kwargs):
        async def one(text):
            await asyncio.sleep(0.3)
            return float(len(text))
        return await asyncio.gather(*map(one, completions))
"""


@pytest.fixture
def runtime(reward_file: Callable[..., Path]) -> Iterator[Callable[..., RewardRuntime]]:
    opened: list[RewardRuntime] = []

    def make(name: str, **settings) -> RewardRuntime:
        opened.append(RewardRuntime([RewardSpec(f"./mine.py:{name}")], base=reward_file(MINE), **settings))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def test_sixty_four_samples_wait_as_long_as_one(runtime, samples) -> None:
    scorer = runtime("waits")
    scorer.score(samples("the process starts"))
    began = time.monotonic()
    scored = scorer.score(samples(*map(str, range(64))))
    assert max(one.reward for one in scored) == 64
    assert time.monotonic() - began < 64 * 0.3 / 4


@pytest.mark.parametrize(
    ("fault", "reward", "note"),
    [
        ("hang", 0, "undecidable"),
        ("block", 0, "undecidable"),
        pytest.param("deaf", 0, "undecidable", marks=pytest.mark.slow),  # killed twice: with the others, then alone
        ("?", 0, "undecidable"),
        ("exit", None, "error: SystemExit: bye"),
        ("own timeout", None, "error: TimeoutError: the far side was late"),
    ],
)
def test_only_the_coroutine_at_fault_pays(runtime, samples, fault: str, reward: float | None, note: str) -> None:
    scored = runtime("trouble", deadline_s=0.5).score(samples("a", fault, "b", "c"))
    assert [one.reward for one in scored] == [1, reward, 1, 1]
    assert [one.notes for one in scored] == [{}, {"trouble": note}, {}, {}]


def test_a_function_of_lists_awaits_as_it_likes(runtime) -> None:
    scorer = runtime("together", deadline_s=2.0)
    inputs = [ScoreInput({"prompt": "q", "completion": "x" * n}) for n in range(32)]
    assert [one.reward for one in scorer.score(inputs)] == list(range(32))  # one by one would take 9.6 s, and the deadline is 4 s


def test_called_directly_it_is_awaited(reward_file: Callable[..., Path]) -> None:
    assert load_reward("./mine.py:trouble", base=reward_file(MINE))(completion="a") == 1
