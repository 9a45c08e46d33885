"""The kinds of stage behind one protocol: a stage's settings and the run's services in, an Outcome out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from grpo.resources.services import Services
from grpo.stages.base import Outcome


class RunStage(Protocol):
    """Runs one stage in ``folder``, which is empty. What it makes, it makes below ``folder``."""

    def __call__(self, stage: Any, services: Services, folder: Path, /) -> Outcome: ...


def runner_of(kind: str) -> RunStage:
    """The function that runs stages of this kind."""
    from grpo.stages import distill, eval, reject, rl, sft

    runners: dict[str, Any] = {"sft": sft.run, "rl": rl.run, "reject": reject.run, "distill": distill.run, "eval": eval.run}
    return runners[kind]
