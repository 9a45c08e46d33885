"""The rollout workers as the driver sees them: draw samples from a named version of the weights; replace that version, provably, everywhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray

from rollout.engine import EngineSettings
from rollout.errors import EngineError, WeightSyncError
from rollout.faults import fault
from rollout.proof import ReloadProof
from rollout.seeds import sample_seed
from rollout.types import Completion, Prompt, Request, Sampling
from rollout.worker import RolloutWorker, SyncMode, SyncReceipt

Progress = Callable[[int, int], None]
START_DEADLINE_S = 300.0


class RolloutPool:
    """Some workers that hold the same weights. All samples of a prompt go to one worker, whose prefix cache then holds the prompt."""

    def __init__(self, engine: str, settings: EngineSettings, num_workers: int = 1, script: str | None = None, base: Path = Path(".")):
        self.settings = settings
        self.version = -1
        self.mode: SyncMode = "rebuild"
        actor = ray.remote(RolloutWorker).options(**_actor_options(engine, settings))
        self._workers = [actor.remote(engine, settings, script, base) for _ in range(num_workers)]

    def load_model(self, folder: Path, version: int) -> None:
        """All workers hold the model of ``folder``, called ``version``. Until the next self-test, syncs rebuild the engine."""
        self._everywhere(lambda worker: worker.load_model.remote(folder, version), START_DEADLINE_S, f"load {folder}")
        self.version = version
        self.mode = "rebuild"

    def prove_reload(self, prompts: Sequence[Prompt]) -> ReloadProof:
        """Test in-place syncing on every worker; in place from now on where all prove it right, else by rebuilding the engine."""
        tokens = [prompt.tokens for prompt in prompts]
        proofs = self._everywhere(lambda worker: worker.prove_reload.remote(tokens), START_DEADLINE_S, "test a weight reload")
        worst = max(proofs, key=lambda proof: (not proof.in_place, proof.gap))
        self.mode = "in_place" if worst.in_place else "rebuild"
        return worst

    def sync(self, export: Callable[[], Any], version: int, deadline_s: float = 300.0) -> list[SyncReceipt]:
        """Every worker holds the exported weights, and has proved it. ``export`` returns an object reference of a WeightUpdate.

        A failed proof is retried once with a fresh export, then raised: WeightSyncError names the tensors.
        """
        receipts = self._sync_once(export, deadline_s, retry=True)
        wrong = [receipt.version for receipt in receipts if receipt.version != version]
        if wrong:
            raise WeightSyncError(f"workers hold version {wrong[0]} after a sync of version {version}")
        self.version = version
        return receipts

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

        What is drawn follows from (seed, step, prompt id, j). Raises EngineError past the deadline, or where a worker dies or a request fails.
        """
        longest = max((len(prompt.tokens) for prompt in prompts), default=0) + sampling.max_tokens
        if longest > self.settings.max_tokens:
            raise EngineError(
                f"a prompt and its completion may reach {longest} tokens, but the engine was built for {self.settings.max_tokens}"
            )
        num_workers = len(self._workers)
        shares: list[list[Request]] = [[] for _ in range(num_workers)]
        seen: Counter[str] = Counter()
        for i, prompt in enumerate(prompts):
            first = num_samples * seen[prompt.id]  # a prompt that comes twice in a step is not to be answered twice alike
            seen[prompt.id] += 1
            for j in range(num_samples):
                request = Request(f"{step}.{i}.{j}", prompt.tokens, sampling, sample_seed(seed, step, prompt.id, first + j))
                shares[i % num_workers].append(request)
        done = self._draw(shares, deadline_s, progress)
        return [[done[f"{step}.{i}.{j}"] for j in range(num_samples)] for i in range(len(prompts))]

    def close(self) -> None:
        for worker in self._workers:
            ray.kill(worker)
        self._workers = []

    def _draw(self, shares: Sequence[Sequence[Request]], deadline_s: float, progress: Progress) -> dict[str, Completion]:
        total = sum(len(share) for share in shares)
        deadline = time.monotonic() + deadline_s
        completions: dict[str, Completion] = {}
        busy = [worker for worker, share in zip(self._workers, shares, strict=True) if share]
        self._get(
            [worker.submit.remote(share) for worker, share in zip(self._workers, shares, strict=True) if share], 60.0, "take requests"
        )
        polls = {worker.poll.remote(1.0): worker for worker in busy}
        left = {worker: len(share) for worker, share in zip(self._workers, shares, strict=True)}
        while polls:
            ready, _ = ray.wait(list(polls), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise EngineError(
                    f"{total - len(completions)} of {total} samples were not drawn within rollout.deadline_s = {deadline_s:.0f} s"
                )
            worker = polls.pop(ready[0])
            for finished in self._get(ready, 10.0, "draw samples")[0]:
                if finished.completion is None:
                    raise EngineError(f"sample {finished.request_id} failed: {finished.error}")
                if finished.completion.version != self.version:
                    raise WeightSyncError(f"a sample came from version {finished.completion.version}, but {self.version} was asked for")
                completions[finished.request_id] = finished.completion
                left[worker] -= 1
            if left[worker]:
                polls[worker.poll.remote(1.0)] = worker
            progress(len(completions), total)
        return completions

    def _sync_once(self, export: Callable[[], Any], deadline_s: float, retry: bool) -> list[SyncReceipt]:
        update = export()
        try:
            return self._everywhere(lambda worker: worker.sync.remote(update, self.mode), deadline_s, "sync weights")
        except WeightSyncError:
            if not retry:
                raise
            return self._sync_once(export, deadline_s, retry=False)

    def _everywhere(self, call: Callable[[Any], Any], deadline_s: float, what: str) -> list[Any]:
        return self._get([call(worker) for worker in self._workers], deadline_s, what)

    def _get(self, references: Sequence[Any], deadline_s: float, what: str) -> list[Any]:
        try:
            return ray.get(list(references), timeout=deadline_s)
        except ray.exceptions.GetTimeoutError:
            raise EngineError(f"a rollout worker did not {what} within {deadline_s:.0f} s") from None
        except ray.exceptions.RayActorError as error:
            raise EngineError(f"a rollout worker died while it was to {what}: {error}") from error
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, WeightSyncError):
                raise WeightSyncError(str(cause)) from None
            raise EngineError(f"a rollout worker failed to {what}: {cause!r}") from error


def _actor_options(engine: str, settings: EngineSettings) -> dict[str, Any]:
    """Workers and trainer take turns on a CPU, so they reserve none: an actor that asks for more than there is would wait for ever, silently."""
    from rollout.vllm_engine import environment

    num_gpus = ray.cluster_resources().get("GPU", 0)
    variables = environment(settings) if engine == "vllm" else {"OMP_NUM_THREADS": str(settings.num_threads)}
    variables["GRPO_FAULT"] = fault()
    return {"num_cpus": 0, "num_gpus": min(1.0, num_gpus / 2), "runtime_env": {"env_vars": variables}, "max_restarts": 0}
