"""One GPU shared by engines and trainer: only the side that works holds it, and the other's weights wait in main memory."""

from __future__ import annotations

import threading

from grpo.trainer.client import TrainerClient
from rollout.pool import RolloutPool


class GpuSharing:
    """Each side asks before it works, and the other side is asleep once the call returns. They never work at the same time."""

    def __init__(self) -> None:
        self.pool: RolloutPool | None = None
        self.trainer: TrainerClient | None = None
        self._changing = threading.Lock()

    def engines(self) -> None:
        with self._changing:
            if self.trainer is not None:
                self.trainer.sleep()
            if self.pool is not None:
                self.pool.wake()

    def trainers(self) -> None:
        with self._changing:
            if self.pool is not None:
                self.pool.sleep()
            if self.trainer is not None:
                self.trainer.wake()
