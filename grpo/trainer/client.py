"""The trainer as the driver sees it: the calls that a stage makes, whichever process answers them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from grpo.trainer.batch import Batch


class TrainerClient(Protocol):
    """Each method does what ``PolicyTrainer``'s method of the same name does, and waits for its result."""

    def policy_update(self, batch: Batch, max_logprob_gap: float = math.inf) -> dict[str, float]: ...

    def supervised_update(self, batch: Batch, rate: float = 1.0, weight_decay: float | None = None) -> dict[str, float]: ...

    def with_old_logprobs(self, batch: Batch, max_logprob_gap: float = math.inf) -> Batch: ...

    def logprobs(self, batch: Batch) -> np.ndarray: ...

    def logprob_gap(self, batch: Batch) -> float: ...

    def sequence_divergence(self, batch: Batch) -> np.ndarray: ...

    def refresh_reference(self) -> None: ...

    def hold_weights(self, batch: Batch, coef: float) -> None: ...

    def export(self, version: int, dtype: str) -> Any:
        """A reference to the exported weights, which go from the trainer to the rollout workers without passing the driver."""
        ...

    def save(self, folder: Path) -> None: ...

    def begin_save_state(self, folder: Path) -> Callable[[], dict[str, float]]:
        """Starts ``save_state``, and returns a function that waits for its result. Later calls are served after it."""
        ...

    def load_state(self, folder: Path, numbers: Mapping[str, float]) -> None: ...

    def memory_bytes(self) -> dict[str, int]: ...

    def sleep(self) -> None: ...

    def wake(self) -> None: ...
