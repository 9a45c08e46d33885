"""What do SIGTERM, SIGINT and SIGHUP do? The first lets the step end and be saved; the second stops at once. Either way no process is left."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
ONE_REQUEST_S = 0.5
"""A closed terminal sends SIGHUP twice, systemd SIGTERM and SIGHUP, and `--restarts` passes on what all processes got: one request each."""


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop. Its exit code is 128 + ``signum``."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


class Interruption:
    """Handlers for the time of a ``with`` block, in the main thread; elsewhere signals do what they did before."""

    def __init__(self, say: Callable[[str], None]):
        self.say = say
        self.asked_by: int | None = None
        self._is_held = False
        self._is_closing = False
        self._asked_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            wanted = [signum for signum in SIGNALS if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN]  # nohup
            self._before = {signum: signal.signal(signum, self._handle) for signum in wanted}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if isinstance(error, KeyboardInterrupt) and self.asked_by is not None:
            raise Interrupted(self.asked_by) from None  # Ray, where it waits, makes a plain KeyboardInterrupt of it

    @contextmanager
    def held(self, until_next: bool = False) -> Iterator[None]:
        """Within, the first signal only sets ``asked_by``, for whoever is inside to look at; ``until_next``: after it too, if nothing is raised."""
        self._is_held = True
        is_over = True
        try:
            yield
            is_over = not until_next
        finally:
            self._is_held = not is_over

    def raise_if_asked(self) -> None:
        if self.asked_by is not None:
            self._is_closing = True
            raise Interrupted(self.asked_by)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._is_closing:
            return  # what is being closed must get closed
        if self.asked_by is not None and time.monotonic() - self._asked_at < ONE_REQUEST_S:
            return
        if self._is_held and self.asked_by is None:
            self.asked_by, self._asked_at = signum, time.monotonic()
            self.say(f"  {signal.Signals(signum).name}: this step is finished and saved; once more stops at once")
            return
        self.asked_by, self._is_closing = self.asked_by or signum, True
        raise Interrupted(self.asked_by)
