"""May SIGTERM, SIGINT or SIGHUP end a worker? No: the driver acts on them, and needs its workers to finish the step and save."""

from __future__ import annotations

import signal
from multiprocessing import resource_tracker


def keep_blocked() -> None:
    """In a process that was started with these signals blocked, nothing unblocks them: multiprocessing would, as it starts its tracker."""
    if signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        resource_tracker._IGNORED_SIGNALS = ()  # type: ignore[attr-defined]
