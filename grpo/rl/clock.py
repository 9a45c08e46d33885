"""How long each phase of a training step takes."""

from __future__ import annotations

import time

from rollout.faults import fault_point


class Clock:
    """Times the phases of one step: ``with clock("update"): ...`` is reported as time/update_s."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()
        self._name = ""

    def __call__(self, name: str) -> Clock:
        fault_point(name)
        self._name = name
        return self

    def __enter__(self) -> None:
        self._entered = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + time.monotonic() - self._entered

    def metrics(self) -> dict[str, float]:
        return {**{f"time/{name}_s": seconds for name, seconds in self.seconds.items()}, "time/step_s": time.monotonic() - self._began}
