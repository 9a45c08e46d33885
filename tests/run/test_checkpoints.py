"""A checkpoint is whole or not there: whatever kills the writer, whichever bit flips, the newest whole one is found, and two always stay."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from grpo.errors import CheckpointError, StorageError
from grpo.run.checkpoints import MANIFEST, Checkpoints, problem_of
from grpo.util.storage import check_room


def save(checkpoints: Checkpoints, step: int, score: float | None = None) -> None:
    folder = checkpoints.begin(step)
    (folder / "trainer-0.safetensors").write_bytes(bytes([step]) * 1000)
    (folder / "trainer-1.safetensors").write_bytes(bytes([step]) * 10)
    checkpoints.finish(step, {"gap": 0.1 + 0.2, "bound": float("inf")}, score)


def steps_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_comes_back_to_the_bit_and_infinity_as_none(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path), 7)
    found = Checkpoints(tmp_path).newest()
    assert found is not None and found.step == 7
    assert found.state["gap"] == 0.1 + 0.2 and found.state["bound"] is None
    assert (found.path / "trainer-0.safetensors").read_bytes() == b"\7" * 1000


def test_nothing_saved_is_nothing_found(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none").newest() is None


WRITER = """
import sys
from pathlib import Path
from tests.run.test_checkpoints import save
from grpo.run.checkpoints import Checkpoints
checkpoints = Checkpoints(Path(sys.argv[1]))
checkpoints.newest()
save(checkpoints, int(sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("nth", "newest"),
    [(1, 20), (2, 20), (3, 20), (4, 30)],  # before the state, before the manifest, before the rename; after it, before the oldest goes
)
def test_a_kill_between_any_two_writes_leaves_a_whole_checkpoint(tmp_path: Path, nth: int, newest: int) -> None:
    for step in (10, 20):
        save(Checkpoints(tmp_path), step)
    writer = [sys.executable, "-c", WRITER, str(tmp_path), "30"]
    fault = {"GRPO_FAULT": f"kill:saving:{nth}"}
    root = Path(__file__).parents[2]
    assert subprocess.run(writer, env={**os.environ, **fault}, cwd=root, check=False).returncode == -signal.SIGKILL
    said: list[str] = []
    after = Checkpoints(tmp_path, say=said.append)
    found = after.newest()
    assert found is not None and found.step == newest
    assert [line.strip() for line in said] == (
        [] if newest == 30 else ["step-000030.writing was left unfinished by an earlier run; removed"]
    )
    save(after, 40)
    assert steps_in(tmp_path) == [f"step-{newest:06d}", "step-000040"]


@pytest.mark.parametrize("file", ["trainer-0.safetensors", "trainer-1.safetensors", "state.json", MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_file_is_named_and_the_one_before_is_used(tmp_path: Path, file: str, damage: str) -> None:
    for step in (10, 20):
        save(Checkpoints(tmp_path), step)
    damaged = tmp_path / "step-000020" / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "remove":
        damaged.unlink()
    else:
        damaged.write_bytes(content if damage == "flip" else content[:-1])
    said: list[str] = []
    found = Checkpoints(tmp_path, say=said.append).newest()
    assert found is not None and found.step == 10
    (line,) = said
    assert "checkpoint step-000020 is not used: " in line
    # A flip inside the manifest may fall into another file's name, size or hash, and that file is then the one named.
    assert file in line or file == MANIFEST


def test_every_single_bit_of_a_manifest_matters(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path), 10)
    manifest = tmp_path / "step-000010" / MANIFEST
    content = manifest.read_bytes()
    for position in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[position] ^= 1
        manifest.write_bytes(flipped)
        changes_meaning = re.sub(rb"\s", b"", bytes(flipped)) != re.sub(rb"\s", b"", content)
        assert (problem_of(manifest.parent) is not None) or not changes_meaning, (position, bytes(flipped))


def test_two_stay_at_least_and_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step, score in ((10, 0.5), (20, 0.9), (30, None), (40, 0.8), (50, 0.7)):
        save(checkpoints, step, score)
    assert steps_in(tmp_path) == ["step-000020", "step-000040", "step-000050"]


def test_one_that_is_not_whole_does_not_count_among_those_that_stay(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(Checkpoints(tmp_path, keep=3), step)
    (tmp_path / "step-000030" / "state.json").write_text("{}")
    resumed = Checkpoints(tmp_path, keep=2)
    found = resumed.newest()
    assert found is not None and found.step == 20
    save(resumed, 30)  # in place of the broken one
    assert problem_of(tmp_path / "step-000030") is None
    assert steps_in(tmp_path) == ["step-000020", "step-000030"]


def test_too_little_room_is_told_in_bytes(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"bytes free and 1,152,921,504,606,846,976 are needed; .*earlier checkpoints are untouched"):
        check_room(tmp_path, 2**60)


@pytest.mark.faults
def test_a_disk_that_fills_up_loses_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False).returncode != 0:
        pytest.skip("needs the right to mount a small disk")
    try:
        save(Checkpoints(disk), 10)
        with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while filler.write(bytes(1024)):
                pass
        (disk / "filler").open("r+b").truncate((disk / "filler").stat().st_size - 8192)
        checkpoints = Checkpoints(disk)
        folder = checkpoints.begin(20)
        with pytest.raises(StorageError, match=r"bytes are free"):
            checkpoints.finish(20, {"long": "x" * 16384})
        assert not folder.exists()
        found = Checkpoints(disk).newest()
        assert found is not None and found.step == 10
    finally:
        subprocess.run(["umount", disk], check=True)


def test_the_best_stays_after_a_resume_and_is_found_by_its_step(tmp_path: Path) -> None:
    first = Checkpoints(tmp_path)
    for step, score in ((10, 0.9), (20, None), (30, 0.2)):
        save(first, step, score)
    again = Checkpoints(tmp_path)
    assert again.newest() is not None
    for step in (40, 50):
        save(again, step)
    assert steps_in(tmp_path) == ["step-000010", "step-000040", "step-000050"]
    assert again.at(10).step == 10 and (again.at(10).path / "trainer-0.safetensors").read_bytes() == b"\n" * 1000


def test_a_best_that_is_not_whole_is_an_error_where_it_is_needed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 10, 0.9)
    (tmp_path / "step-000010" / "trainer-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"step-000010 is needed and cannot be used: trainer-1.safetensors is missing"):
        checkpoints.at(10)
