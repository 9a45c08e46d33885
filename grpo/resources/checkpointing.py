"""How does training go on where it was? Each step's end can be kept, and a run that begins finds the newest that was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo.config import OptimizerKeys
from grpo.resources.context import Workplace
from grpo.run.checkpoints import Checkpoints, Saved
from grpo.run.folder import CHECKPOINTS
from grpo.run.records import JsonLines
from grpo.trainer.remote import RemoteTrainer


@dataclass
class StepEnd:
    """``state`` is called only where it is to be kept: where that is due anyway, or ``must_be_kept``. Its "score" says which is the best."""

    state: Callable[[], Mapping[str, Any]] = dict
    must_be_kept: bool = False


class Keeper:
    """Checkpoints of one stage's training: the trainer's tensors, the driver's few numbers, and how long each log was.

    ``logs`` are cut back to that length on resuming, so that no step is in them twice. The trainer writes while the driver goes on: a
    checkpoint is one once ``finish`` has returned.
    """

    def __init__(
        self, settings: OptimizerKeys, total: int, trainer: RemoteTrainer, work: Workplace, folder: Path, logs: Sequence[JsonLines]
    ):
        self.settings, self.total, self.trainer, self.work, self.logs = settings, total, trainer, work, logs
        self.checkpoints = Checkpoints(folder / CHECKPOINTS, settings.keep_checkpoints, work.progress.say)
        self._unfinished: tuple[int, Mapping[str, Any], Callable[[], Any]] | None = None

    def resume(self, unit: str) -> Saved | None:
        """Trainer and logs as they were at the newest checkpoint that is whole; None, and empty logs, where there is none."""
        saved = self.checkpoints.newest()
        for log in self.logs:
            lost = log.cut(saved.state["logs"][log.path.name] if saved else 0)
            if lost:
                self.work.progress.say(f"  {log.path} lacks {lost:,} bytes that were written to it; training goes on without them")
        if saved is None:
            return None
        self.trainer.load_state(saved.path, saved.state["trainer"])
        self.work.progress.say(f"  goes on after {unit} {saved.step} of {self.total}, from {saved.path.name}")
        return saved

    @contextmanager
    def step(self, done: int) -> Iterator[StepEnd]:
        """Around a step that makes it ``done``. Where a checkpoint is due, or the run is to stop, it holds what ``StepEnd.state`` returns."""
        end = StepEnd()
        with self.work.interruption.held(until_next=done < self.total):  # a step just made is saved by the next, not lost between them
            try:
                yield end
            except Exception:
                with suppress(Exception):  # whatever broke the step, the checkpoint of the one before it may be written by now
                    self.finish()
                raise
            self.finish()
            every = self.settings.checkpoint_every
            is_last, is_stopping = done == self.total, self.work.interruption.asked_by is not None
            if is_last or is_stopping or end.must_be_kept or (every is not None and done % every == 0):
                state = {**end.state(), "logs": {log.path.name: log.num_bytes for log in self.logs}}
                self._unfinished = (done, state, self.trainer.begin("save_state", self.checkpoints.begin(done)))
            if is_last or is_stopping:
                self.finish()
            self.work.interruption.raise_if_asked()

    def go_back(self, to: int, now: int) -> None:
        """The trainer as it was at the checkpoint of step ``to``; its place in the schedule stays that of ``now`` updates.

        Raises CheckpointError where that checkpoint is no longer whole.
        """
        self.finish()
        saved = self.checkpoints.at(to)
        self.trainer.load_state(saved.path, {**saved.state["trainer"], "num_updates": now})

    def finish(self) -> None:
        """Wait for the trainer's part of the checkpoint that was begun last, and make it one."""
        if self._unfinished is not None:
            done, state, wait = self._unfinished
            self._unfinished = None
            try:
                numbers = wait()
            except Exception:
                self.checkpoints.give_up(done)
                raise
            for log in self.logs:
                log.sync()
            self.checkpoints.finish(done, {**state, "trainer": numbers}, state.get("score"))
