"""What does every engine do? The protocol, and the helper that draws a list of samples with it."""

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
    """How an engine is built. ``dtype`` is that of its weights and arithmetic; ``num_threads`` is for CPUs. ``gpu_share`` is how many GPUs, or
    how much of one, the actor reserves, ``gpu_memory_frac`` how much of its memory the engine takes. ``tensor_parallel`` processes share out
    each layer (vLLM only). ``sleeps``: it gives its GPU memory back when told to. ``keep`` are texts that stay in a completion's text where they
    are special tokens of the model, which are otherwise left out of it."""

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
    """Draws samples from one version of one model's weights at a time. One request is one sample. No optional methods."""

    version: int

    def load_model(self, folder: Path, version: int) -> None:
        """Build the model from a Hugging Face folder, in place of the one before; its weights are called ``version``."""

    def load_weights(self, update: WeightUpdate) -> None:
        """Replace all weights in place, forget what was cached of the old ones, and prove what the kernels now compute with.

        Requests that are being drawn go on: the keys and values of their tokens so far are computed again, so that what they draw from here on
        is the new weights' alone, and ``Completion.versions`` says from which token on. Raises WeightSyncError where that is not what was sent.
        """

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests; returns at once."""

    def poll(self, timeout_s: float) -> list[Finished]:
        """Work until at least one request has finished, nothing is left to do, or ``timeout_s`` has passed."""

    def cancel(self, request_ids: Iterable[str]) -> None:
        """Forget these requests; they never finish."""

    def sleep(self) -> None:
        """Give back GPU memory, with nothing unfinished, until ``wake``."""

    def wake(self) -> None:
        """Be ready to take weights and to draw, with the weights held before; nothing happens to an engine that is awake."""

    def close(self) -> None:
        """Give back memory and processes."""


def generate(engine: RolloutEngine, requests: Sequence[Request], deadline_s: float) -> list[Completion]:
    """Draw all of ``requests`` and return their completions in the same order.

    Raises EngineError past the deadline or on a failure; what is then unfinished is cancelled.
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
