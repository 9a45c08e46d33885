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
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray

from rollout.dispatcher import Drawing, Progress
from rollout.engines.base import EngineSettings
from rollout.engines.vllm import environment
from rollout.errors import EngineError, WeightSyncError
from rollout.faults import VARIABLES
from rollout.seeds import sample_seed
from rollout.slots import DEATH, START_DEADLINE_S, Slot, cause_of, words_of
from rollout.types import Completion, Prompt, Request, Sampling
from rollout.weight_sync.proof import ReloadProof
from rollout.weight_sync.weights import Transport
from rollout.worker import RolloutWorker, SyncMode, SyncReceipt

Say = Callable[[str], None]
Dispatch = Literal["fixed", "balanced"]


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


class RolloutPool:
    """Some workers that hold the same weights. All samples of a prompt go to one worker, whose prefix cache then holds the prompt.

    ``turn`` is called before anything that engines must be awake for (``sleep``).
    """

    def __init__(
        self,
        engine: str,
        settings: EngineSettings,
        workers: PoolSettings = PoolSettings(),
        script: str | None = None,
        base: Path = Path("."),
        say: Say = lambda text: None,
        turn: Callable[[], None] = lambda: None,
    ):
        self.settings, self.workers, self.say, self._turn = settings, workers, say, turn
        self.version = -1
        self.mode: SyncMode = "rebuild"
        self.num_lost = 0
        self.memory_bytes: int | None = None  # main memory of the largest worker at the last sync
        self.is_closed, self.is_asleep = False, False
        self._engine, self._script, self._base = engine, script, base
        self._actor = ray.remote(**_actor_options(engine, settings, workers.transport))(RolloutWorker)
        self.slots = [Slot(index) for index in range(workers.workers)]
        self._has_served = False
        self._folder: Path | None = None
        self._folder_version = -1
        self._vocabulary: int | None = None
        self._update: Any = None  # a reference to the weights synced last, for those who join
        self._drawing: Drawing | None = None

    # ----------------------------------------------------------------------------------------------------------------- weights

    def load_model(self, folder: Path, version: int) -> None:
        """All workers hold the model of ``folder``, called ``version``. Until the next self-test, syncs rebuild the engine."""
        self._turn()
        self._folder, self._folder_version, self._update, self.version, self.mode = folder, version, None, version, "rebuild"
        self._vocabulary = _vocabulary(folder)
        self._everywhere(lambda worker: worker.load_model.remote(folder, version), START_DEADLINE_S, f"load {folder}")

    def prove_reload(self, prompts: Sequence[Prompt]) -> ReloadProof:
        """Test in-place syncing on every worker; in place from now on where all prove it right, else by rebuilding the engine."""
        self._turn()
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
            self._turn()
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
        self.memory_bytes = max(receipt.memory_bytes for receipt in receipts)
        return receipts

    def sleep(self) -> None:
        """Engines give their GPU's memory back, until ``wake``; nothing may be drawn or synced meanwhile."""
        if not self.is_asleep and self._folder is not None:
            self._everywhere(lambda worker: worker.sleep.remote(), START_DEADLINE_S, "go to sleep", again=True)
            self.is_asleep = True

    def wake(self) -> None:
        if self.is_asleep:
            self._everywhere(lambda worker: worker.wake.remote(), START_DEADLINE_S, "wake up")
            self.is_asleep = False

    def add_worker(self) -> None:
        """One more worker, which draws as soon as it holds the weights of the others."""
        self.slots.append(Slot(len(self.slots)))
        self._begin_start(self.slots[-1])

    @property
    def num_live(self) -> int:
        return sum(slot.is_live for slot in self.slots)

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
        Raises EngineError where too few workers are left, a request fails three times, or a token lies outside the vocabulary.
        """
        self._check_prompts(prompts, sampling)
        self._turn()
        requests: list[list[Request]] = []
        seen: Counter[str] = Counter()
        for i, prompt in enumerate(prompts):
            first = num_samples * seen[prompt.id]  # a prompt that comes twice in a step is not to be answered twice alike
            seen[prompt.id] += 1
            seeds = [sample_seed(seed, step, prompt.id, first + j) for j in range(num_samples)]
            requests.append([Request(f"{step}.{i}.{j}", prompt.tokens, sampling, seeds[j]) for j in range(num_samples)])
        self._drawing = Drawing(self, requests, deadline_s, progress)
        try:
            done = self._drawing.run()
        finally:
            self._drawing.cancel()
            self._drawing = None
        return [[done[request.id] for request in group] for group in requests]

    def close(self) -> None:
        self.is_closed = True
        for slot in self.slots:
            if slot.actor is not None:
                ray.kill(slot.actor)
        self.slots = []

    def _check_prompts(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        longest = max((len(prompt.tokens) for prompt in prompts), default=0) + sampling.max_tokens
        if longest > self.settings.max_tokens:
            raise EngineError(
                f"a prompt and its completion may reach {longest} tokens, but the engine was built for {self.settings.max_tokens}"
            )
        for prompt in prompts:
            self.check_tokens(f"prompt {prompt.id!r}", np.array(prompt.tokens, np.int64))

    def check_tokens(self, whose: str, tokens: np.ndarray) -> None:
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

    def _begin_start(self, slot: Slot) -> None:
        """An actor for the slot, told to hold what all hold. It draws nothing before it has said that it does."""
        slot.actor = self._actor.remote(self._engine, self.settings, self._script, self._base, slot.index)
        if self._folder is not None:
            slot.starting = slot.actor.start.remote(self._folder, self._folder_version, self._sent, self.mode)
            slot.last_sign = time.monotonic()

    def started(self, slot: Slot) -> None:
        """The slot's start is over: it is live, or lost once more."""
        reference, slot.starting = slot.starting, None
        try:
            version = ray.get(reference)
        except DEATH as error:
            self.lose(slot, f"died while starting ({cause_of(error)})")
        except ray.exceptions.RayTaskError as error:
            if not self._has_served:
                raise EngineError(f"a rollout worker could not load {self._folder}: {words_of(error)}") from error
            self.lose(slot, f"failed to start ({words_of(error)})")
        else:
            self._has_served = True
            if version != self.version:  # a sync came while it started
                slot.starting = slot.actor.start.remote(self._folder, self._folder_version, self._sent, self.mode)
            elif self._drawing is not None:
                self._drawing.joined(slot)

    def lose(self, slot: Slot, why: str) -> None:
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
        left = sum(not s.is_given_up for s in self.slots)
        if left < self.workers.min_workers:
            raise EngineError(
                f"{left} rollout worker{'s are' if left != 1 else ' is'} left and rollout.min_workers is {self.workers.min_workers}; the last one "
                f"lost, worker {slot.index}, {why}; look into what killed it, raise rollout.max_restarts, and run again: the run resumes"
            )

    def begin_due_starts(self) -> None:
        for slot in self.slots:
            if slot.actor is None and not slot.is_given_up and time.monotonic() >= slot.not_before:
                self._begin_start(slot)

    def _everywhere(self, call: Callable[[Any], Any], deadline_s: float, what: str, again: bool = False) -> list[Any]:
        """Every worker's answer. One that dies meanwhile, or has not answered within ``deadline_s``, is replaced by one that starts with the same
        weights, and has no answer to give; ``again`` asks the replacement too. Raises EngineError where a call fails or too few are left."""
        answers: dict[int, Any] = {}
        asked: dict[Any, Slot] = {}
        told: set[int] = set()
        for slot in self.slots:
            if slot.actor is None and slot.restarts == 0 and not slot.is_given_up:
                self._begin_start(slot)  # its start is its answer
        while True:
            self.begin_due_starts()
            for slot in self.slots:
                if slot.is_live and slot.index not in told:
                    asked[call(slot.actor)] = slot
                    slot.last_sign = time.monotonic()
                    told.add(slot.index)
            starting = {slot.starting: slot for slot in self.slots if slot.starting is not None}
            owed = [slot for slot in self.slots if slot.actor is None and not slot.is_given_up]
            if not asked and not starting and not owed:
                return [answers[index] for index in sorted(answers)]
            if not asked and not starting:
                time.sleep(0.05)
                continue
            ready, _ = ray.wait([*asked, *starting], timeout=0.1 if owed else min(1.0, deadline_s))
            for reference in ready:
                if reference in starting:
                    slot = starting[reference]
                    self.started(slot)
                    if not again:
                        told.add(slot.index)
                    continue
                slot = asked.pop(reference)
                try:
                    answers[slot.index] = ray.get(reference)
                except DEATH as error:
                    self.lose(slot, f"died when it was to {what} ({cause_of(error)})")
                    if again:
                        told.discard(slot.index)
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, WeightSyncError):
                        raise WeightSyncError(str(error.cause)) from None
                    raise EngineError(f"a rollout worker failed to {what}: {words_of(error)}") from error
            hung = {reference: slot for reference, slot in asked.items() if time.monotonic() - slot.last_sign > deadline_s}
            for reference, slot in hung.items():
                del asked[reference]
                self.lose(slot, f"did not {what} within {deadline_s:.0f} s")
                if again:
                    told.discard(slot.index)
            for slot in starting.values():
                if slot.starting is not None and time.monotonic() - slot.last_sign > START_DEADLINE_S:
                    self.lose(slot, f"did not start within {START_DEADLINE_S:.0f} s")


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
