"""Steps drawn ahead: which weights draw which step, how far ahead, and what happens when something fails or ends early."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from grpo.errors import TrainingError
from grpo.rl.prefetch import RolloutPrefetcher
from rollout.errors import WeightSyncError
from rollout.types import Completion

STEPS = 6


class Weights:
    """What of a pool is asked here: the version that it holds."""

    def __init__(self) -> None:
        self.version, self.mode = 0, "in_place"
        self.refuses: int | None = None

    def sync(self, export: Callable[[], Any], version: int) -> list[Any]:
        if version == self.refuses:
            raise WeightSyncError("w was not received")
        assert export() == version, "the weights that were exported are those of their version"
        self.version = version
        return [version]

    def completions(self, first: int) -> list[list[Completion]]:
        versions = ((0, first),) if first == self.version else ((0, first), (1, self.version))
        return [[Completion.of((5, 6), (-1.0, -1.0), (True, True), "", "stop", versions)]]


@pytest.fixture
def pool() -> Weights:
    return Weights()


@pytest.fixture
def ahead(pool: Weights) -> Iterator[Callable[..., RolloutPrefetcher]]:
    """Makes a prefetcher whose thread, however a test ends, is over afterwards."""
    made: list[RolloutPrefetcher] = []

    def make(draw: Callable[..., Any] | None = None, **settings: Any) -> RolloutPrefetcher:
        made.append(RolloutPrefetcher(pool, draw or (lambda step, meanwhile: pool.completions(pool.version)), range(STEPS), **settings))  # type: ignore[arg-type]
        made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.close()
        assert not each._thread.is_alive()


def trained(ahead: RolloutPrefetcher, update: Callable[[int], None] = lambda step: None) -> list[int]:
    """A trainer's part of all steps. Returns how old each step's samples were."""
    trainer, staleness = {"version": 0}, []
    for step in range(STEPS):
        staleness.append(step - ahead.result(step).oldest_version)
        update(step)
        trainer["version"] = step + 1
        ahead.push(lambda: trainer["version"], step + 1)
    return staleness


@pytest.mark.parametrize(("most", "expected"), [(0, [0] * 6), (1, [0, 1, 1, 1, 1, 1]), (2, [0, 1, 2, 2, 2, 2]), (9, [0, 1, 2, 3, 4, 5])])
def test_a_deterministic_run_draws_each_step_by_the_same_weights_whatever_the_times(
    ahead: Callable[..., RolloutPrefetcher], pool: Weights, most: int, expected: list[int]
) -> None:
    drawn = []

    def draw(step: int, meanwhile: Callable[[], None]) -> list[list[Completion]]:
        drawn.append(step)
        time.sleep(0.01 * (step % 3))
        return pool.completions(pool.version)

    assert trained(ahead(draw, max_staleness=most), lambda step: time.sleep(0.02 * (step % 2))) == expected
    assert drawn == list(range(STEPS))


def test_otherwise_a_step_is_drawn_by_the_newest_weights_there_are(ahead: Callable[..., RolloutPrefetcher], pool: Weights) -> None:
    slow = lambda step, meanwhile: (time.sleep(0.05), pool.completions(pool.version))[1]  # noqa: E731
    assert trained(ahead(slow, max_staleness=4, is_deterministic=False)) == [
        0,
        1,
        1,
        1,
        1,
        1,
    ]  # the trainer waits, so only what is being drawn is old


def test_no_step_is_drawn_further_ahead_than_allowed(ahead: Callable[..., RolloutPrefetcher], pool: Weights) -> None:
    drawn: list[int] = []
    runs = ahead(lambda step, meanwhile: (drawn.append(step), pool.completions(0))[1], max_staleness=2, is_deterministic=False)
    time.sleep(0.2)
    assert drawn == [0, 1, 2]
    runs.push(lambda: 1, 1).receipts.result(timeout=5)
    runs.result(3)
    time.sleep(0.1)
    assert drawn == [0, 1, 2, 3]


def test_in_flight_weights_change_while_samples_are_drawn(ahead: Callable[..., RolloutPrefetcher], pool: Weights) -> None:
    posted = threading.Event()

    def draw(step: int, meanwhile: Callable[[], None]) -> list[list[Completion]]:
        first = pool.version
        if step == 1:
            posted.wait(5)
            meanwhile()
        return pool.completions(first)

    runs = ahead(draw, max_staleness=1, is_deterministic=False, in_flight=True)
    runs.result(0)
    runs.push(lambda: 1, 1)
    posted.set()
    (((one,),), oldest) = (lambda drawn: (drawn.completions, drawn.oldest_version))(runs.result(1))
    assert one.versions == ((0, 0), (1, 1)) and oldest == 0


def test_in_flight_waits_where_new_weights_mean_a_new_engine(ahead: Callable[..., RolloutPrefetcher], pool: Weights) -> None:
    pool.mode, posted = "rebuild", threading.Event()

    def draw(step: int, meanwhile: Callable[[], None]) -> list[list[Completion]]:
        first = pool.version
        if step == 1:
            posted.wait(5)
            meanwhile()
        return pool.completions(first)

    runs = ahead(draw, max_staleness=1, is_deterministic=False, in_flight=True)
    runs.push(lambda: 1, 1) if runs.result(0) else None
    posted.set()
    assert runs.result(1).completions[0][0].versions == ((0, 0),)
    assert runs.result(2).oldest_version == 1


@pytest.mark.parametrize("most", [0, 1, 3])
def test_what_is_done_with_new_weights_is_done_with_exactly_these(
    ahead: Callable[..., RolloutPrefetcher], pool: Weights, most: int
) -> None:
    runs = ahead(max_staleness=most)
    for step in range(STEPS):
        runs.result(step)
        posted = runs.push(lambda step=step: step + 1, step + 1, evaluate=lambda meanwhile: pool.version)
        assert posted.evaluation.result(timeout=5) == step + 1


@pytest.mark.parametrize("stop", [0, 2, 4])
def test_a_run_that_stops_and_goes_on_with_what_it_kept_draws_as_one_that_did_not(
    ahead: Callable[..., RolloutPrefetcher], pool: Weights, stop: int
) -> None:
    versions = lambda runs, steps: [(runs.result(step).oldest_version, runs.push(lambda v=step + 1: v, step + 1))[0] for step in steps]  # noqa: E731
    whole = ahead(max_staleness=2)
    undisturbed = versions(whole, range(STEPS))
    whole.close()
    pool.version = 0
    first = ahead(max_staleness=2)
    before = versions(first, range(stop + 1))
    kept = first.rollouts_of_older_weights(stop)
    first.close()
    pool.version = stop + 1
    again = RolloutPrefetcher(pool, lambda step, _: pool.completions(pool.version), range(stop + 1, STEPS), max_staleness=2, kept=kept)  # type: ignore[arg-type]
    again.start()
    try:
        assert before + versions(again, range(stop + 1, STEPS)) == undisturbed == [0, 0, 0, 1, 2, 3]
    finally:
        again.close()


@pytest.mark.parametrize("most", [0, 2])
def test_a_failed_sync_is_raised_where_samples_are_waited_for(ahead: Callable[..., RolloutPrefetcher], pool: Weights, most: int) -> None:
    pool.refuses = 2
    with pytest.raises(WeightSyncError, match="w was not received"):
        trained(ahead(max_staleness=most))


def test_a_stage_that_ends_early_ends_its_drawing(ahead: Callable[..., RolloutPrefetcher]) -> None:
    ended = []

    def endless(step: int, meanwhile: Callable[[], None]) -> Any:
        try:
            while True:
                meanwhile()
                time.sleep(0.01)
        finally:
            ended.append(step)

    runs = ahead(endless)
    time.sleep(0.05)
    began = time.monotonic()
    runs.close()
    assert ended == [0] and time.monotonic() - began < 2


def test_a_stage_that_ends_early_ends_what_is_being_done_with_its_weights(ahead: Callable[..., RolloutPrefetcher]) -> None:
    def evaluate(meanwhile: Callable[[], None]) -> None:
        while True:
            meanwhile()
            time.sleep(0.01)

    runs = ahead()
    posted = runs.push(lambda: 1, 1, evaluate=evaluate)
    time.sleep(0.05)
    runs.close()
    with pytest.raises(TrainingError, match="the stage ended"):
        posted.evaluation.result(timeout=2)


def test_a_sync_is_over_before_what_is_done_with_its_weights(ahead: Callable[..., RolloutPrefetcher], pool: Weights) -> None:
    may_end = threading.Event()
    posted = ahead().push(lambda: 1, 1, evaluate=lambda meanwhile: may_end.wait(5))
    assert posted.receipts.result(timeout=5) == [1] and not posted.evaluation.done()  # its time is the sync's alone
    may_end.set()
    assert posted.evaluation.result(timeout=5) is True
