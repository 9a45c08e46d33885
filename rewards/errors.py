"""What can go wrong with a reward."""

from __future__ import annotations


class RewardError(ValueError):
    """A reward that cannot be loaded, called or trusted; names the reward and, where there is one, the sample."""


class Undecidable(Exception):
    """Raised inside a reward: this completion cannot be judged, and that is the completion's doing.

    The sample then scores what the reward declared with ``@reward(undecidable=...)``: 0 for math, so that a policy gains nothing by
    writing answers nobody can evaluate. A reward that cannot judge for any other reason returns None.
    """


def one_line(error: BaseException) -> str:
    """An error as its type and message, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
