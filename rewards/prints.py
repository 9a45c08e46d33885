"""Where does what a reward prints go? To standard error: standard output belongs to the command, whose --json is one object."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

_lock = threading.RLock()


def print_to_stderr() -> None:
    """From now on, in a process of its own: also what C libraries and child processes print."""
    with contextlib.suppress(OSError):  # there is no standard error
        os.dup2(2, 1)


@contextlib.contextmanager
def printing_to_stderr() -> Iterator[None]:
    """For as long as somebody's code runs in the command's own process, to be imported or asked about its settings."""
    with _lock, contextlib.redirect_stdout(sys.stderr):
        _flush()
        try:
            kept = os.dup(1)
        except OSError:  # there is no standard output
            kept = -1
        print_to_stderr()
        try:
            yield
        finally:
            _flush()
            if kept >= 0:
                os.dup2(kept, 1)
                os.close(kept)


def _flush() -> None:
    """What C libraries keep in their buffers would be written later, to wherever standard output leads then."""
    import ctypes

    if sys.__stdout__ is not None:
        with contextlib.suppress(ValueError, OSError):  # it is closed
            sys.__stdout__.flush()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).fflush(None)
