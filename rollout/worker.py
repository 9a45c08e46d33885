"""The Ray actor around one engine: it loads weights and generates samples as the pool asks."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rollout.engines.base import EngineSettings, RolloutEngine
from rollout.errors import EngineError, WeightSyncError
from rollout.faults import corrupt, fault, fault_point, requested_fault
from rollout.memory import bytes_of_tree
from rollout.signals import keep_blocked
from rollout.types import Finished, Request
from rollout.weight_sync.proof import ReloadProof, prove_reload, write_model
from rollout.weight_sync.weights import WeightUpdate, unpack_weights

SyncMode = Literal["in_place", "rebuild"]

# New weights, or a list of one reference to them. Ray would resolve a bare reference before the call, and if a direct transport to one worker
# then failed, Ray would end the sender, which is the trainer.
Update = WeightUpdate | Sequence[Any]


@dataclass(frozen=True)
class SyncReceipt:
    """The version that a worker provably holds after a sync, and the main memory that it and its engine's processes take."""

    version: int
    memory_bytes: int


class RolloutWorker:
    """An engine behind the calls that a pool makes. ``index`` is its slot in the pool, which a replacement inherits."""

    def __init__(self, engine: str, settings: EngineSettings, script: str | None = None, base: Path = Path("."), index: int = 0):
        keep_blocked()
        self.settings, self.index = settings, index
        self.engine = _make_engine(engine, settings, script, base)
        self.folder: Path | None = None
        self._unfinished, self._is_asleep = 0, False
        self._refused: list[Finished] = []
        self._last_update: WeightUpdate | None = None

    def start(self, folder: Path, version: int, update: Update | None, mode: SyncMode) -> int:
        """Load what the other workers hold: the model of ``folder``, then the weights synced since. Returns the version held."""
        fault_point("starting", self.index)
        try:
            self.load_model(folder, version)
        except Exception as error:  # engines raise errors of every kind, and some cannot be pickled
            reason = str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
            raise EngineError(f"could not load {folder}: {reason}") from error
        if update is not None:
            self.sync(update, mode)
        return self.engine.version

    def load_model(self, folder: Path, version: int) -> None:
        """Load the model of a Hugging Face folder; its weights are called ``version``."""
        self.engine.load_model(folder, version)
        self.folder = folder

    def prove_reload(self, prompts: Sequence[Sequence[int]]) -> ReloadProof:
        """Test whether weights can be replaced in place. Afterwards the model is as before."""
        assert self.folder is not None, "load_model comes first"
        self._check_awake()
        return prove_reload(self.engine, self.folder, prompts, self.settings.dtype)

    def sync(self, update: Update, mode: SyncMode) -> SyncReceipt:
        """Load the weights of ``update`` and prove it. Raises WeightSyncError with the names of the tensors that are not as they were sent."""
        fault_point("syncing", self.index)
        self._check_awake()
        if not isinstance(update, WeightUpdate):
            update = _fetch(*update)
        received = corrupt(update, self._last_update) if fault() else update
        if mode == "in_place":
            self.engine.load_weights(received)
        else:
            self._rebuild(received)
        if fault():
            self._last_update = update
        return SyncReceipt(self.engine.version, bytes_of_tree())

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests. The next poll returns those that the engine refuses, like any other failure."""
        self._check_awake()
        for request in requests:
            try:
                self.engine.submit([request])
            except Exception as error:  # engines raise errors of every kind
                self._refused.append(Finished(request.id, None, f"{type(error).__name__}: {error}"))
        self._unfinished += len(requests)

    def poll(self, timeout_s: float, new: Sequence[Request] = ()) -> list[Finished]:
        """Queue ``new``, then work like an engine's poll."""
        self.submit(new)
        fault_point("generating", self.index)
        refused, self._refused = self._refused, []
        finished = refused or self.engine.poll(timeout_s)
        self._unfinished -= len(finished)
        if requested_fault() and not self._unfinished:
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
            raise EngineError("the engine is asleep: the trainer has its GPU; call wake() first")

    def _rebuild(self, update: WeightUpdate) -> None:
        assert self.folder is not None, "load_model comes first"
        with tempfile.TemporaryDirectory(prefix="grpo-sync-") as folder:
            write_model(unpack_weights(update), self.folder, Path(folder))
            self.engine.load_model(Path(folder), update.version)


def _fetch(reference: Any) -> WeightUpdate:
    """Get the weights from the trainer's memory. A failure is a WeightSyncError, so that the pool retries the sync."""
    import ray

    try:
        return ray.get(reference)
    except Exception as error:  # Ray's, the transport's, CUDA's
        raise WeightSyncError(
            f"the new weights could not be fetched: {type(error).__name__}: {str(error).strip().splitlines()[-1][:300]}"
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
    raise EngineError(f"rollout.engine {kind!r} does not exist; choose vllm, hf or scripted")
