"""The supervisor of a pool's workers: it starts them, notices which died or hang, and replaces each a bounded number of times."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

import ray

from rollout.errors import EngineError, WeightSyncError

START_DEADLINE_S = 300.0
CHECK_S = 1.0  # how often callers look for hung workers
RESTART_CHECK_S = 0.1  # the same while a replacement waits for its back-off to pass
WORKER_DEATHS = (
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,  # Ray killed it before the kernel would have
    ray.exceptions.OwnerDiedError,
    ray.exceptions.ObjectLostError,
)


class WorkerLostError(Exception):
    """The worker of a call died. It has already been replaced or given up."""


@dataclass(eq=False)
class WorkerSlot:
    """A place in the pool and the actor that currently fills it."""

    index: int
    actor: Any = None
    starting: Any = None  # the reference of its ``start`` call while that runs
    not_before: float = 0.0  # when its next actor may start
    restarts: int = 0
    is_given_up: bool = False
    last_sign: float = 0.0  # when it was last given work or finished some

    @property
    def is_live(self) -> bool:
        return self.actor is not None and self.starting is None and not self.is_given_up


class WorkerObserver(Protocol):
    """What a dispatch in progress is told about the workers."""

    def worker_started(self, slot: WorkerSlot) -> None:
        """The slot has a new worker, which holds the current weights."""

    def worker_lost(self, slot: WorkerSlot) -> None:
        """The slot's worker is gone, and with it everything that it had not finished."""


class WorkerSupervisor:
    """Keeps the slots of a pool filled with workers that hold the current weights.

    make_actor    creates the actor for the slot of this index
    start_actor   tells a new actor to load the current weights; returns the reference of that call, whose result is the version it holds
    version       the version that every worker must hold
    min_workers   the run stops when fewer slots are left that may still be restarted
    max_restarts  of each slot; the n-th waits ``backoff_s`` x 2^(n - 1)
    """

    def __init__(
        self,
        num_workers: int,
        *,
        make_actor: Callable[[int], Any],
        start_actor: Callable[[Any], Any],
        version: Callable[[], int],
        min_workers: int,
        max_restarts: int,
        backoff_s: float,
        say: Callable[[str], None],
    ):
        self.slots = [WorkerSlot(index) for index in range(num_workers)]
        self.num_lost = 0
        self.is_closed = False
        self.observer: WorkerObserver | None = None
        self.say = say
        self._make_actor, self._start_actor, self._version = make_actor, start_actor, version
        self._min_workers, self._max_restarts, self._backoff_s = min_workers, max_restarts, backoff_s
        self._has_served = False

    def wait(self, calls: Collection[Any], timeout_s: float = CHECK_S) -> list[Any]:
        """Start the workers whose back-off has passed, then wait for ``calls`` and for starts. Returns the calls that have finished, if any."""
        waiting_slots = [slot for slot in self.slots if slot.actor is None and not slot.is_given_up]
        for slot in waiting_slots:
            if time.monotonic() >= slot.not_before:
                slot.actor = self._make_actor(slot.index)
                self._begin_start(slot)
        starting = {slot.starting: slot for slot in self.slots if slot.starting is not None}
        references = [*calls, *starting]
        if not references:
            time.sleep(0.05)
            return []
        ray.wait(references, timeout=RESTART_CHECK_S if any(slot.actor is None for slot in waiting_slots) else timeout_s)
        ready, _ = ray.wait(references, num_returns=len(references), timeout=0)  # everything that is ready, at once
        for reference in ready:
            if reference in starting:
                self._finish_start(starting[reference])
        return [reference for reference in ready if reference not in starting]

    def result(self, slot: WorkerSlot, call: Any, doing: str) -> Any:
        """The result of a finished call. If the worker died, it is replaced and WorkerLostError is raised."""
        try:
            return ray.get(call)
        except WORKER_DEATHS as error:
            self.replace(slot, f"died while {doing} ({_first_line(error)})")
            raise WorkerLostError from error

    def replace(self, slot: WorkerSlot, why: str) -> None:
        """Kill the slot's actor and schedule another one, or give the slot up. Raises EngineError if too few slots are left."""
        ray.kill(slot.actor)
        self.num_lost += 1
        slot.actor, slot.starting = None, None
        slot.restarts += 1
        if slot.restarts > self._max_restarts:
            slot.is_given_up = True
            self.say(f"  rollout worker {slot.index} {why}; given up after {self._max_restarts} restarts")
        else:
            slot.not_before = time.monotonic() + self._backoff_s * 2 ** (slot.restarts - 1)
            self.say(f"  rollout worker {slot.index} {why}; restart {slot.restarts} of {self._max_restarts}")
        if self.observer is not None:
            self.observer.worker_lost(slot)
        num_left = sum(not other.is_given_up for other in self.slots)
        if num_left < self._min_workers:
            raise EngineError(
                f"{num_left} rollout worker{'s are' if num_left != 1 else ' is'} left and rollout.min_workers is {self._min_workers}; "
                f"the last one lost, worker {slot.index}, {why}\n"
                "Find out what killed it, or raise rollout.max_restarts; the same command then resumes the run."
            )

    def replace_hung(self, busy: Collection[WorkerSlot], deadline_s: float, why: str) -> list[WorkerSlot]:
        """Replace the workers among ``busy`` that gave no sign for ``deadline_s``, and those whose start takes too long. Returns the former."""
        start_deadline_s = max(deadline_s, START_DEADLINE_S)
        now, hung = time.monotonic(), []
        for slot in self.slots:
            if slot.starting is not None and now - slot.last_sign > start_deadline_s:
                self.replace(slot, f"did not start within {start_deadline_s:.0f} s")
            elif slot.is_live and slot in busy and now - slot.last_sign > deadline_s:
                hung.append(slot)
                self.replace(slot, why)
        return hung

    def call_all(
        self, call: Callable[[Any], Any], doing: str, deadline_s: float | None = None, *, ask_replacements: bool = False
    ) -> list[Any]:
        """Call every worker and return the results, in the order of the slots.

        A worker that dies, or that has no result within ``deadline_s`` (START_DEADLINE_S by default), is replaced by one that starts with the
        current weights. The replacement is called too if ``ask_replacements``; otherwise its start is enough.
        Raises WeightSyncError if a worker raised one, and EngineError if a call failed otherwise or too few workers are left.
        """
        limit_s = START_DEADLINE_S if deadline_s is None else deadline_s
        results: dict[WorkerSlot, Any] = {}
        calls: dict[Any, WorkerSlot] = {}
        called = set() if ask_replacements else {slot for slot in self.slots if not slot.is_live}
        while True:
            for slot in self.slots:
                if slot.is_live and slot not in called:
                    calls[call(slot.actor)] = slot
                    slot.last_sign = time.monotonic()
                    called.add(slot)
            if not calls and all(slot.is_live or slot.is_given_up for slot in self.slots):
                return [results[slot] for slot in self.slots if slot in results]
            lost = []
            for reference in self.wait(calls, min(CHECK_S, limit_s)):
                slot = calls.pop(reference)
                try:
                    results[slot] = self.result(slot, reference, doing)
                    slot.last_sign = time.monotonic()
                except WorkerLostError:
                    lost.append(slot)
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, WeightSyncError):
                        raise WeightSyncError(str(error.cause)) from None
                    raise EngineError(f"a rollout worker failed while {doing}: {cause_of(error)}") from error
            lost += self.replace_hung(calls.values(), limit_s, f"did not finish {doing} within {limit_s:.0f} s")
            calls = {reference: slot for reference, slot in calls.items() if slot not in lost}
            if ask_replacements:
                called -= set(lost)

    def close(self) -> None:
        self.is_closed = True
        for slot in self.slots:
            if slot.actor is not None:
                ray.kill(slot.actor)
        self.slots = []

    def _begin_start(self, slot: WorkerSlot) -> None:
        slot.starting = self._start_actor(slot.actor)
        slot.last_sign = time.monotonic()

    def _finish_start(self, slot: WorkerSlot) -> None:
        """The slot's start has ended: its worker is live, must take weights that were synced meanwhile, or is lost."""
        reference, slot.starting = slot.starting, None
        try:
            version = self.result(slot, reference, "starting")
        except WorkerLostError:
            return
        except ray.exceptions.RayTaskError as error:
            if not self._has_served:  # the first worker cannot start either, so restarts would not help
                raise EngineError(f"a rollout worker could not start: {cause_of(error)}") from error
            self.replace(slot, f"failed to start ({cause_of(error)})")
            return
        self._has_served = True
        if version != self._version():
            self._begin_start(slot)
        elif self.observer is not None:
            self.observer.worker_started(slot)


def cause_of(error: ray.exceptions.RayTaskError) -> str:
    """What a worker raised: its message if that is meant for users, otherwise the exception with its type."""
    return str(error.cause) if isinstance(error.cause, EngineError) else repr(error.cause)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
