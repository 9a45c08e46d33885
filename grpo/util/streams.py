"""What if nobody is there to read: standard output closed from the start, a terminal that was closed, a pipe whose reader has ended?"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import Any, TextIO, cast

GONE = (errno.EIO, errno.EPIPE, errno.EBADF)  # a terminal that hung up, a reader that ended, a descriptor that was closed


def open_what_is_closed() -> None:
    """Standard input, output and error lead nowhere where they were closed, as daemons and cron do.

    Else the next file that is opened, a checkpoint say, would get the number 1, and every C library that prints would write into it.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for as long as the process lives


class Lasting:
    """A stream that takes what is written even when its reader is gone: a run goes on without one, and saves."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        with self._kept():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._kept():
            self._stream.flush()

    @contextlib.contextmanager
    def _kept(self) -> Any:
        try:
            yield
        except OSError as error:
            if error.errno in GONE:
                _lead_nowhere(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def lasting(stream: TextIO) -> TextIO:
    return cast(TextIO, Lasting(stream))


def complain(text: str) -> None:
    """A line on standard error, if anybody reads it."""
    print(text, file=lasting(sys.stderr), flush=True)


def _lead_nowhere(stream: TextIO) -> None:
    """So that what is still in its buffer can be flushed when the process ends: else the exit code would be 120."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
