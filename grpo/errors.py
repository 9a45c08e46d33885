"""Every error a user can meet, by what they would do about it."""

from __future__ import annotations

from rewards.errors import RewardError
from rollout.errors import EngineError, WeightSyncError


class ToolkitError(Exception):
    """Base of the toolkit's own errors."""


class RecipeError(ToolkitError, ValueError):
    """A recipe that cannot run. ``problems`` holds one line each: what, where, found, what to do."""

    def __init__(self, problems: list[str] | str):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(ToolkitError, ValueError):
    """Rows that cannot be used; names file and line."""


class CheckpointError(ToolkitError, ValueError):
    """A checkpoint or a finished stage that does not fit the recipe."""


class StorageError(ToolkitError, RuntimeError):
    """A disk that is full or cannot be written; the message holds the bytes needed and free."""


class TrainingError(ToolkitError, RuntimeError):
    """Training cannot go on (non-finite numbers, nothing left to learn from); the message holds the numbers."""


__all__ = [
    "CheckpointError",
    "DataError",
    "EngineError",
    "RecipeError",
    "RewardError",
    "StorageError",
    "ToolkitError",
    "TrainingError",
    "WeightSyncError",
]
