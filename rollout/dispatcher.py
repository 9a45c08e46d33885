"""One call of ``RolloutPool.sample``: requests out, samples in, and what is done about workers that die or hang in between."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ray

from rollout.errors import EngineError, WeightSyncError
from rollout.slots import DEATH, START_DEADLINE_S, Slot, cause_of, words_of
from rollout.types import Completion, Finished, Request

if TYPE_CHECKING:
    from rollout.pool import RolloutPool

Progress = Callable[[int, int], None]
POLL_S = 1.0
MAX_TRIES = 3  # of a request that an engine failed, each with another worker where there is one


class Drawing:
    """One call of ``RolloutPool.sample``: who draws what, what has come back, and what is done about those who don't answer."""

    def __init__(self, pool: RolloutPool, groups: Sequence[Sequence[Request]], deadline_s: float, progress: Progress):
        self.pool, self.deadline_s, self.progress = pool, deadline_s, progress
        self.first_version = pool.version
        self.total = sum(len(group) for group in groups)
        self.done: dict[str, Completion] = {}
        self.tries: Counter[str] = Counter()
        self.polls: dict[Any, Slot] = {}
        self.is_fixed = pool.workers.dispatch == "fixed"
        self.queue: deque[Sequence[Request]] = deque()
        for slot in pool.slots:
            slot.share, slot.unfinished = [], {}
        if self.is_fixed:
            for i, group in enumerate(groups):
                slot = pool.slots[i % len(pool.slots)]
                if slot.is_given_up:
                    self.queue.append(group)
                else:
                    slot.share += group
        else:
            self.queue.extend(sorted(groups, key=lambda group: -len(group[0].tokens) if group else 0))

    def run(self) -> dict[str, Completion]:
        for slot in self.pool.slots:
            if slot.is_live and self.is_fixed:
                self.submit(slot, slot.share)
        while len(self.done) < self.total:
            if self.pool.is_closed:
                raise EngineError("the rollout pool was closed while it was drawing samples")
            self.pool.begin_due_starts()
            self.share_out()
            starting = {slot.starting: slot for slot in self.pool.slots if slot.starting is not None}
            waiting = [*self.polls, *starting]
            if waiting:
                ray.wait(waiting, timeout=0.1 if any(s.actor is None for s in self.pool.slots) else POLL_S)
                ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)  # all that are, at once
            else:
                time.sleep(0.05)
                ready = []
            for reference in ready:
                if reference in starting:
                    self.pool.started(starting[reference])
                else:
                    self.answered(reference)
            self.look_for_hung()
            self.progress(len(self.done), self.total)
        return self.done

    def submit(self, slot: Slot, requests: Sequence[Request]) -> None:
        if not requests:
            return
        slot.unfinished |= {request.id: request for request in requests}
        slot.last_sign = time.monotonic()
        self.listen(slot, requests)

    def listen(self, slot: Slot, requests: Sequence[Request] = ()) -> None:
        """Have the slot polled, with new requests in the same call where that can be: a call costs the driver as much as many samples."""
        if slot in self.polls.values():
            slot.actor.submit.remote(list(requests))  # a death shows in the poll behind it
        elif slot.unfinished:
            self.polls[slot.actor.poll.remote(POLL_S, list(requests))] = slot

    def joined(self, slot: Slot) -> None:
        """A replacement holds the weights: with fixed dispatch it draws its predecessor's whole share, so that its batches are the same."""
        if self.is_fixed:
            again = {request.id for request in slot.share}
            self.done = {name: completion for name, completion in self.done.items() if name not in again}
            self.submit(slot, slot.share)

    def share_out(self) -> None:
        """Whole groups to whoever has least to do, as many as keep an engine full; with fixed dispatch only what a slot given up has left."""
        live = [slot for slot in self.pool.slots if slot.is_live]
        while live and self.queue:
            slot = min(live, key=lambda slot: (sum(len(r.tokens) + r.sampling.max_tokens for r in slot.unfinished.values()), slot.index))
            if len(slot.unfinished) >= 2 * self.pool.settings.max_sequences:
                return
            group = self.queue.popleft()
            slot.share += group
            self.submit(slot, group)

    def answered(self, reference: Any) -> None:
        slot = self.polls.pop(reference)
        try:
            finished: list[Finished] = ray.get(reference)
        except DEATH as error:
            self.pool.lose(slot, f"died while generating ({cause_of(error)})")
            return
        except ray.exceptions.RayTaskError as error:
            self.pool.lose(slot, f"failed while generating ({words_of(error)})")
            return
        if finished:
            slot.last_sign = time.monotonic()
        failed = []
        for end in finished:
            request = slot.unfinished.pop(end.request_id, None)
            if request is None:
                continue
            if end.completion is None:
                self.tries[request.id] += 1
                if self.tries[request.id] >= MAX_TRIES:
                    raise EngineError(f"sample {request.id} failed {MAX_TRIES} times: {end.error}")
                failed.append(request)
            else:
                self.accept(end.request_id, end.completion)
        slot.unfinished |= {request.id: request for request in failed}
        self.listen(slot, failed)

    def accept(self, name: str, completion: Completion) -> None:
        wrong = [version for _, version in completion.versions if not self.first_version <= version <= self.pool.version]
        if wrong:
            raise WeightSyncError(f"a sample came from version {wrong[0]}, but {self.pool.version} was asked for")
        self.pool.check_tokens(f"sample {name}", completion.arrays.tokens)
        self.done[name] = completion

    def look_for_hung(self) -> None:
        for slot in self.pool.slots:
            waits = slot.unfinished or slot.starting is not None
            limit = self.deadline_s if slot.starting is None else max(self.deadline_s, START_DEADLINE_S)
            if waits and slot.actor is not None and time.monotonic() - slot.last_sign > limit:
                self.pool.lose(slot, f"gave no sign for {limit:.0f} s")

    def cancel(self) -> None:
        """Engines forget what is unfinished, of which there is some only where the drawing failed."""
        for slot in self.pool.slots:
            if slot.is_live and slot.unfinished:
                slot.actor.cancel.remote(list(slot.unfinished))
            slot.unfinished = {}

    def lost(self, slot: Slot) -> None:
        """Its replacement will draw its whole share; without one, or with balanced dispatch, others draw what is left of it."""
        self.polls = {reference: other for reference, other in self.polls.items() if other is not slot}
        slot.unfinished = {}
        if self.is_fixed and not slot.is_given_up:
            return
        left = [request for request in slot.share if request.id not in self.done]
        slot.share = []
        if left and self.is_fixed:
            self.pool.say(f"  its {len(left)} samples go to other workers, so this run will not repeat bit for bit")
        groups: dict[str, list[Request]] = {}
        for request in left:
            groups.setdefault(request.id.rpartition(".")[0], []).append(request)
        self.queue.extendleft(groups.values())
