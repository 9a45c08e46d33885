"""A place in the pool: which actor fills it, what that one was given, and what its death looks like."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ray

from rollout.errors import EngineError
from rollout.types import Request

START_DEADLINE_S = 300.0
DEATH = (
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,  # ended by Ray before the kernel would
    ray.exceptions.OwnerDiedError,
    ray.exceptions.ObjectLostError,
)


@dataclass(eq=False)
class Slot:
    """A place in the pool and the actor that fills it."""

    index: int
    actor: Any = None
    starting: Any = None  # its call of ``start``, while that runs
    not_before: float = 0.0
    restarts: int = 0
    is_given_up: bool = False
    share: list[Request] = field(default_factory=list)  # all that it was given in this call of ``sample``
    unfinished: dict[str, Request] = field(default_factory=dict)
    last_sign: float = 0.0

    @property
    def is_live(self) -> bool:
        return self.actor is not None and self.starting is None and not self.is_given_up


def cause_of(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def words_of(error: ray.exceptions.RayTaskError) -> str:
    """What went wrong in a worker, in its own words where they are meant to be read."""
    return str(error.cause) if isinstance(error.cause, EngineError) else repr(error.cause)
