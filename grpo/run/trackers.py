"""Who else is told what a run writes down? TensorBoard, Weights & Biases, MLflow, Trackio, or a class of the user's; none can hold up a run.

metrics.jsonl and samples.jsonl are complete whatever happens here. Each tracker has a thread and a bounded queue of its own: one that fails is
complained about once, one that hangs fills its queue and is left behind, and what did not arrive is counted.
"""

from __future__ import annotations

import importlib.util
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from rewards.errors import one_line

QUEUE_LENGTH = 1000
CLOSE_DEADLINE_S = 30.0  # for all trackers together
SAMPLES_EVERY, SAMPLES_SHOWN = 10, 8
COLUMNS = ("prompt", "answer", "text", "reward", "advantage", "finish")
Say = Callable[[str], None]


class Tracker(Protocol):
    """What is told, stage by stage (its folder's name: "02-reason"). Any of these may raise or take its time.

    A class of the user's own, ``trackers: [./file.py:Name]``, is made with the run's name and its folder.
    """

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """The finite numbers of a step."""

    def log_samples(self, stage: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Some of a step's samples, as a table."""

    def finish(self) -> None:
        """Nothing more will come."""


class Trackers:
    """The trackers that a recipe names. Nothing here raises, and only ``close`` waits, within its deadline."""

    def __init__(self, refs: Sequence[str], run_name: str, folder: Path, base: Path, say: Say):
        self._lines = [_Line(ref, partial(make_tracker, ref, run_name, folder, base), say) for ref in dict.fromkeys(refs)]

    def step(self, stage: str, step: int, metrics: Mapping[str, float], samples: Sequence[Mapping[str, Any]] = ()) -> None:
        """Pass on a step's metrics and, of every tenth step, its first samples."""
        values = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float) and math.isfinite(value)}
        rows = [[_cell(row.get(column)) for column in COLUMNS] for row in samples[:SAMPLES_SHOWN]] if step % SAMPLES_EVERY == 1 else []
        for line in self._lines:
            line.put(lambda tracker: tracker.log(stage, step, values))
            if rows:
                line.put(lambda tracker: tracker.log_samples(stage, step, COLUMNS, rows))

    def close(self) -> None:
        deadline = time.monotonic() + CLOSE_DEADLINE_S
        for line in self._lines:
            line.end()
        for line in self._lines:
            line.wait(deadline)


class _Line:
    """The way to one tracker: a queue, and a thread that makes the tracker when there is something to say and then passes it on."""

    def __init__(self, name: str, make: Callable[[], Tracker], say: Say):
        self.name, self._make, self._say = name, make, say
        self._queue: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(QUEUE_LENGTH)
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._given, self._passed_on = 0, 0
        self._has_complained, self._is_ending = False, False

    def put(self, message: Callable[[Tracker], None]) -> None:
        if not self._given:
            self._thread.start()
        self._given += 1
        try:
            self._queue.put_nowait(message)
        except queue.Full:
            self._complain("it takes nothing any more")

    def end(self) -> None:
        self._is_ending = True
        try:
            self._queue.put_nowait(None)
        except queue.Full:  # it hangs, and will see the mark if it ever wakes up
            pass

    def wait(self, deadline: float) -> None:
        if not self._given:
            return
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._complain(f"it did not finish within {CLOSE_DEADLINE_S:.0f} s")
        if missed := self._given - self._passed_on:
            self._say(f"  tracker {self.name}: {missed} of {self._given} entries did not arrive")

    def _work(self) -> None:
        try:
            tracker = self._make()
        except BaseException as error:  # a tracker's library may even call sys.exit
            self._complain(f"it cannot start: {one_line(error)}")
            return
        while not (self._is_ending and self._queue.empty()):
            message = self._queue.get()
            if message is None:
                break
            try:
                message(tracker)
                self._passed_on += 1
            except BaseException as error:
                self._complain(one_line(error))
        try:
            tracker.finish()
        except BaseException as error:
            self._complain(f"it did not finish: {one_line(error)}")

    def _complain(self, what: str) -> None:
        if not self._has_complained:
            self._has_complained = True
            self._say(f"  tracker {self.name}: {what}; the run goes on, and its own files have everything")


def _cell(value: Any) -> Any:
    """What a table can hold: numbers as they are, the rest as text."""
    return value if isinstance(value, int | float) or value is None else str(value)


# --- The trackers -----------------------------------------------------------------------------------


def make_tracker(ref: str, run_name: str, folder: Path, base: Path) -> Tracker:
    """The tracker that ``ref`` names: one of NAMED, or ./file.py:Class relative to ``base``."""
    if ref in NAMED:
        return NAMED[ref](run_name, folder)
    file, _, name = ref.rpartition(":")
    path = (base / file).resolve()
    spec = importlib.util.spec_from_file_location(f"_user_tracker_{path.stem}", path)
    assert spec and spec.loader, "inputs.py lets no such reference through"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)(run_name, folder)


def _started(tracker: Any) -> Any:
    """One of accelerate's trackers. They ask its state which process is the main one: the driver is the only one, and holds no device."""
    from accelerate import PartialState

    PartialState(cpu=True)
    tracker.start()
    return tracker


class TensorBoard:
    """Event files in DIR/tensorboard; samples as text."""

    def __init__(self, run_name: str, folder: Path):
        from accelerate.tracking import TensorBoardTracker

        self._tracker = _started(TensorBoardTracker("tensorboard", folder))

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self._tracker.log({f"{stage}/{name}": value for name, value in values.items()}, step=step)

    def log_samples(self, stage: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        lines = [columns, ["---"] * len(columns), *([_markdown(cell) for cell in row] for row in rows)]
        self._tracker.log({f"{stage}/samples": "\n".join(f"| {' | '.join(line)} |" for line in lines)}, step=step)

    def finish(self) -> None:
        self._tracker.finish()


class WeightsAndBiases:
    """A run in the project named after the recipe; each stage counts its own steps. WANDB_MODE, WANDB_PROJECT and the like hold."""

    def __init__(self, run_name: str, folder: Path):
        from accelerate.tracking import WandBTracker

        self._tracker = _started(WandBTracker(run_name, name=folder.name, dir=str(folder)))
        self._stages: set[str] = set()

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self._begin(stage)
        self._tracker.log({f"{stage}/step": step, **{f"{stage}/{name}": value for name, value in values.items()}})

    def log_samples(self, stage: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._begin(stage)
        self._tracker.log_table(f"{stage}/samples", columns=list(columns), data=_as_text(rows))

    def finish(self) -> None:
        self._tracker.finish()

    def _begin(self, stage: str) -> None:
        if stage not in self._stages:  # wandb drops what has a smaller step than before, and every stage begins at 1
            self._stages.add(stage)
            self._tracker.tracker.define_metric(f"{stage}/step", hidden=True)
            self._tracker.tracker.define_metric(f"{stage}/*", step_metric=f"{stage}/step")


class MlFlow:
    """A run in the experiment named after the recipe; samples as table artifacts. MLFLOW_TRACKING_URI and the like hold."""

    def __init__(self, run_name: str, folder: Path):
        from accelerate.tracking import MLflowTracker

        self._tracker = _started(MLflowTracker(experiment_name=run_name, run_name=folder.name))

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self._tracker.log({f"{stage}/{name}": value for name, value in values.items()}, step=step)

    def log_samples(self, stage: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        import mlflow

        table = {column: [row[i] for row in _as_text(rows)] for i, column in enumerate(columns)}
        mlflow.log_table(table, f"samples/{stage}/step-{step}.json")

    def finish(self) -> None:
        self._tracker.finish()


class Trackio:
    """A run in the project named after the recipe, in Trackio's own store."""

    def __init__(self, run_name: str, folder: Path):
        from accelerate.tracking import TrackioTracker

        self._tracker = _started(TrackioTracker(run_name, name=folder.name))

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self._tracker.log({f"{stage}/{name}": value for name, value in values.items()}, step=step)

    def log_samples(self, stage: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        import pandas
        import trackio

        table = trackio.Table(dataframe=pandas.DataFrame(_as_text(rows), columns=list(columns)))
        self._tracker.log({f"{stage}/samples": table}, step=step)

    def finish(self) -> None:
        self._tracker.finish()


NAMED: dict[str, Callable[[str, Path], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MlFlow,
    "trackio": Trackio,
}


def _as_text(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """A missing reward as an empty cell: some tables allow one type a column, and none takes it for a 0."""
    return [["" if cell is None else str(cell) for cell in row] for row in rows]


def _markdown(cell: Any) -> str:
    text = "" if cell is None else f"{cell:.4g}" if isinstance(cell, float) else str(cell)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;").replace("\n", "<br>")
