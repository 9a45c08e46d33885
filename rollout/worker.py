"""One engine in one Ray actor: it is told which weights to hold and which requests to draw."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rollout.engines.base import EngineSettings, RolloutEngine
from rollout.errors import EngineError, WeightSyncError
from rollout.faults import corrupt, fault, fault_asked_for, fault_point
from rollout.memory import bytes_of_tree
from rollout.signals import keep_blocked
from rollout.types import Finished, Request
from rollout.weight_sync.proof import ReloadProof, prove_reload, write_model
from rollout.weight_sync.weights import WeightUpdate, unpack_weights

SyncMode = Literal["in_place", "rebuild"]


Update = WeightUpdate | Sequence[Any]
"""New weights, or a list of one reference to them. As an argument by itself a reference is resolved by Ray before the call, and where a direct
transport to one worker fails, Ray ends the sender: the trainer."""


@dataclass(frozen=True)
class SyncReceipt:
    """What a worker holds after a sync, as it proved it; and the main memory that it takes, its engine's processes among it."""

    version: int
    num_tensors: int
    num_bytes: int
    seconds: float
    memory_bytes: int = 0


class RolloutWorker:
    """Everything a pool asks of an engine that lives elsewhere. ``index`` is its place in the pool, which a replacement inherits."""

    def __init__(self, engine: str, settings: EngineSettings, script: str | None = None, base: Path = Path("."), index: int = 0):
        keep_blocked()
        self.settings, self.index = settings, index
        self.engine = _make_engine(engine, settings, script, base)
        self.folder: Path | None = None
        self._unfinished, self._is_asleep = 0, False
        self._refused: list[Finished] = []
        self._last_update: WeightUpdate | None = None

    def start(self, folder: Path, version: int, update: Update | None, mode: SyncMode) -> int:
        """Hold what the other workers hold: the model of ``folder``, then the weights synced since. Returns the version held."""
        fault_point("starting", self.index)
        self.load_model(folder, version)
        if update is not None:
            self.sync(update, mode)
        return self.engine.version

    def load_model(self, folder: Path, version: int) -> None:
        """Hold the model of a Hugging Face folder; its weights are ``version``."""
        self.engine.load_model(folder, version)
        self.folder = folder

    def prove_reload(self, prompts: Sequence[Sequence[int]]) -> ReloadProof:
        """Find out whether weights may be replaced in place; the model is as before afterwards."""
        assert self.folder is not None, "load_model comes first"
        self._check_awake()
        return prove_reload(self.engine, self.folder, prompts, self.settings.dtype)

    def sync(self, update: Update, mode: SyncMode) -> SyncReceipt:
        """Hold the weights of ``update``, proven. Raises WeightSyncError naming what is not as it was sent."""
        fault_point("syncing", self.index)
        self._check_awake()
        started = time.monotonic()
        if not isinstance(update, WeightUpdate):
            update = fetched(*update)
        received = corrupt(update, self._last_update) if fault() else update
        if mode == "in_place":
            self.engine.load_weights(received)
        else:
            self._rebuild(received)
        if fault():
            self._last_update = update
        num_bytes = sum(raw.nbytes for raw in update.payload.values())
        seconds = time.monotonic() - started
        return SyncReceipt(self.engine.version, len(update.manifest), num_bytes, seconds, bytes_of_tree())

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests. One that the engine refuses is answered by the next poll, like any other failure."""
        self._check_awake()
        for request in requests:
            try:
                self.engine.submit([request])
            except Exception as error:  # an engine's own errors are of every family
                self._refused.append(Finished(request.id, None, f"{type(error).__name__}: {error}"))
        self._unfinished += len(requests)

    def poll(self, timeout_s: float, new: Sequence[Request] = ()) -> list[Finished]:
        """Queue ``new``, then work as an engine's poll does."""
        self.submit(new)
        fault_point("generating", self.index)
        refused, self._refused = self._refused, []
        finished = refused or self.engine.poll(timeout_s)
        self._unfinished -= len(finished)
        if fault_asked_for() and not self._unfinished:
            threading.Timer(0.1, fault_point, ("idle", self.index)).start()
        return finished

    def cancel(self, request_ids: Sequence[str]) -> None:
        self.engine.cancel(request_ids)
        self._unfinished -= len(request_ids)

    def sleep(self) -> None:
        self.engine.sleep()
        self._is_asleep = True

    def wake(self) -> None:
        self.engine.wake()
        self._is_asleep = False

    def close(self) -> None:
        self.engine.close()

    def _check_awake(self) -> None:
        if self._is_asleep:
            raise EngineError("the engine is asleep: the trainer has its GPU, and engines take their turn before they work")

    def _rebuild(self, update: WeightUpdate) -> None:
        assert self.folder is not None, "load_model comes first"
        with tempfile.TemporaryDirectory(prefix="grpo-sync-") as folder:
            write_model(unpack_weights(update), self.folder, Path(folder))
            self.engine.load_model(Path(folder), update.version)


def fetched(reference: Any) -> WeightUpdate:
    """From where the trainer holds it. Raises WeightSyncError, so that it is sent once more, where it cannot be had."""
    import ray

    try:
        return ray.get(reference)
    except Exception as error:  # of every family: Ray's, the transport's, CUDA's
        raise WeightSyncError(
            f"the new weights did not come: {type(error).__name__}: {str(error).strip().splitlines()[-1][:300]}"
        ) from error


def _make_engine(kind: str, settings: EngineSettings, script: str | None, base: Path) -> RolloutEngine:
    if kind == "vllm":
        from rollout.engines.vllm import VllmEngine

        return VllmEngine(settings)
    if kind == "hf":
        from rollout.engines.hf import HfEngine

        return HfEngine(settings)
    if kind == "scripted":
        from rollout.engines.scripted import ScriptedEngine, load_script

        return ScriptedEngine(load_script(str(script), base), settings.keep)
    raise EngineError(f"rollout.engine {kind!r} is not known; known are vllm, hf, scripted")
