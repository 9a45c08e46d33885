"""What runs in a reward process: it loads the rewards once, then scores the samples that it is sent."""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rewards.errors import RewardError, Undecidable, one_line
from rewards.function import RewardFn, as_score
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


_rewards: dict[str, RewardFn | Outcome] = {}


def load_all(uses: Sequence[tuple[str, str, Mapping[str, Any]]], base: Path) -> None:
    """Loads rewards, given as (name, ref, settings). What goes wrong is kept as the outcome of every sample: a worker must start."""
    for name, ref, settings in uses:
        try:
            _rewards[name] = fn = build_reward(ref, settings, base)
            if fn.options.prepare is not None:
                fn.options.prepare()
        except BaseException as error:
            _rewards[name] = failure(error)


def score_some(name: str, samples: Sequence[Mapping[str, Any]], deadline_s: float, budget_s: float) -> list[Outcome]:
    """Scores samples in order until the time budget is used up: at least the first, perhaps not all."""
    fn, end, outcomes = _rewards[name], time.monotonic() + budget_s, []
    for values in samples:
        outcomes.append(fn if isinstance(fn, Outcome) else _outcome(fn, partial(fn.call_one, values), deadline_s))
        if time.monotonic() >= end:
            break
    return outcomes


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
        outcomes = [_outcome(fn, partial(as_score, value, fn.name, index), deadline_s) for index, value in enumerate(results)]
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


def _outcome(fn: RewardFn, call: Callable[[], float | None], deadline_s: float) -> Outcome:
    begin = time.perf_counter()
    outcome = _judged(fn, call, deadline_s)
    return outcome._replace(seconds=time.perf_counter() - begin)


def _judged(fn: RewardFn, call: Callable[[], float | None], deadline_s: float) -> Outcome:
    try:
        with _alarm(deadline_s):
            value = call()
    except _LateError:
        return late(fn, deadline_s)
    except Undecidable as error:
        return Outcome(fn.undecidable, "undecidable", str(error))
    except BaseException as error:  # math-verify's TimeoutException and sys.exit() are no Exceptions
        return failure(error)
    return Outcome(value, "abstained" if value is None else "scored")
