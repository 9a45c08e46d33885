"""Processes that can be killed: a pebble pool whose workers start light, end with their parent and take along what they started."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.util import Finalize
from types import FrameType
from typing import Any
from uuid import uuid4

from rewards.children import end_children_of_the_dead, end_own_children, own_children
from rewards.prints import print_to_stderr

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
        self._name, self._context = uuid4().hex, _LightContext()

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

    def end_children_of_the_dead(self) -> None:
        """Kills what those of them that have died had started and left running."""
        if self._pid == os.getpid():
            end_children_of_the_dead(self._name, self._context.pids)

    def close(self) -> None:
        """Kills them, whatever they are doing, and all that they started. A later submit starts new ones."""
        with self._lock:
            if self._pool is not None and self._pid == os.getpid():
                self._stop()

    def _start(self) -> Any:
        from multiprocessing import resource_tracker

        from pebble import ProcessPool

        with stop_signals_blocked():  # it lives as long as this process, and unblocks some of them here as it starts
            resource_tracker.ensure_running()
        start = (os.getpid(), self._name, self._memory_gib, self._prepare, self._prepare_args)
        atexit.register(_close_if_there, weakref.ref(self))
        return ProcessPool(self._count, initializer=_begin, initargs=start, context=self._context)

    def _stop(self) -> None:
        pool, self._pool = self._pool, None
        pool.stop()
        pool.join()
        end_children_of_the_dead(self._name, self._context.pids)
        self._context.pids.clear()


def _close_if_there(processes: weakref.ref[Processes]) -> None:
    if (one := processes()) is not None:
        one.close()


def _begin(parent: int, pool: str, memory_gib: float | None, prepare: Callable[..., None] | None, prepare_args: tuple) -> None:
    """The first thing a worker does."""
    global is_worker
    is_worker = True
    print_to_stderr()
    own_children(pool)
    Finalize(None, end_own_children, args=(pool,), exitpriority=0)  # where it ends by itself, because its parent is no more
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _leave_to_parent)  # not ignored, which what a reward starts would inherit, and could not be asked to end
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; what it means is the parent's to say
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    threading.Thread(target=_end_with, args=(parent, pool), daemon=True).start()
    if memory_gib is not None and sys.platform == "linux":
        import resource

        limit = int(memory_gib * 2**30)
        with contextlib.suppress(ValueError, OSError):  # a lower limit is already in force
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    if prepare is not None:
        prepare(*prepare_args)


def _leave_to_parent(signum: int, frame: FrameType | None) -> None:
    """A batch system's signal to all processes is for the parent, which may want to finish and save what it has begun."""


def _end_with(parent: int, pool: str) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    end_own_children(pool)
    os._exit(1)


class _LightProcess(SpawnProcess):
    """A spawned process that does not import the driver's __main__: that may load torch, or lack a main guard and start all over again."""

    pids: set[int]

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        with _nameless_main(), stop_signals_blocked():
            return SpawnProcess._Popen(process_obj)

    def start(self) -> None:
        super().start()
        assert self.pid is not None
        self.pids.add(self.pid)

    def terminate(self) -> None:
        """At once: SIGTERM, which the pool would send first, is left to the parent."""
        self.kill()


class _LightContext(SpawnContext):
    """Makes such processes, and keeps the ids of all that it made."""

    def __init__(self) -> None:
        super().__init__()
        self.pids: set[int] = set()

    def Process(self, *args: Any, **keywords: Any) -> _LightProcess:  # type: ignore[override]
        process = _LightProcess(*args, **keywords)
        process.pids = self.pids
        return process


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
