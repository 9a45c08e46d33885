"""Processes that can be killed: a pebble pool whose workers start light, end with their parent and cannot eat all memory."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext, SpawnProcess
from types import FrameType
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
is_worker = False
"""True in a process of a pool: what runs here can be killed already."""


class Processes:
    """``count`` processes that start on first use and start again whenever one of them dies.

    prepare      called once in each of them before any task, outside of any deadline; must not raise
    memory_gib   what one may allocate before it gets a MemoryError (Linux)
    """

    def __init__(self, count: int, prepare: Callable[..., None] | None = None, prepare_args: tuple = (), memory_gib: float | None = 4.0):
        self._count, self._memory_gib = count, memory_gib
        self._prepare, self._prepare_args = prepare, prepare_args
        self._pool: Any = None
        self._pid = 0
        self._lock = threading.Lock()

    def submit(self, function: Callable, *args: Any, deadline_s: float) -> Future:
        """Runs an importable function. The future ends in its result, its error, TimeoutError (killed at the deadline, which begins when
        it does) or OSError (the process died); BrokenProcessPool means that no process could be had."""
        with self._lock:
            if self._pid != os.getpid():
                self._pool = None  # forked: the pool and its threads stayed with the parent
            if self._pool is not None and not self._pool.active:
                self._stop()
            if self._pool is None:
                self._pool, self._pid = self._start(), os.getpid()
            return self._pool.schedule(function, args=args, timeout=deadline_s)

    def call(self, function: Callable, *args: Any, deadline_s: float) -> Any:
        """Runs a function and waits for it; in place where this already is a process that can be killed."""
        if is_worker:
            return function(*args)
        for attempt in (1, 2, 3):
            try:
                return self.submit(function, *args, deadline_s=deadline_s).result()
            except BrokenProcessPool:
                if attempt == 3:
                    raise
        raise AssertionError

    def close(self) -> None:
        """Kills them, whatever they are doing. A later submit starts new ones."""
        with self._lock:
            if self._pool is not None and self._pid == os.getpid():
                self._stop()

    def _start(self) -> Any:
        from multiprocessing import resource_tracker

        from pebble import ProcessPool

        with stop_signals_blocked():  # it lives as long as this process, and unblocks some of them here as it starts
            resource_tracker.ensure_running()
        start = (os.getpid(), self._memory_gib, self._prepare, self._prepare_args)
        return ProcessPool(self._count, initializer=_begin, initargs=start, context=_LightContext())

    def _stop(self) -> None:
        pool, self._pool = self._pool, None
        pool.stop()
        pool.join()


def _begin(parent: int, memory_gib: float | None, prepare: Callable[..., None] | None, prepare_args: tuple) -> None:
    """The first thing a worker does."""
    global is_worker
    is_worker = True
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _leave_to_parent)  # not ignored, which what a reward starts would inherit, and could not be asked to end
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; what it means is the parent's to say
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if memory_gib is not None and sys.platform == "linux":
        import resource

        limit = int(memory_gib * 2**30)
        with contextlib.suppress(ValueError, OSError):  # a lower limit is already in force
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    if prepare is not None:
        prepare(*prepare_args)


def _leave_to_parent(signum: int, frame: FrameType | None) -> None:
    """A batch system's signal to all processes is for the parent, which may want to finish and save what it has begun."""


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


class _LightProcess(SpawnProcess):
    """A spawned process that does not import the driver's __main__: that may load torch, or lack a main guard and start all over again."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        with _nameless_main(), stop_signals_blocked():
            return SpawnProcess._Popen(process_obj)

    def terminate(self) -> None:
        """At once: SIGTERM, which the pool would send first, is left to the parent."""
        self.kill()


class _LightContext(SpawnContext):
    Process = _LightProcess


@contextlib.contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """What is started within keeps signals that would end it waiting until it has handlers for them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_main_lock = threading.Lock()


@contextlib.contextmanager
def _nameless_main() -> Iterator[None]:
    """multiprocessing tells a child to import __main__ by its __spec__ or __file__; without them it doesn't."""
    main = sys.modules["__main__"]
    with _main_lock:
        kept: dict[str, Any] = {name: vars(main).pop(name) for name in ("__spec__", "__file__") if name in vars(main)}
        main.__spec__ = None
        try:
            yield
        finally:
            main.__dict__.update(kept)
