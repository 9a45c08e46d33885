"""The dispatch of one ``RolloutPool.sample`` call: which worker generates what, and who takes over the work of a worker that is lost."""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray

from rollout.errors import EngineError, WeightSyncError
from rollout.supervisor import WorkerLostError, WorkerSlot, WorkerSupervisor, cause_of
from rollout.types import Completion, Finished, Request

Progress = Callable[[int, int], None]
POLL_S = 1.0
MAX_TRIES = 3  # of a request that an engine failed


class Dispatch:
    """Hands out groups of requests, collects their completions, and hands out again what a lost worker leaves unfinished.

    is_fixed       a group's worker follows from the group's index, and a replacement generates its predecessor's whole share again
    max_sequences  how many requests an engine generates at once
    deadline_s     a worker that finishes nothing for this long counts as hung
    progress       called about once a second with the numbers of finished and of all samples
    version        the current weights version, which may change while samples are generated
    check_tokens   raises EngineError for token ids that the model does not have
    """

    def __init__(
        self,
        supervisor: WorkerSupervisor,
        groups: Sequence[Sequence[Request]],
        *,
        is_fixed: bool,
        max_sequences: int,
        deadline_s: float,
        progress: Progress,
        version: Callable[[], int],
        check_tokens: Callable[[str, np.ndarray], None],
    ):
        self.supervisor, self.is_fixed, self.max_sequences = supervisor, is_fixed, max_sequences
        self.deadline_s, self.progress, self.version, self.check_tokens = deadline_s, progress, version, check_tokens
        self.first_version = version()
        self.total = sum(len(group) for group in groups)
        self.done: dict[str, Completion] = {}
        self.tries: Counter[str] = Counter()
        self.polls: dict[Any, WorkerSlot] = {}
        self.shares: dict[WorkerSlot, list[Request]] = defaultdict(list)  # everything that a slot was given
        self.unfinished: dict[WorkerSlot, dict[str, Request]] = defaultdict(dict)
        self.queue: deque[Sequence[Request]] = deque()
        if not is_fixed:
            self.queue.extend(sorted(groups, key=lambda group: -len(group[0].tokens) if group else 0))  # long prompts first
            return
        for i, group in enumerate(groups):
            slot = supervisor.slots[i % len(supervisor.slots)]
            if slot.is_given_up:
                self.queue.append(group)
            else:
                self.shares[slot] += group

    def run(self) -> dict[str, Completion]:
        """The completion of every request, by request id. What ``progress`` raises ends the dispatch."""
        self.supervisor.observer = self
        try:
            self._run()
        finally:
            self._cancel_unfinished()
            self.supervisor.observer = None
        return self.done

    def worker_started(self, slot: WorkerSlot) -> None:
        """With fixed dispatch the replacement generates the whole share again, so that its batches, and so its bits, are the same."""
        if self.is_fixed:
            for request in self.shares[slot]:
                self.done.pop(request.id, None)
            self._submit(slot, self.shares[slot])

    def worker_lost(self, slot: WorkerSlot) -> None:
        """Queue what is left of the slot's share, unless a replacement will generate all of it again."""
        self.polls = {reference: other for reference, other in self.polls.items() if other is not slot}
        self.unfinished[slot] = {}
        if self.is_fixed and not slot.is_given_up:
            return
        left = [request for request in self.shares.pop(slot, []) if request.id not in self.done]
        if left and self.is_fixed:
            self.supervisor.say(f"  its {len(left)} samples go to other workers, so this run is not bit-for-bit reproducible")
        groups: dict[str, list[Request]] = {}
        for request in left:
            groups.setdefault(request.id.rpartition(".")[0], []).append(request)
        self.queue.extendleft(groups.values())

    def _run(self) -> None:
        if self.is_fixed:
            for slot in self.supervisor.slots:
                if slot.is_live:
                    self._submit(slot, self.shares[slot])
        while len(self.done) < self.total:
            if self.supervisor.is_closed:
                raise EngineError("the rollout pool was closed while it was generating samples")
            self._hand_out()
            for reference in self.supervisor.wait(self.polls):
                self._collect(reference)
            busy = [slot for slot, requests in self.unfinished.items() if requests]
            self.supervisor.replace_hung(busy, self.deadline_s, f"finished no sample within {self.deadline_s:.0f} s")
            self.progress(len(self.done), self.total)

    def _submit(self, slot: WorkerSlot, requests: Sequence[Request]) -> None:
        if not requests:
            return
        self.unfinished[slot] |= {request.id: request for request in requests}
        slot.last_sign = time.monotonic()
        self._poll(slot, requests)

    def _poll(self, slot: WorkerSlot, requests: Sequence[Request] = ()) -> None:
        """Poll the slot. New requests travel in the same call if possible: a call costs the driver as much as many samples."""
        if slot in self.polls.values():
            slot.actor.submit.remote(list(requests))  # if the worker dies, the poll in progress shows it
        elif self.unfinished[slot]:
            self.polls[slot.actor.poll.remote(POLL_S, list(requests))] = slot

    def _hand_out(self) -> None:
        """Give queued groups, whole, to the workers with the least to do, as long as their engines are not full."""
        live = [slot for slot in self.supervisor.slots if slot.is_live]
        while live and self.queue:
            slot = min(live, key=lambda slot: (self._num_tokens_to_do(slot), slot.index))
            if len(self.unfinished[slot]) >= 2 * self.max_sequences:
                return
            group = self.queue.popleft()
            self.shares[slot] += group
            self._submit(slot, group)

    def _num_tokens_to_do(self, slot: WorkerSlot) -> int:
        return sum(len(request.tokens) + request.sampling.max_tokens for request in self.unfinished[slot].values())

    def _collect(self, reference: Any) -> None:
        """Take the result of a poll: accept completions, retry failed requests, and poll again."""
        slot = self.polls.pop(reference)
        try:
            finished: list[Finished] = self.supervisor.result(slot, reference, "generating")
        except WorkerLostError:
            return
        except ray.exceptions.RayTaskError as error:
            self.supervisor.replace(slot, f"failed while generating ({cause_of(error)})")
            return
        if finished:
            slot.last_sign = time.monotonic()
        failed = []
        for end in finished:
            request = self.unfinished[slot].pop(end.request_id, None)
            if request is None:
                continue
            if end.completion is not None:
                self._accept(request.id, end.completion)
                continue
            self.tries[request.id] += 1
            if self.tries[request.id] >= MAX_TRIES:
                raise EngineError(f"sample {request.id} failed {MAX_TRIES} times: {end.error}")
            failed.append(request)
        self.unfinished[slot] |= {request.id: request for request in failed}
        self._poll(slot, failed)

    def _accept(self, request_id: str, completion: Completion) -> None:
        wrong = [version for _, version in completion.versions if not self.first_version <= version <= self.version()]
        if wrong:
            raise WeightSyncError(f"sample {request_id} was generated by weights version {wrong[0]}, but {self.version()} was asked for")
        self.check_tokens(f"sample {request_id}", completion.tokens)
        self.done[request_id] = completion

    def _cancel_unfinished(self) -> None:
        """Make the engines forget what is unfinished, which is anything only if the dispatch failed."""
        for slot in self.supervisor.slots:
            if slot.is_live and self.unfinished[slot]:
                slot.actor.cancel.remote(list(self.unfinished[slot]))
