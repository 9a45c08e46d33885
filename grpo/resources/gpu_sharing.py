"""Who has the GPU that engines and trainer share? Whoever works; the other's weights wait in main memory meanwhile."""

from __future__ import annotations

import threading

from grpo.trainer.remote import RemoteTrainer
from rollout.pool import RolloutPool


class Turns:
    """Both sides ask before they work, and the other side has gone to sleep once they are answered. They never work at the same time."""

    def __init__(self) -> None:
        self.pool: RolloutPool | None = None
        self.trainer: RemoteTrainer | None = None
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
