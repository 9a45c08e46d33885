"""What do SIGTERM and SIGINT do? The first lets the step end and be saved; the second stops at once. Either way no process is left behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


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
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.signal(signum, self._handle) for signum in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if isinstance(error, KeyboardInterrupt) and self.asked_by is not None:
            raise Interrupted(self.asked_by) from None  # Ray, where it waits, makes a plain KeyboardInterrupt of it

    def renew(self) -> None:
        """After something has put handlers of its own below Python's: Ray's, on its start, aborts the process at SIGTERM."""
        for signum in self._before:
            signal.signal(signum, self._handle)

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
        if self._is_held and self.asked_by is None:
            self.asked_by = signum
            self.say(f"  {signal.Signals(signum).name}: this step is finished and saved; once more stops at once")
            return
        self.asked_by, self._is_closing = signum, True
        raise Interrupted(signum)
