"""How is a checkpoint whole or not there at all? It is written under another name, hashed, and renamed; nothing else says which is the newest.

    checkpoints/step-000010/          *.safetensors, *.json, and manifest.json: the size and xxh3-128 of every other file
    checkpoints/step-000020.writing   what a killed run left; removed by the next

The manifest is written last and the rename comes after it, each synced to disk. A folder whose files are not those of its manifest is not used:
the one before it is. safetensors and JSON only, so that nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo.errors import CheckpointError
from grpo.run.records import without_nan
from grpo.util.storage import file_digest, storage_error
from rollout.faults import fault_point

MANIFEST, STATE = "manifest.json", "state.json"
WRITING = ".writing"
LEAST_KEPT = 2


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is what its manifest says. ``state``: what the driver gave to ``finish``, as JSON has it."""

    step: int
    path: Path
    state: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one stage. ``keep`` of them stay, at least two, and the one of the highest score."""

    def __init__(self, folder: Path, keep: int = LEAST_KEPT, say: Callable[[str], None] = lambda text: None):
        self.folder, self.keep, self.say = folder, max(keep, LEAST_KEPT), say
        self._known_whole: set[int] = set()
        self._scores: dict[int, float] = {}

    def begin(self, step: int) -> Path:
        """A folder to write into. Until ``finish`` it is no checkpoint."""
        folder = self._folder_of(step, WRITING)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def finish(self, step: int, state: Mapping[str, Any], score: float | None = None) -> None:
        """Make what was written since ``begin`` the newest checkpoint, then drop the oldest. Raises StorageError where there is no room."""
        writing = self._folder_of(step, WRITING)
        try:
            fault_point("saving")
            _write(writing / STATE, {**state, "step": step, "score": score})
            fault_point("saving")
            files = sorted(file for file in writing.iterdir() if file.name != MANIFEST)
            _write(writing / MANIFEST, {"files": {file.name: _synced_record(file) for file in files}})
        except OSError as error:
            shutil.rmtree(writing, ignore_errors=True)
            raise storage_error(writing, error) from error
        fault_point("saving")
        _sync_folder(writing)
        shutil.rmtree(self._folder_of(step), ignore_errors=True)  # one that was not whole
        writing.rename(self._folder_of(step))
        _sync_folder(self.folder)
        fault_point("saving")
        self._remember(step, score)
        self._prune()

    def give_up(self, step: int) -> None:
        """Remove what was written since ``begin``."""
        shutil.rmtree(self._folder_of(step, WRITING), ignore_errors=True)

    def newest(self) -> Saved | None:
        """The newest that is whole. What a killed run left half-written is removed, and what is not whole is passed over; both are said."""
        for left in self.folder.glob(f"step-*{WRITING}"):
            self.say(f"  {left.name} was left unfinished by an earlier run; removed")
            shutil.rmtree(left)
        for step in sorted(self._steps(), reverse=True):
            path = self._folder_of(step)
            problem = problem_of(path)
            if problem is None:
                self._remember_scores_before(step)
                return self._saved(step)
            self.say(f"  checkpoint {path.name} is not used: {problem}")
        return None

    def at(self, step: int) -> Saved:
        """The checkpoint of a step. Raises CheckpointError where it is not there or not whole."""
        path = self._folder_of(step)
        if (problem := problem_of(path)) is not None:
            raise CheckpointError(f"{path} is needed and cannot be used: {problem}")
        return self._saved(step)

    def clear(self) -> None:
        """The stage is done: its model is what remains."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _saved(self, step: int) -> Saved:
        path = self._folder_of(step)
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        self._remember(step, state.pop("score"))
        return Saved(step, path, state)

    def _remember_scores_before(self, newest: int) -> None:
        """So that the best stays after a resume too. Whether it is whole is asked where it is used."""
        for step in self._steps():
            with contextlib.suppress(OSError, ValueError, KeyError):
                if step < newest:
                    score = json.loads((self._folder_of(step) / STATE).read_text(encoding="utf-8"))["score"]
                    self._scores |= {} if score is None else {step: score}

    def _remember(self, step: int, score: float | None) -> None:
        self._known_whole.add(step)
        if score is not None:
            self._scores[step] = score

    def _prune(self) -> None:
        """Only what is older than the newest ``keep`` that are known to be whole."""
        kept = set(sorted(self._known_whole)[-self.keep :])
        if len(kept) < self.keep:
            return
        best = max(self._scores, key=lambda step: (self._scores[step], step), default=None)
        for step in self._steps():
            if step < min(kept) and step != best:
                shutil.rmtree(self._folder_of(step), ignore_errors=True)
                self._known_whole.discard(step)

    def _steps(self) -> list[int]:
        names = [file.name for file in self.folder.glob("step-*")] if self.folder.is_dir() else []
        return [int(name.removeprefix("step-")) for name in names if re.fullmatch(r"step-\d+", name)]

    def _folder_of(self, step: int, suffix: str = "") -> Path:
        return self.folder / f"step-{step:06d}{suffix}"


def problem_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file; None where every file is what the manifest says."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, record in files.items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != record["bytes"]:
                return f"{name} has {file.stat().st_size} bytes and was written with {record['bytes']}"
            if file_digest(file) != record["xxh3_128"]:
                return f"{name} holds other bytes than were written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
    return None if STATE in files else f"{MANIFEST} does not list {STATE}"


def _write(file: Path, value: Any) -> None:
    with file.open("w", encoding="utf-8") as opened:
        json.dump(without_nan(value), opened)
        opened.flush()
        os.fsync(opened.fileno())


def _synced_record(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    return {"bytes": file.stat().st_size, "xxh3_128": file_digest(file)}


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
