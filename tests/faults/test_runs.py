"""Kills, signals, full disks and memory against whole runs: what is said, what remains, and that the same command goes on."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from grpo.run.checkpoints import Checkpoints
from tests.end_to_end.conftest import SUMS_OVER_A_MODEL, Grpo, rows_of
from tests.end_to_end.test_resume import gone_within, steady
from tests.faults.conftest import Begun, small_disk, wait_until

pytestmark = pytest.mark.faults
STAGE = "01-reason"


def status_of(out: Path) -> str:
    return json.loads((out / "summary.json").read_text())["status"]


def outcome(out: Path) -> dict[str, Any]:
    return {
        "model": (out / STAGE / "model" / "model.safetensors").read_bytes(),
        "samples": rows_of(out / STAGE / "samples.jsonl"),
        "metrics": steady(rows_of(out / STAGE / "metrics.jsonl")),
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_is_killed_in_every_step_ends_like_an_undisturbed_one(grpo: Grpo, scripted: Path, tmp_path: Path) -> None:
    assert grpo("run", scripted, "--out", tmp_path / "undisturbed").returncode == 0
    # Each start makes one step and dies while it hands out the weights of the next, until there is none.
    killed = grpo("run", scripted, "--restarts", 4, "--out", tmp_path / "run", env={"GRPO_FAULT": "kill:sync:2"}, timeout_s=500)
    assert killed.returncode == 0, killed.stdout + killed.stderr
    assert killed.stderr.count("was killed by signal 9") == 3
    assert outcome(tmp_path / "run") == outcome(tmp_path / "undisturbed")
    steps = [row["step"] for row in rows_of(tmp_path / "run" / STAGE / "metrics.jsonl")]
    prompts = {row["prompt_id"] for row in rows_of(tmp_path / "run" / STAGE / "samples.jsonl")}
    assert steps == [1, 2, 3, 4] and len(prompts) == 32  # the whole epoch, and each prompt once


@pytest.mark.parametrize(
    ("signum", "pause", "staleness"),
    [
        (signal.SIGTERM, "hang:generating:2+2", 0),
        (signal.SIGINT, "hang:updating:2+2", 0),
        (signal.SIGTERM, "hang:saving:6+2", 0),  # between the writes of the second checkpoint
        (signal.SIGTERM, "hang:updating:2+2", 2),
    ],
    ids=["while-sampling", "in-an-update", "in-a-save", "while-drawing-ahead"],
)
def test_a_signal_in_any_part_of_a_step_lets_it_end_and_saves_it(
    begun: Begun, scripted: Path, tmp_path: Path, signum: signal.Signals, pause: str, staleness: int
) -> None:
    out = tmp_path / "run"
    run = begun("run", scripted, "stages.reason.steps=60", f"rollout.max_staleness={staleness}", "--out", out, fault=pause)
    wait_until((tmp_path / "happened").exists, run)
    run.send_signal(signum)
    stdout, stderr = run.communicate(timeout=120)
    assert run.returncode == 128 + signum, stdout + stderr
    assert f"{signum.name}: this step is finished and saved" in stdout and "Traceback" not in stderr
    assert gone_within(tmp_path, 30) == []
    assert status_of(out) == "interrupted"
    newest = Checkpoints(out / STAGE / "checkpoints").newest()
    assert newest is not None and newest.step == rows_of(out / STAGE / "metrics.jsonl")[-1]["step"] < 60


@pytest.mark.parametrize(
    ("signum", "pause"),
    [(signal.SIGTERM, "hang:updating:3+3"), (signal.SIGINT, "hang:generating:3+3"), (signal.SIGHUP, "hang:updating:3+3")],
    ids=["scancel-in-an-update", "terminal-while-sampling", "hang-up-in-an-update"],
)
def test_a_signal_to_all_processes_of_a_run_saves_and_the_same_command_goes_on(
    begun: Begun, grpo: Grpo, scripted: Path, tmp_path: Path, signum: signal.Signals, pause: str
) -> None:
    out = tmp_path / "run"
    changes = ["stages.reason.checkpoint_every=1000", "stages.reason.steps=4"]
    run = begun("run", scripted, *changes, "--out", out, fault=pause)
    wait_until((tmp_path / "happened").exists, run)
    everyone = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
    assert {"gcs_server", "raylet"} < {process.name() for process in everyone} and len(everyone) > 7
    for process in everyone:
        process.send_signal(signum)
    stdout, stderr = run.communicate(timeout=120)
    assert run.returncode == 128 + signum, stdout + stderr
    assert "Traceback" not in stderr and "GCS" not in stderr
    assert gone_within(tmp_path, 5) == []
    assert status_of(out) == "interrupted"
    newest = Checkpoints(out / STAGE / "checkpoints").newest()
    assert newest is not None and newest.step == rows_of(out / STAGE / "metrics.jsonl")[-1]["step"] < 4
    again = grpo("run", scripted, *changes, "--out", out)
    assert again.returncode == 0 and f"goes on after step {newest.step} of 4" in again.stdout, again.stdout + again.stderr
    assert [row["step"] for row in rows_of(out / STAGE / "metrics.jsonl")] == [1, 2, 3, 4]


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_second_signal_does_not_wait_for_the_step(begun: Begun, scripted: Path, tmp_path: Path, staleness: int) -> None:
    out = tmp_path / "run"
    run = begun("run", scripted, f"rollout.max_staleness={staleness}", "--out", out, fault="hang:updating:2")  # a step that never ends
    wait_until((tmp_path / "happened").exists, run)
    run.send_signal(signal.SIGTERM)
    time.sleep(1.0)
    assert run.poll() is None, "the first signal waits for the step"
    run.send_signal(signal.SIGTERM)
    stdout, stderr = run.communicate(timeout=60)
    assert run.returncode == 143, stdout + stderr
    assert gone_within(tmp_path, 30) == []
    assert status_of(out) == "interrupted"
    newest = Checkpoints(out / STAGE / "checkpoints").newest()
    assert newest is not None and newest.step == 1


def test_no_process_of_a_run_listens_beyond_the_loopback_interface(begun: Begun, scripted: Path, tmp_path: Path) -> None:
    env = {"RAY_ADDRESS": "local", "HOME": "/proc/nohome", "TMPDIR": str(tmp_path / (95 * "x"))}
    run = begun("run", scripted, "stages.reason.steps=2", "--out", tmp_path / "run", fault="hang:updating:2+5", **env)
    wait_until((tmp_path / "happened").exists, run)
    everyone = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
    listening = {
        (process.name(), connection.laddr.ip)
        for process in everyone
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert len(listening) > 3, listening
    assert [name for name, ip in listening if not ipaddress.ip_address(ip.removeprefix("::ffff:")).is_loopback] == []
    stdout, stderr = run.communicate(timeout=120)
    assert run.returncode == 0, stdout + stderr


@pytest.mark.parametrize("room", [200_000, 0], ids=["too-little-for-a-checkpoint", "none-at-all"])
def test_a_disk_that_fills_up_stops_the_run_with_numbers_and_the_run_goes_on_once_there_is_room(
    begun: Begun, grpo: Grpo, scripted: Path, tmp_path: Path, room: int
) -> None:
    with small_disk(tmp_path / "disk", "16m") as disk:
        out = disk / "run"
        run = begun("run", scripted, "stages.reason.steps=3", "--out", out, fault="hang:updating:3+4")
        wait_until((tmp_path / "happened").exists, run)
        filler = disk / "filler"
        fill(filler, leaving=room)
        stdout, stderr = run.communicate(timeout=120)
        assert run.returncode == 1, stdout + stderr
        assert "Traceback" not in stderr and ("bytes free" in stderr or "bytes are free" in stderr)
        assert "the run resumes" in stderr
        assert ("are needed" in stderr) == bool(room)
        newest = Checkpoints(out / STAGE / "checkpoints").newest()
        assert newest is not None and newest.step == 2
        filler.unlink()
        again = grpo("run", scripted, "stages.reason.steps=3", "--out", out)
        assert again.returncode == 0, again.stdout + again.stderr
        assert "goes on after step 2 of 3" in again.stdout
        assert [row["step"] for row in rows_of(out / STAGE / "metrics.jsonl")] == [1, 2, 3]


def fill(file: Path, leaving: int) -> None:
    """Write until there is no room, then give ``leaving`` bytes back."""
    with file.open("wb", buffering=0) as opened:
        try:
            while opened.write(bytes(4096)):
                pass
        except OSError:
            pass
        opened.truncate(file.stat().st_size - leaving)


def test_a_read_only_folder_is_refused_before_anything_is_loaded(grpo: Grpo, scripted: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m", "ro") as disk:
        result = grpo("run", scripted, "--out", disk / "run", env={"MARKED": str(tmp_path)})
    assert result.returncode == 2
    assert f"cannot write to {disk}/run: Read-only file system; choose another folder with --out" in result.stderr
    assert result.stdout == "" and "Traceback" not in result.stderr


def test_a_trainer_that_dies_ends_the_run_with_numbers_and_leaves_no_process(grpo: Grpo, scripted: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = grpo("run", scripted, "--out", out, env={"GRPO_FAULT": "kill:updating:3", "MARKED": str(tmp_path)})
    assert result.returncode == 1 and "Traceback" not in result.stderr
    for words in (
        "the trainer's process died",
        "GiB",
        "Lower max_tokens_per_micro_batch",
        "gradient_checkpointing",
        "lora",
        "the run resumes",
    ):
        assert words in result.stderr
    assert gone_within(tmp_path, 30) == []
    summary = json.loads((out / "summary.json").read_text())
    assert summary["status"] == summary["stages"][0]["status"] == "failed"
    assert summary["error"] == summary["stages"][0]["error"] and summary["error"]["kind"] == "TrainingError"
    assert summary["error"]["message"].startswith("the trainer's process died") and "\n" not in summary["error"]["message"]
    newest = Checkpoints(out / STAGE / "checkpoints").newest()
    assert newest is not None and newest.step == 2


def test_an_update_that_asks_for_too_much_memory_is_told_with_numbers(grpo: Grpo, scripted: Path, tmp_path: Path) -> None:
    result = grpo("run", scripted, "--out", tmp_path / "run", env={"GRPO_FAULT": "out_of_memory"})
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "the trainer ran out of memory (" in result.stderr and "can't allocate memory" in result.stderr
    for words in ("GiB", "Lower max_tokens_per_micro_batch", "gradient_checkpointing", "lora", "the run resumes"):
        assert words in result.stderr


TWO_STAGES = (
    f"name: twice{SUMS_OVER_A_MODEL}"
    + """\
    question: "Calculate {{expression}}."
    completion: worked_sums
    rows: 16
rollout: {{max_sequences: 64}}
stages:
  - &taught {{name: first, kind: sft, data: sums, batch_size: 4, learning_rate: 1.0e-3, checkpoint_every: 1}}
  - {{<<: *taught, name: second, from: first}}
"""
)


@pytest.mark.slow
def test_finished_stages_are_skipped_the_broken_one_goes_on_and_one_not_begun_follows_an_edit(
    grpo: Grpo, tiny_qwen2: Path, tmp_path: Path
) -> None:
    recipe, out = tmp_path / "twice.yaml", tmp_path / "run"
    recipe.write_text(TWO_STAGES.format(model=tiny_qwen2), encoding="utf-8")

    def run(*changes: str, fault: str = "") -> subprocess.CompletedProcess[str]:
        return grpo("run", recipe, *changes, "--out", out, env={"GRPO_FAULT": fault})

    edit = "stages.second.learning_rate=0.01"
    assert run(fault="kill:saving:6").returncode == -signal.SIGKILL  # within the second checkpoint of the first stage
    in_the_second = run(edit, fault="kill:saving:18")  # three more checkpoints of the first stage, and one of the second
    assert in_the_second.returncode == -signal.SIGKILL
    assert "goes on after update 1 of 4" in in_the_second.stdout
    done = run(edit)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[1/2] first: done before, skipped" in done.stdout and "goes on after update 1 of 4" in done.stdout
    assert {row["train/learning_rate"] for row in rows_of(out / "02-second" / "metrics.jsonl")} == {0.01}
    again = run(edit)
    assert again.returncode == 0 and "already complete" in again.stdout
    world = run(edit, "trainer.ranks=2")
    assert world.returncode == 2 and "trainer.ranks" in world.stderr and "--redo first" in world.stderr


def test_what_is_left_of_a_killed_run_is_no_process(begun: Begun, scripted: Path, tmp_path: Path) -> None:
    run = begun("run", scripted, "--out", tmp_path / "run", fault="hang:updating:1")
    wait_until((tmp_path / "happened").exists, run)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    assert gone_within(tmp_path, 120) == []
