"""What is in a run's folder, and who may write there: one process at a time."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grpo.errors import CheckpointError, RecipeError
from grpo.run.records import write_json

CHECKPOINTS = "checkpoints"


class RunFolder:
    """DIR/summary.json, DIR/recipe.yaml, DIR/evals/ and a folder a stage, DIR/01-cold_start/."""

    def __init__(self, path: Path):
        self.path = path

    def check(self) -> None:
        """Raises RecipeError where nothing can be written here, as far as that can be told without writing."""
        there = next(folder for folder in (self.path.absolute(), *self.path.absolute().parents) if folder.exists())
        if not there.is_dir():
            raise RecipeError(f"cannot write to {self.path}: {there} is a file; choose another folder with --out")
        if not os.access(there, os.W_OK | os.X_OK):
            is_read_only = os.statvfs(there).f_flag & os.ST_RDONLY
            why = "Read-only file system" if is_read_only else f"no permission to write in {there}"
            raise RecipeError(f"cannot write to {self.path}: {why}; choose another folder with --out")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder. Raises CheckpointError naming host and process where another one does; a dead process's lock is taken over."""
        from filelock import FileLock, Timeout

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / ".writable").touch()
            (self.path / ".writable").unlink(missing_ok=True)  # another start may do the same
        except OSError as error:
            raise RecipeError(f"cannot write to {self.path}: {error.strerror}; choose another folder with --out") from None
        holder = self.path / ".holder.json"
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            who = json.loads(holder.read_text()) if holder.exists() else {"host": "?", "pid": "?"}
            message = f"{self.path} is in use by process {who['pid']} on {who['host']}; wait for it, or choose another --out"
            raise CheckpointError(message) from None
        try:
            write_json(holder, {"host": socket.gethostname(), "pid": os.getpid()})
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()

    def stage(self, number: int, name: str) -> Path:
        return self.path / f"{number:02d}-{name}"

    def record(self, number: int, name: str) -> dict[str, Any] | None:
        """What the stage wrote when it was done, or None."""
        file = self.stage(number, name) / "stage.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    def write_record(self, number: int, name: str, record: dict[str, Any]) -> None:
        write_json(self.stage(number, name) / "stage.json", record)

    def start(self, number: int, name: str) -> dict[str, Any] | None:
        """What a stage that was broken off began with, where there is something to go on from; else None."""
        folder = self.stage(number, name)
        file = folder / "start.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() and holds_training(folder) else None

    def write_start(self, number: int, name: str, start: dict[str, Any]) -> None:
        write_json(self.stage(number, name) / "start.json", start)

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_json(self.path / "summary.json", summary)

    def summary(self) -> dict[str, Any] | None:
        file = self.path / "summary.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def holds_training(stage_folder: Path) -> bool:
    """Whether a stage that was broken off left a checkpoint, whole or not."""
    return any((stage_folder / CHECKPOINTS).glob("step-*"))
