"""What runs in a reward process: it loads the rewards once, then scores the samples that it is sent."""

from __future__ import annotations

import asyncio
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rewards.errors import RewardError, Undecidable, one_line
from rewards.function import Noted, RewardFn, with_settings
from rewards.load import build_reward

Status = Literal["scored", "abstained", "undecidable", "timeout", "error"]


class Outcome(NamedTuple):
    """What became of one sample with one reward. ``detail`` is one line, ``trace`` the traceback of an error.

    seconds   what it took, an equal share of a batch; None where nobody could tell, because its process died
    """

    value: float | None
    status: Status
    detail: str = ""
    trace: str = ""
    seconds: float | None = None


BLOCKED_S = 0.25
"""How long after the deadline coroutines that all waited would have ended."""

_rewards: dict[str, RewardFn | Outcome] = {}


def load_all(uses: Sequence[tuple[str, str, Mapping[str, Any]]], base: Path) -> None:
    """Loads rewards, given as (name, ref, settings). What goes wrong is kept as the outcome of every sample: a worker must start."""
    for name, ref, settings in uses:
        try:
            _rewards[name] = fn = build_reward(ref, settings, base)
            if fn.options.prepare is not None:
                with_settings(fn.options.prepare, fn.settings)
        except BaseException as error:
            _rewards[name] = failure(error)


def load_failure(name: str) -> Outcome | None:
    """What went wrong with loading a reward; None where it is there."""
    fn = _rewards[name]
    return fn if isinstance(fn, Outcome) else None


def score_some(name: str, samples: Sequence[Mapping[str, Any]], deadline_s: float, budget_s: float) -> list[Outcome]:
    """Scores samples in order until the time budget is used up: at least the first, perhaps not all. Coroutines run all at once."""
    fn, end, outcomes = _rewards[name], time.monotonic() + budget_s, []
    if isinstance(fn, Outcome):
        return [fn] * len(samples)
    if fn.is_async:
        return _score_together(fn, samples, deadline_s)
    for values in samples:
        outcomes.append(_outcome(fn, partial(_read_one, fn, values), deadline_s))
        if time.monotonic() >= end:
            break
    return outcomes


def _read_one(fn: RewardFn, values: Mapping[str, Any]) -> Noted:
    return fn.read(fn.call_one(values))


def _score_together(fn: RewardFn, samples: Sequence[Mapping[str, Any]], deadline_s: float) -> list[Outcome]:
    """Awaits all samples at once, each with its own deadline.

    Where one of several kept the others from running, TimeoutError: whose doing it was shows when they run one by one.
    """
    begin = time.monotonic()
    try:
        with _alarm(deadline_s + BLOCKED_S):
            results, longest_pause_s = asyncio.run(_await_all(fn, samples, deadline_s))
        was_blocked = longest_pause_s > deadline_s / 4 and any(isinstance(result, _LateError) for result in results)
    except BaseException as error:  # the alarm, or sys.exit() in a coroutine
        results, was_blocked = [error] * len(samples), True
    if was_blocked and len(samples) > 1:
        raise TimeoutError("a coroutine kept the others from running")
    share_s = (time.monotonic() - begin) / len(samples)
    return [_outcome(fn, partial(fn.read, result), deadline_s)._replace(seconds=share_s) for result in results]


async def _await_all(fn: RewardFn, samples: Sequence[Mapping[str, Any]], deadline_s: float) -> tuple[list[Any], float]:
    """What each sample's coroutine returned or raised (late: _LateError), and the longest time in seconds in which none could run."""

    async def result_of(values: Mapping[str, Any]) -> Any:
        try:
            async with asyncio.timeout(deadline_s) as limit:
                return await fn.await_one(values)
        except TimeoutError:
            if limit.expired():
                raise _LateError from None
            raise

    longest_pause_s = 0.0

    async def watch() -> None:
        nonlocal longest_pause_s
        before = time.monotonic()
        while True:
            await asyncio.sleep(0.02)
            longest_pause_s, before = max(longest_pause_s, time.monotonic() - before), time.monotonic()

    watching = asyncio.create_task(watch())
    results = await asyncio.gather(*map(result_of, samples), return_exceptions=True)
    watching.cancel()
    return results, longest_pause_s


def score_batch(name: str, samples: Sequence[Mapping[str, Any]], deadline_s: float) -> list[Outcome]:
    """Scores all samples in one call of a batch reward: one error is everybody's, unless it is about one return value."""
    fn = _rewards[name]
    if isinstance(fn, Outcome):
        return [fn] * len(samples)
    begin = time.perf_counter()
    try:
        with _alarm(deadline_s):
            results = fn.call_batch(samples)
    except _LateError:
        outcomes = [late(fn, deadline_s)] * len(samples)
    except BaseException as error:
        outcomes = [failure(error)] * len(samples)
    else:
        outcomes = [_outcome(fn, partial(fn.read, value, index), deadline_s) for index, value in enumerate(results)]
    share_s = (time.perf_counter() - begin) / len(samples)
    return [outcome._replace(seconds=share_s) for outcome in outcomes]


def late(fn: RewardFn, deadline_s: float) -> Outcome:
    """A missed deadline as an outcome: the completion's doing where the reward says so, else nobody's."""
    return Outcome(fn.undecidable, "timeout" if fn.undecidable is None else "undecidable", f"no result within {deadline_s:g} s")


def failure(error: BaseException) -> Outcome:
    """An error as an outcome; the traceback begins where the reward's own code does."""
    line, own = one_line(error), error.__traceback__
    traceback.clear_frames(own)  # what they hold may be why there is no memory left
    while own and own.tb_next and own.tb_frame.f_code.co_filename.startswith(str(Path(__file__).parent)):
        own = own.tb_next
    trace = "".join(traceback.format_exception(type(error), error, own))
    return Outcome(None, "error", line[:300], line if isinstance(error, RewardError) else trace[-4000:])


class _LateError(BaseException):
    """Raised inside a reward at its deadline."""


@contextmanager
def _alarm(deadline_s: float) -> Iterator[None]:
    """Interrupts what runs at the deadline. What doesn't let itself be interrupted is killed soon after, with its process."""

    def ring(*_: object) -> None:
        raise _LateError

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, deadline_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _outcome(fn: RewardFn, call: Callable[[], Noted], deadline_s: float) -> Outcome:
    begin = time.perf_counter()
    outcome = _judged(fn, call, deadline_s)
    return outcome._replace(seconds=time.perf_counter() - begin)


def _judged(fn: RewardFn, call: Callable[[], Noted], deadline_s: float) -> Outcome:
    try:
        with _alarm(deadline_s):
            value, note = call()
    except _LateError:
        return late(fn, deadline_s)
    except Undecidable as error:
        return Outcome(fn.undecidable, "undecidable", str(error))
    except BaseException as error:  # math-verify's TimeoutException and sys.exit() are no Exceptions
        return failure(error)
    return Outcome(value, "abstained" if value is None else "scored", note)
