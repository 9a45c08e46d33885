"""The protocol of every inference engine, and ``generate``, which runs a list of requests with one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rollout.errors import EngineError
from rollout.types import Completion, Finished, Request
from rollout.weight_sync.weights import WeightUpdate


@dataclass(frozen=True)
class EngineSettings:
    """How an engine is built.

    dtype            of weights and arithmetic
    kv_cache_gib     size of the KV cache on a CPU
    max_sequences    how many requests are generated at once
    max_tokens       of a prompt and its completion together
    num_threads      on a CPU
    gpu_share        how many GPUs, or which fraction of one, the actor reserves
    gpu_memory_frac  the fraction of a GPU's memory that the engine takes
    tensor_parallel  how many processes share each layer (vLLM only)
    sleeps           whether the engine can release its GPU memory (vLLM's sleep mode)
    keep             special tokens that stay in a completion's text; all others are left out of it
    """

    dtype: str = "bfloat16"
    kv_cache_gib: float = 1.0
    max_sequences: int = 256
    max_tokens: int = 2048
    num_threads: int = 2
    gpu_share: float = 0.0
    gpu_memory_frac: float = 0.9
    tensor_parallel: int = 1
    sleeps: bool = False
    keep: tuple[str, ...] = ()


class RolloutEngine(Protocol):
    """Samples from one version of one model's weights at a time. One request is one sample. Every engine has every method."""

    version: int

    def load_model(self, folder: Path, version: int) -> None:
        """Build the model of a Hugging Face folder, replacing the current one; its weights are called ``version``."""

    def load_weights(self, update: WeightUpdate) -> None:
        """Replace all weights in place, drop every cache of the old ones, and prove what the kernels now compute with.

        Running requests continue: the keys and values of their tokens so far are computed again, so that all further tokens are sampled from the
        new weights alone, and ``Completion.versions`` records the first of them. Raises WeightSyncError if the weights are not those sent.
        """

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests and return at once."""

    def poll(self, timeout_s: float) -> list[Finished]:
        """Work until a request has finished, nothing is left to do, or ``timeout_s`` has passed; return what has finished."""

    def cancel(self, request_ids: Iterable[str]) -> None:
        """Drop these requests: they never finish."""

    def sleep(self) -> None:
        """Release GPU memory until ``wake``. No request may be unfinished."""

    def wake(self) -> None:
        """Be ready to load weights and to generate again, with the weights from before ``sleep``. No effect on an engine that is awake."""

    def close(self) -> None:
        """Release memory and processes."""


def generate(engine: RolloutEngine, requests: Sequence[Request], deadline_s: float) -> list[Completion]:
    """Run all ``requests`` and return their completions in the same order.

    On a failure or past the deadline, cancels what is unfinished and raises EngineError.
    """
    engine.submit(requests)
    completions: dict[str, Completion] = {}
    deadline = time.monotonic() + deadline_s
    while missing := [request.id for request in requests if request.id not in completions]:
        if time.monotonic() > deadline:
            engine.cancel(missing)
            raise EngineError(
                f"{len(missing)} of {len(requests)} requests were not done after {deadline_s:.0f} s; the first is {missing[0]}"
            )
        for finished in engine.poll(timeout_s=1.0):
            if finished.completion is None:
                engine.cancel(missing)
                raise EngineError(f"request {finished.request_id} failed: {finished.error}")
            completions[finished.request_id] = finished.completion
    return [completions[request.id] for request in requests]
