"""The rollout workers as the driver uses them: sample from a weights version; replace that version, with proof, on every worker.

A worker that dies or hangs is replaced, a bounded number of times, by one that first loads the weights of the others. What it had not finished
is generated again: no sample is lost, none is counted twice, and no failure becomes a sample.

    dispatch "fixed"      a prompt's worker follows from its index in the step, and a replacement generates the lost worker's whole share again:
                          batches, and with them bits, are those of an undisturbed run
    dispatch "balanced"   a prompt goes to the worker with the least to do, long prompts first; others take over what a lost worker left
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray

from rollout.dispatcher import Dispatch, Progress
from rollout.engines.base import EngineSettings
from rollout.engines.vllm import environment
from rollout.errors import EngineError, WeightSyncError
from rollout.faults import VARIABLES
from rollout.supervisor import WorkerSupervisor
from rollout.types import Completion, Prompt, Request, SamplingParams, sample_seed
from rollout.weight_sync.proof import ReloadProof
from rollout.weight_sync.weights import Transport
from rollout.worker import RolloutWorker, SyncMode, SyncReceipt

Say = Callable[[str], None]
DispatchKind = Literal["fixed", "balanced"]


@dataclass(frozen=True)
class PoolSettings:
    """How many workers there are, and what happens when one is lost.

    min_workers     the run stops when fewer are left that may still be restarted
    max_restarts    of each worker, over the pool's life; the n-th waits ``backoff_s`` x 2^(n - 1) before it starts
    transport       how weights reach the workers
    """

    workers: int = 1
    min_workers: int = 1
    max_restarts: int = 3
    backoff_s: float = 0.5
    dispatch: DispatchKind = "fixed"
    transport: Transport = "host"


class RolloutPool:
    """Workers that hold the same weights. All samples of a prompt go to one worker, whose prefix cache then holds the prompt.

    ``turn`` is called before anything for which the engines must be awake (see ``sleep``).
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
        self.settings, self.workers, self._turn = settings, workers, turn
        self.version = -1
        self.mode: SyncMode = "rebuild"
        self.memory_bytes: int | None = None  # main memory of the largest worker at the last sync
        self.is_asleep = False
        self._actor = ray.remote(**_actor_options(engine, settings, workers.transport))(RolloutWorker)
        self.supervisor = WorkerSupervisor(
            workers.workers,
            make_actor=lambda index: self._actor.remote(engine, settings, script, base, index),
            start_actor=self._start_actor,
            version=lambda: self.version,
            min_workers=workers.min_workers,
            max_restarts=workers.max_restarts,
            backoff_s=workers.backoff_s,
            say=say,
        )
        self._folder: Path | None = None
        self._folder_version = -1
        self._vocab_size: int | None = None
        self._update: Any = None  # a reference to the weights synced last, for workers that start later

    @property
    def num_lost(self) -> int:
        """How many workers have died or were replaced because they hung."""
        return self.supervisor.num_lost

    # ----------------------------------------------------------------------------------------------------------------- weights

    def load_model(self, folder: Path, version: int) -> None:
        """Load the model of ``folder``, called ``version``, on every worker. Syncs rebuild the engines until ``prove_reload`` says otherwise."""
        self._turn()
        self._folder, self._folder_version, self._update, self.version, self.mode = folder, version, None, version, "rebuild"
        self._vocab_size = _vocab_size(folder)
        self.supervisor.call_all(lambda worker: worker.load_model.remote(folder, version), f"loading {folder}")

    def prove_reload(self, prompts: Sequence[Prompt]) -> ReloadProof:
        """Test in-place syncing on every worker. Later syncs are in place if all workers pass, otherwise they rebuild the engines."""
        self._turn()
        tokens = [prompt.tokens for prompt in prompts]
        proofs = self.supervisor.call_all(
            lambda worker: worker.prove_reload.remote(tokens), "testing a weight reload", ask_replacements=True
        )
        worst = max(proofs, key=lambda proof: (not proof.in_place, proof.gap))
        self.mode = "in_place" if worst.in_place else "rebuild"
        return worst

    def sync(self, export: Callable[[], Any], version: int, deadline_s: float = 300.0) -> list[SyncReceipt]:
        """Load the exported weights on every worker, each of which proves that it holds them. ``export`` returns a reference to a WeightUpdate.

        If a proof fails, the sync is retried once with a fresh export; then WeightSyncError names the tensors. A worker that is lost meanwhile
        is replaced by one that starts with these weights and proves them like the others.
        """
        for attempt in (1, 2):
            self._update, self.version = None, version  # so that the old weights can be freed before the new ones are copied
            self._update = export()
            self._turn()
            try:
                receipts = self.supervisor.call_all(
                    lambda worker: worker.sync.remote(self._sent, self.mode), "syncing weights", deadline_s, ask_replacements=True
                )
                break
            except WeightSyncError:
                if attempt == 2:
                    raise
        wrong = [receipt.version for receipt in receipts if receipt.version != version]
        if wrong:
            raise WeightSyncError(f"a worker holds version {wrong[0]} after a sync of version {version}")
        self.memory_bytes = max(receipt.memory_bytes for receipt in receipts)
        return receipts

    def sleep(self) -> None:
        """Make the engines release their GPU memory until ``wake``. Nothing may be generated or synced meanwhile."""
        if not self.is_asleep and self._folder is not None:
            self.supervisor.call_all(lambda worker: worker.sleep.remote(), "going to sleep", ask_replacements=True)
            self.is_asleep = True

    def wake(self) -> None:
        if self.is_asleep:
            self.supervisor.call_all(lambda worker: worker.wake.remote(), "waking up")
            self.is_asleep = False

    # ----------------------------------------------------------------------------------------------------------------- samples

    def sample(
        self,
        prompts: Sequence[Prompt],
        num_samples: int,
        sampling: SamplingParams,
        *,
        seed: int,
        step: int,
        deadline_s: float,
        progress: Progress,
    ) -> list[list[Completion]]:
        """Generate ``num_samples`` completions of each prompt, in the order of ``prompts``: result[i][j] is sample j of prompt i.

        The random numbers of a sample follow from (seed, step, prompt id, j). A worker that finishes nothing for ``deadline_s`` counts as hung
        and is replaced. ``progress`` is called about once a second with the numbers of finished and of all samples. It may sync newer weights,
        with which the unfinished samples then continue, and what it raises ends the call.
        Raises EngineError if too few workers are left, a request fails three times, or a token lies outside the vocabulary.
        """
        self._check_prompts(prompts, sampling)
        self._turn()
        requests: list[list[Request]] = []
        seen: Counter[str] = Counter()
        for i, prompt in enumerate(prompts):
            first = num_samples * seen[prompt.id]  # a prompt that occurs twice in a step must not get the same samples twice
            seen[prompt.id] += 1
            seeds = [sample_seed(seed, step, prompt.id, first + j) for j in range(num_samples)]
            requests.append([Request(f"{step}.{i}.{j}", prompt.tokens, sampling, seeds[j]) for j in range(num_samples)])
        dispatch = Dispatch(
            self.supervisor,
            requests,
            is_fixed=self.workers.dispatch == "fixed",
            max_sequences=self.settings.max_sequences,
            deadline_s=deadline_s,
            progress=progress,
            version=lambda: self.version,
            check_tokens=self._check_tokens,
        )
        done = dispatch.run()
        return [[done[request.id] for request in group] for group in requests]

    def close(self) -> None:
        self.supervisor.close()

    def _check_prompts(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> None:
        longest = max((len(prompt.tokens) for prompt in prompts), default=0) + sampling.max_tokens
        if longest > self.settings.max_tokens:
            raise EngineError(
                f"a prompt and its completion may reach {longest} tokens, but the engine was built for {self.settings.max_tokens}"
            )
        for prompt in prompts:
            self._check_tokens(f"prompt {prompt.id!r}", np.array(prompt.tokens, np.int64))

    def _check_tokens(self, owner: str, tokens: np.ndarray) -> None:
        if self._vocab_size is None:
            return
        known = (tokens >= 0) & (tokens < self._vocab_size)
        if not known.all():
            raise EngineError(f"{owner} holds the token id {tokens[~known][0]}, and the model's vocabulary has {self._vocab_size}")

    # ----------------------------------------------------------------------------------------------------------------- workers

    @property
    def _sent(self) -> Any:
        """The weights synced last, as workers receive them."""
        return self._update if self._update is None or self.workers.transport == "host" else [self._update]

    def _start_actor(self, actor: Any) -> Any:
        assert self._folder is not None, "load_model comes first"
        return actor.start.remote(self._folder, self._folder_version, self._sent, self.mode)


def _vocab_size(folder: Path) -> int | None:
    """How many token ids the model of ``folder`` knows; None if its config doesn't say."""
    file = folder / "config.json"
    if not file.exists():
        return None
    config = json.loads(file.read_text(encoding="utf-8"))
    return config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")


def _actor_options(engine: str, settings: EngineSettings, transport: Transport = "host") -> dict[str, Any]:
    """Workers reserve no CPU, because they and the trainer work alternately: an actor that asks for more than there is would wait forever."""
    variables = environment(settings) if engine == "vllm" else {"OMP_NUM_THREADS": str(settings.num_threads)}
    variables |= {name: os.environ[name] for name in VARIABLES if name in os.environ}
    return {
        "num_cpus": 0,
        "num_gpus": settings.gpu_share,
        "runtime_env": {"env_vars": variables},
        "max_restarts": 0,
        "enable_tensor_transport": transport != "host",
    }
