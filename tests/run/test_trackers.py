"""Does everything reach the trackers, and can none of them hold up a run: by failing, by hanging, by leaving?"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from grpo.run import trackers
from grpo.run.trackers import Trackers

OWN = """
import json, sys, time

class Writes:
    def __init__(self, run, folder):
        self.file = (folder / "told.jsonl").open("w")
    def log(self, stage, step, values):
        print(json.dumps([stage, step, values]), file=self.file)
    def log_samples(self, stage, step, columns, rows):
        print(json.dumps([stage, step, columns, rows]), file=self.file)
    def finish(self):
        self.file.close()

class CannotStart(Writes):
    def __init__(self, run, folder):
        raise ConnectionError("no such host")

class Leaves(Writes):
    def __init__(self, run, folder):
        sys.exit("log in first")

class FailsOnce(Writes):
    def log(self, stage, step, values):
        if step == 2:
            raise ConnectionError("connection reset")
        super().log(stage, step, values)

class Hangs(Writes):
    def log(self, stage, step, values):
        time.sleep(3600)

class NeverFinishes(Writes):
    def finish(self):
        time.sleep(3600)
"""


class Told:
    """Trackers over one class of OWN, and what they said."""

    def __init__(self, folder: Path, *names: str):
        (folder / "own.py").write_text(OWN)
        self.folder, self.said = folder, []
        self.trackers = Trackers([f"./own.py:{name}" for name in names], "name", folder, folder, self.said.append)

    def rows(self) -> list[Any]:
        return [json.loads(line) for line in (self.folder / "told.jsonl").read_text().splitlines()]


def test_numbers_and_samples_arrive_in_order_and_nan_does_not(tmp_path: Path) -> None:
    told = Told(tmp_path, "Writes")
    samples = [{"prompt": "3 + 4", "answer": 7, "text": "7", "reward": 1.0, "advantage": 0.5, "finish": "stop", "version": 3}]
    told.trackers.step("02-reason", 1, {"reward/total": 0.5, "loss/total": float("nan"), "sync/version": 1}, samples)
    told.trackers.step("02-reason", 2, {"reward/total": 0.75}, samples)
    told.trackers.close()
    assert told.rows() == [
        ["02-reason", 1, {"reward/total": 0.5, "sync/version": 1.0}],
        ["02-reason", 1, ["prompt", "answer", "text", "reward", "advantage", "finish"], [["3 + 4", 7, "7", 1.0, 0.5, "stop"]]],
        ["02-reason", 2, {"reward/total": 0.75}],  # samples of every tenth step only
    ]
    assert told.said == []


def test_a_reward_that_nobody_could_judge_stays_empty(tmp_path: Path) -> None:
    told = Told(tmp_path, "Writes")
    told.trackers.step("01-a", 1, {}, [{"prompt": "p", "reward": None}])
    told.trackers.close()
    assert told.rows()[1][3] == [["p", None, None, None, None, None]]


@pytest.mark.parametrize(("name", "reason"), [("CannotStart", "ConnectionError: no such host"), ("Leaves", "SystemExit: log in first")])
def test_one_that_cannot_start_is_complained_about_once(name: str, reason: str, tmp_path: Path) -> None:
    told = Told(tmp_path, name)
    for step in range(1, 6):
        told.trackers.step("01-a", step, {"loss/total": 1.0})
    told.trackers.close()
    complaint, count = told.said
    assert reason in complaint and "the run goes on" in complaint
    assert "5 of 5 entries did not arrive" in count


def test_a_failure_in_between_loses_one_entry(tmp_path: Path) -> None:
    told = Told(tmp_path, "FailsOnce")
    for step in range(1, 5):
        told.trackers.step("01-a", step, {"loss/total": 1.0})
    told.trackers.close()
    assert [row[1] for row in told.rows()] == [1, 3, 4]
    complaint, count = told.said
    assert "connection reset" in complaint and "1 of 4 entries" in count


@pytest.mark.parametrize("name", ["Hangs", "NeverFinishes"])
def test_one_that_hangs_is_left_behind_and_the_others_are_not(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "CLOSE_DEADLINE_S", 1.0)
    monkeypatch.setattr(trackers, "QUEUE_LENGTH", 4)
    (tmp_path / "hanging").mkdir()
    hanging, writing = Told(tmp_path / "hanging", name), Told(tmp_path, "Writes")
    started = time.monotonic()
    for step in range(1, 4):
        hanging.trackers.step("01-a", step, {"loss/total": 1.0})
        writing.trackers.step("01-a", step, {"loss/total": 1.0})
    hanging.trackers.close()
    writing.trackers.close()
    assert time.monotonic() - started < 5
    assert "did not finish within 1 s" in hanging.said[0]
    assert [row[1] for row in writing.rows()] == [1, 2, 3] and writing.said == []


def test_what_a_hanging_one_keeps_in_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "CLOSE_DEADLINE_S", 0.2)
    monkeypatch.setattr(trackers, "QUEUE_LENGTH", 4)
    told = Told(tmp_path, "Hangs")
    for step in range(1, 101):
        told.trackers.step("01-a", step, {"loss/total": 1.0})
    told.trackers.close()
    complaint, count = told.said
    assert "takes nothing any more" in complaint and "100 of 100 entries" in count


def test_without_trackers_nothing_is_started(tmp_path: Path) -> None:
    told = Told(tmp_path)
    told.trackers.step("01-a", 1, {"loss/total": 1.0})
    told.trackers.close()
    assert told.said == [] and not (tmp_path / "told.jsonl").exists()


def test_naming_a_tracker_makes_nothing_be_done_again(tmp_path: Path) -> None:
    """A finished stage is known by the fingerprint of what its result follows from, and trackers are not part of it."""
    from grpo.config.load import load_recipe
    from grpo.plan import make_plan
    from grpo.run.folder import RunFolder

    plans = [make_plan(load_recipe("r1_zero_tiny", changes), RunFolder(tmp_path)) for changes in ([], ["trackers=[tensorboard]"])]
    assert [stage.fingerprint for stage in plans[0]] == [stage.fingerprint for stage in plans[1]]


def events(folder: Path) -> Iterator[Any]:
    """What TensorBoard reads: a record is its length (8 bytes), a checksum (4), the event, a checksum (4)."""
    from tensorboardX.proto.event_pb2 import Event

    (file,) = (folder / "tensorboard").glob("events.*")
    data = file.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def test_tensorboard_gets_scalars_by_stage_and_samples_as_text(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    said: list[str] = []
    told = Trackers(["tensorboard"], "name", tmp_path, tmp_path, said.append)
    told.step("01-cold", 1, {"loss/total": 2.0})
    told.step("02-reason", 1, {"reward/total": 0.25}, [{"prompt": "a | <b>", "text": "two\nlines", "reward": None}])
    told.step("02-reason", 2, {"reward/total": 0.5})
    told.close()
    values = [(event.step, value) for event in events(tmp_path) for value in event.summary.value]
    scalars = [(value.tag, step, value.simple_value) for step, value in values if value.HasField("simple_value")]
    assert scalars == [("01-cold/loss/total", 1, 2.0), ("02-reason/reward/total", 1, 0.25), ("02-reason/reward/total", 2, 0.5)]
    (text,) = [value.tensor.string_val[0].decode() for _, value in values if value.HasField("tensor")]
    assert "| a &#124; &lt;b> |  | two<br>lines |  |  |  |" in text
    assert said == []


def test_the_class_that_the_documentation_shows_works(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "commands.md").read_text(encoding="utf-8")
    block = page[page.index("    # my_tracker.py") :].split("\n\n")[0]
    (tmp_path / "my_tracker.py").write_text(dedent(block))
    said: list[str] = []
    told = Trackers(["./my_tracker.py:Lines"], "name", tmp_path, tmp_path, said.append)
    told.step("01-a", 1, {"loss/total": 1.0}, [{"prompt": "p"}])
    told.close()
    assert (tmp_path / "lines.txt").read_text() == "01-a 1 {'loss/total': 1.0}\n" and said == []
