"""One engine in one Ray actor: it is told which weights to hold and which requests to draw."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rollout.engine import EngineSettings, RolloutEngine
from rollout.errors import EngineError
from rollout.faults import corrupt, fault
from rollout.proof import ReloadProof, prove_reload, write_model
from rollout.types import Finished, Request
from rollout.weights import WeightUpdate, unpack_weights

SyncMode = Literal["in_place", "rebuild"]


@dataclass(frozen=True)
class SyncReceipt:
    """What a worker holds after a sync, as it proved it."""

    version: int
    num_tensors: int
    num_bytes: int
    seconds: float


class RolloutWorker:
    """Everything a pool asks of an engine that lives elsewhere."""

    def __init__(self, engine: str, settings: EngineSettings, script: str | None = None, base: Path = Path(".")):
        self.settings = settings
        self.engine = _make_engine(engine, settings, script, base)
        self.folder: Path | None = None
        self._last_update: WeightUpdate | None = None

    def load_model(self, folder: Path, version: int) -> None:
        """Hold the model of a Hugging Face folder; its weights are ``version``."""
        self.engine.load_model(folder, version)
        self.folder = folder

    def prove_reload(self, prompts: Sequence[Sequence[int]]) -> ReloadProof:
        """Find out whether weights may be replaced in place; the model is as before afterwards."""
        assert self.folder is not None, "load_model comes first"
        return prove_reload(self.engine, self.folder, prompts, self.settings.dtype)

    def sync(self, update: WeightUpdate, mode: SyncMode) -> SyncReceipt:
        """Hold the weights of ``update``, proven. Raises WeightSyncError naming what is not as it was sent."""
        started = time.monotonic()
        received = corrupt(update, self._last_update) if fault() else update
        if mode == "in_place":
            self.engine.load_weights(received)
        else:
            self._rebuild(received)
        if fault():
            self._last_update = update
        num_bytes = sum(raw.nbytes for raw in update.payload.values())
        return SyncReceipt(self.engine.version, len(update.manifest), num_bytes, time.monotonic() - started)

    def submit(self, requests: Sequence[Request]) -> None:
        self.engine.submit(requests)

    def poll(self, timeout_s: float) -> list[Finished]:
        return self.engine.poll(timeout_s)

    def cancel(self, request_ids: Iterable[str]) -> None:
        self.engine.cancel(request_ids)

    def close(self) -> None:
        self.engine.close()

    def _rebuild(self, update: WeightUpdate) -> None:
        import torch

        assert self.folder is not None, "load_model comes first"
        with tempfile.TemporaryDirectory(prefix="grpo-sync-") as folder:
            write_model(unpack_weights(update), self.folder, Path(folder), getattr(torch, self.settings.dtype))
            self.engine.load_model(Path(folder), update.version)


def _make_engine(kind: str, settings: EngineSettings, script: str | None, base: Path) -> RolloutEngine:
    if kind == "vllm":
        from rollout.vllm_engine import VllmEngine

        return VllmEngine(settings)
    if kind == "scripted":
        from rollout.scripted import ScriptedEngine, load_script

        return ScriptedEngine(load_script(str(script), base))
    raise EngineError(f"rollout.engine {kind!r} is not known; known are vllm, scripted")
