"""The rollout workers as the driver sees them: draw samples from a named version of the weights; replace that version, provably, everywhere.

A worker that dies or hangs is replaced, a bounded number of times, by one that first takes the weights of all others. What it had not finished
is drawn again: nothing is lost, nothing is counted twice, and no failure becomes a sample.

    dispatch "fixed"      a prompt's worker follows from its place in the step, and a lost worker's whole share is drawn again by its replacement:
                          batches, and with them bits, are those of an undisturbed run
    dispatch "balanced"   a prompt goes to the worker with least to do, long prompts first; a lost worker's unfinished ones go to the others
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray

from rollout.engine import EngineSettings
from rollout.errors import EngineError, WeightSyncError
from rollout.faults import VARIABLES
from rollout.proof import ReloadProof
from rollout.seeds import sample_seed
from rollout.types import Completion, Finished, Prompt, Request, Sampling
from rollout.vllm_engine import environment
from rollout.weights import Transport
from rollout.worker import RolloutWorker, SyncMode, SyncReceipt

Progress = Callable[[int, int], None]
Say = Callable[[str], None]
Dispatch = Literal["fixed", "balanced"]
START_DEADLINE_S = 300.0
POLL_S = 1.0
MAX_TRIES = 3  # of a request that an engine failed, each with another worker where there is one
DEATH = (ray.exceptions.RayActorError, ray.exceptions.OwnerDiedError, ray.exceptions.ObjectLostError)


@dataclass(frozen=True)
class PoolSettings:
    """How many workers, and what happens when one is lost.

    min_workers     the run stops when fewer are left that may still be restarted
    max_restarts    of each worker, over the pool's life; the n-th waits ``backoff_s`` x 2^(n - 1) before it starts
    transport       how weights come to them
    """

    workers: int = 1
    min_workers: int = 1
    max_restarts: int = 3
    backoff_s: float = 0.5
    dispatch: Dispatch = "fixed"
    transport: Transport = "host"


@dataclass(eq=False)
class _Slot:
    """A place in the pool and the actor that fills it."""

    index: int
    actor: Any = None
    starting: Any = None  # its call of ``start``, while that runs
    not_before: float = 0.0
    restarts: int = 0
    is_given_up: bool = False
    share: list[Request] = field(default_factory=list)  # all that it was given in this call of ``sample``
    unfinished: dict[str, Request] = field(default_factory=dict)
    last_sign: float = 0.0

    @property
    def is_live(self) -> bool:
        return self.actor is not None and self.starting is None and not self.is_given_up


class RolloutPool:
    """Some workers that hold the same weights. All samples of a prompt go to one worker, whose prefix cache then holds the prompt."""

    def __init__(
        self,
        engine: str,
        settings: EngineSettings,
        workers: PoolSettings = PoolSettings(),
        script: str | None = None,
        base: Path = Path("."),
        say: Say = lambda text: None,
    ):
        self.settings, self.workers, self.say = settings, workers, say
        self.version = -1
        self.mode: SyncMode = "rebuild"
        self.num_lost = 0
        self.is_closed = False
        self._engine, self._script, self._base = engine, script, base
        self._actor = ray.remote(**_actor_options(engine, settings, workers.transport))(RolloutWorker)
        self._slots = [_Slot(index) for index in range(workers.workers)]
        self._has_served = False
        self._folder: Path | None = None
        self._folder_version = -1
        self._vocabulary: int | None = None
        self._update: Any = None  # a reference to the weights synced last, for those who join
        self._drawing: _Drawing | None = None

    # ----------------------------------------------------------------------------------------------------------------- weights

    def load_model(self, folder: Path, version: int) -> None:
        """All workers hold the model of ``folder``, called ``version``. Until the next self-test, syncs rebuild the engine."""
        self._folder, self._folder_version, self._update, self.version, self.mode = folder, version, None, version, "rebuild"
        self._vocabulary = _vocabulary(folder)
        self._everywhere(lambda worker: worker.load_model.remote(folder, version), START_DEADLINE_S, f"load {folder}")

    def prove_reload(self, prompts: Sequence[Prompt]) -> ReloadProof:
        """Test in-place syncing on every worker; in place from now on where all prove it right, else by rebuilding the engine."""
        tokens = [prompt.tokens for prompt in prompts]
        proofs = self._everywhere(lambda worker: worker.prove_reload.remote(tokens), START_DEADLINE_S, "test a weight reload", again=True)
        worst = max(proofs, key=lambda proof: (not proof.in_place, proof.gap))
        self.mode = "in_place" if worst.in_place else "rebuild"
        return worst

    def sync(self, export: Callable[[], Any], version: int, deadline_s: float = 300.0) -> list[SyncReceipt]:
        """Every worker holds the exported weights, and has proved it. ``export`` returns an object reference of a WeightUpdate.

        A failed proof is retried once with a fresh export, then raised: WeightSyncError names the tensors. A worker that is lost meanwhile is
        replaced by one that starts with these weights, and proves them like the others.
        """
        for attempt in (1, 2):
            self._update, self.version = None, version  # the old weights may go before the new ones are copied
            self._update = export()
            try:
                receipts = self._everywhere(
                    lambda worker: worker.sync.remote(self._sent, self.mode), deadline_s, "sync weights", again=True
                )
                break
            except WeightSyncError:
                if attempt == 2:
                    raise
        wrong = [receipt.version for receipt in receipts if receipt.version != version]
        if wrong:
            raise WeightSyncError(f"workers hold version {wrong[0]} after a sync of version {version}")
        return receipts

    def sleep(self) -> None:
        """Engines that share GPUs with a trainer give their memory back, until ``wake``; nothing may be drawn or synced meanwhile."""
        self._everywhere(lambda worker: worker.sleep.remote(), START_DEADLINE_S, "go to sleep")

    def wake(self) -> None:
        self._everywhere(lambda worker: worker.wake.remote(), START_DEADLINE_S, "wake up")

    def add_worker(self) -> None:
        """One more worker, which draws as soon as it holds the weights of the others."""
        self._slots.append(_Slot(len(self._slots)))
        self._begin_start(self._slots[-1])

    @property
    def num_live(self) -> int:
        return sum(slot.is_live for slot in self._slots)

    # ----------------------------------------------------------------------------------------------------------------- samples

    def sample(
        self,
        prompts: Sequence[Prompt],
        num_samples: int,
        sampling: Sampling,
        *,
        seed: int,
        step: int,
        deadline_s: float,
        progress: Progress,
    ) -> list[list[Completion]]:
        """``num_samples`` completions of each prompt, in the order of ``prompts``: result[i][j] is sample j of prompt i.

        What is drawn follows from (seed, step, prompt id, j). A worker that finishes nothing for ``deadline_s`` is taken for hung and replaced.
        ``progress`` is told about once a second how many are there, of how many; it may sync newer weights, which the unfinished samples then go
        on with; and what it raises ends the drawing.
        Raises EngineError where too few workers are left, a request fails MAX_TRIES times, or a token lies outside the vocabulary.
        """
        self._check_prompts(prompts, sampling)
        requests: list[list[Request]] = []
        seen: Counter[str] = Counter()
        for i, prompt in enumerate(prompts):
            first = num_samples * seen[prompt.id]  # a prompt that comes twice in a step is not to be answered twice alike
            seen[prompt.id] += 1
            seeds = [sample_seed(seed, step, prompt.id, first + j) for j in range(num_samples)]
            requests.append([Request(f"{step}.{i}.{j}", prompt.tokens, sampling, seeds[j]) for j in range(num_samples)])
        self._drawing = _Drawing(self, requests, deadline_s, progress)
        try:
            done = self._drawing.run()
        finally:
            self._drawing.cancel()
            self._drawing = None
        return [[done[request.id] for request in group] for group in requests]

    def close(self) -> None:
        self.is_closed = True
        for slot in self._slots:
            if slot.actor is not None:
                ray.kill(slot.actor)
        self._slots = []

    def _check_prompts(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        longest = max((len(prompt.tokens) for prompt in prompts), default=0) + sampling.max_tokens
        if longest > self.settings.max_tokens:
            raise EngineError(
                f"a prompt and its completion may reach {longest} tokens, but the engine was built for {self.settings.max_tokens}"
            )
        for prompt in prompts:
            self._check_tokens(f"prompt {prompt.id!r}", np.array(prompt.tokens, np.int64))

    def _check_tokens(self, whose: str, tokens: np.ndarray) -> None:
        if self._vocabulary is None:
            return
        known = (tokens >= 0) & (tokens < self._vocabulary)
        if not known.all():
            raise EngineError(f"{whose} holds the token id {tokens[~known][0]}, and the model's vocabulary has {self._vocabulary}")

    # ----------------------------------------------------------------------------------------------------------------- workers

    @property
    def _sent(self) -> Any:
        """The weights synced last, as workers take them."""
        return self._update if self._update is None or self.workers.transport == "host" else [self._update]

    def _begin_start(self, slot: _Slot) -> None:
        """An actor for the slot, told to hold what all hold. It draws nothing before it has said that it does."""
        slot.actor = self._actor.remote(self._engine, self.settings, self._script, self._base, slot.index)
        if self._folder is not None:
            slot.starting = slot.actor.start.remote(self._folder, self._folder_version, self._sent, self.mode)
            slot.last_sign = time.monotonic()

    def _started(self, slot: _Slot) -> None:
        """The slot's start is over: it is live, or lost once more."""
        reference, slot.starting = slot.starting, None
        try:
            version = ray.get(reference)
        except DEATH as error:
            self._lose(slot, f"died while starting ({_cause(error)})")
        except ray.exceptions.RayTaskError as error:
            if not self._has_served:
                raise EngineError(f"a rollout worker could not load {self._folder}: {_words(error)}") from error
            self._lose(slot, f"failed to start ({_words(error)})")
        else:
            self._has_served = True
            if version != self.version:  # a sync came while it started
                slot.starting = slot.actor.start.remote(self._folder, self._folder_version, self._sent, self.mode)
            elif self._drawing is not None:
                self._drawing.joined(slot)

    def _lose(self, slot: _Slot, why: str) -> None:
        """Give up the slot's actor, and begin another after a while, or give up the slot. Raises EngineError where too few are left."""
        ray.kill(slot.actor)
        self.num_lost += 1
        slot.actor, slot.starting = None, None
        slot.restarts += 1
        if slot.restarts > self.workers.max_restarts:
            slot.is_given_up = True
            self.say(f"  rollout worker {slot.index} {why}; given up after {self.workers.max_restarts} restarts")
        else:
            slot.not_before = time.monotonic() + self.workers.backoff_s * 2 ** (slot.restarts - 1)
            self.say(f"  rollout worker {slot.index} {why}; restart {slot.restarts} of {self.workers.max_restarts}")
        if self._drawing is not None:
            self._drawing.lost(slot)
        left = sum(not s.is_given_up for s in self._slots)
        if left < self.workers.min_workers:
            raise EngineError(
                f"{left} rollout worker{'s are' if left != 1 else ' is'} left and rollout.min_workers is {self.workers.min_workers}; the last one "
                f"lost, worker {slot.index}, {why}; look into what killed it, raise rollout.max_restarts, and run again: the run resumes"
            )

    def _begin_due_starts(self) -> None:
        for slot in self._slots:
            if slot.actor is None and not slot.is_given_up and time.monotonic() >= slot.not_before:
                self._begin_start(slot)

    def _everywhere(self, call: Callable[[Any], Any], deadline_s: float, what: str, again: bool = False) -> list[Any]:
        """Every worker's answer. One that dies meanwhile, or has not answered within ``deadline_s``, is replaced by one that starts with the same
        weights, and has no answer to give; ``again`` asks the replacement too. Raises EngineError where a call fails or too few are left."""
        answers: dict[int, Any] = {}
        asked: dict[Any, _Slot] = {}
        told: set[int] = set()
        for slot in self._slots:
            if slot.actor is None and slot.restarts == 0 and not slot.is_given_up:
                self._begin_start(slot)  # its start is its answer
        while True:
            self._begin_due_starts()
            for slot in self._slots:
                if slot.is_live and slot.index not in told:
                    asked[call(slot.actor)] = slot
                    slot.last_sign = time.monotonic()
                    told.add(slot.index)
            starting = {slot.starting: slot for slot in self._slots if slot.starting is not None}
            owed = [slot for slot in self._slots if slot.actor is None and not slot.is_given_up]
            if not asked and not starting and not owed:
                return [answers[index] for index in sorted(answers)]
            if not asked and not starting:
                time.sleep(0.05)
                continue
            ready, _ = ray.wait([*asked, *starting], timeout=0.1 if owed else min(1.0, deadline_s))
            for reference in ready:
                if reference in starting:
                    slot = starting[reference]
                    self._started(slot)
                    if not again:
                        told.add(slot.index)
                    continue
                slot = asked.pop(reference)
                try:
                    answers[slot.index] = ray.get(reference)
                except DEATH as error:
                    self._lose(slot, f"died when it was to {what} ({_cause(error)})")
                    if again:
                        told.discard(slot.index)
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, WeightSyncError):
                        raise WeightSyncError(str(error.cause)) from None
                    raise EngineError(f"a rollout worker failed to {what}: {_words(error)}") from error
            hung = {reference: slot for reference, slot in asked.items() if time.monotonic() - slot.last_sign > deadline_s}
            for reference, slot in hung.items():
                del asked[reference]
                self._lose(slot, f"did not {what} within {deadline_s:.0f} s")
                if again:
                    told.discard(slot.index)
            for slot in starting.values():
                if slot.starting is not None and time.monotonic() - slot.last_sign > START_DEADLINE_S:
                    self._lose(slot, f"did not start within {START_DEADLINE_S:.0f} s")


class _Drawing:
    """One call of ``RolloutPool.sample``: who draws what, what has come back, and what is done about those who don't answer."""

    def __init__(self, pool: RolloutPool, groups: Sequence[Sequence[Request]], deadline_s: float, progress: Progress):
        self.pool, self.deadline_s, self.progress = pool, deadline_s, progress
        self.first_version = pool.version
        self.total = sum(len(group) for group in groups)
        self.done: dict[str, Completion] = {}
        self.tries: Counter[str] = Counter()
        self.polls: dict[Any, _Slot] = {}
        self.is_fixed = pool.workers.dispatch == "fixed"
        self.queue: deque[Sequence[Request]] = deque()
        for slot in pool._slots:
            slot.share, slot.unfinished = [], {}
        if self.is_fixed:
            for i, group in enumerate(groups):
                slot = pool._slots[i % len(pool._slots)]
                if slot.is_given_up:
                    self.queue.append(group)
                else:
                    slot.share += group
        else:
            self.queue.extend(sorted(groups, key=lambda group: -len(group[0].tokens) if group else 0))

    def run(self) -> dict[str, Completion]:
        for slot in self.pool._slots:
            if slot.is_live and self.is_fixed:
                self.submit(slot, slot.share)
        while len(self.done) < self.total:
            if self.pool.is_closed:
                raise EngineError("the rollout pool was closed while it was drawing samples")
            self.pool._begin_due_starts()
            self.share_out()
            starting = {slot.starting: slot for slot in self.pool._slots if slot.starting is not None}
            waiting = [*self.polls, *starting]
            if waiting:
                ray.wait(waiting, timeout=0.1 if any(s.actor is None for s in self.pool._slots) else POLL_S)
                ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)  # all that are, at once
            else:
                time.sleep(0.05)
                ready = []
            for reference in ready:
                if reference in starting:
                    self.pool._started(starting[reference])
                else:
                    self.answered(reference)
            self.look_for_hung()
            self.progress(len(self.done), self.total)
        return self.done

    def submit(self, slot: _Slot, requests: Sequence[Request]) -> None:
        if not requests:
            return
        slot.unfinished |= {request.id: request for request in requests}
        slot.last_sign = time.monotonic()
        self.listen(slot, requests)

    def listen(self, slot: _Slot, requests: Sequence[Request] = ()) -> None:
        """Have the slot polled, with new requests in the same call where that can be: a call costs the driver as much as many samples."""
        if slot in self.polls.values():
            slot.actor.submit.remote(list(requests))  # a death shows in the poll behind it
        elif slot.unfinished:
            self.polls[slot.actor.poll.remote(POLL_S, list(requests))] = slot

    def joined(self, slot: _Slot) -> None:
        """A replacement holds the weights: with fixed dispatch it draws its predecessor's whole share, so that its batches are the same."""
        if self.is_fixed:
            again = {request.id for request in slot.share}
            self.done = {name: completion for name, completion in self.done.items() if name not in again}
            self.submit(slot, slot.share)

    def share_out(self) -> None:
        """Whole groups to whoever has least to do, as many as keep an engine full; with fixed dispatch only what a slot given up has left."""
        live = [slot for slot in self.pool._slots if slot.is_live]
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
            self.pool._lose(slot, f"died while generating ({_cause(error)})")
            return
        except ray.exceptions.RayTaskError as error:
            self.pool._lose(slot, f"failed while generating ({_words(error)})")
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
        self.pool._check_tokens(f"sample {name}", completion.arrays.tokens)
        self.done[name] = completion

    def look_for_hung(self) -> None:
        for slot in self.pool._slots:
            waits = slot.unfinished or slot.starting is not None
            limit = self.deadline_s if slot.starting is None else max(self.deadline_s, START_DEADLINE_S)
            if waits and slot.actor is not None and time.monotonic() - slot.last_sign > limit:
                self.pool._lose(slot, f"gave no sign for {limit:.0f} s")

    def cancel(self) -> None:
        """Engines forget what is unfinished, of which there is some only where the drawing failed."""
        for slot in self.pool._slots:
            if slot.is_live and slot.unfinished:
                slot.actor.cancel.remote(list(slot.unfinished))
            slot.unfinished = {}

    def lost(self, slot: _Slot) -> None:
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


def _cause(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _words(error: ray.exceptions.RayTaskError) -> str:
    """What went wrong in a worker, in its own words where they are meant to be read."""
    return str(error.cause) if isinstance(error.cause, EngineError) else repr(error.cause)


def _vocabulary(folder: Path) -> int | None:
    """How many token ids the model of ``folder`` knows; None where its config doesn't say."""
    file = folder / "config.json"
    if not file.exists():
        return None
    config = json.loads(file.read_text(encoding="utf-8"))
    return config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")


def _actor_options(engine: str, settings: EngineSettings, transport: Transport = "host") -> dict[str, Any]:
    """Workers and trainer take turns on a CPU, so they reserve none: an actor that asks for more than there is would wait for ever, silently."""
    variables = environment(settings) if engine == "vllm" else {"OMP_NUM_THREADS": str(settings.num_threads)}
    variables |= {name: os.environ[name] for name in VARIABLES if name in os.environ}
    return {
        "num_cpus": 0,
        "num_gpus": settings.gpu_share,
        "runtime_env": {"env_vars": variables},
        "max_restarts": 0,
        "enable_tensor_transport": transport != "host",
    }
