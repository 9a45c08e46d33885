"""Kill -9, the same command again: what comes out is what would have come out. Real engines, real trainers, processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.end_to_end.conftest import ROOT, SUMS_OVER_A_MODEL, Grpo, rows_of

VARIES = ("time/", "memory/", "rollout/tokens_per_s", "rollout/workers_lost")
LAST_WRITE = 4  # of a checkpoint: after it, the checkpoint is whole and under its name
EVERY_STEP = ["stages.reason.steps=4", "stages.reason.checkpoint_every=1"]


def steady(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics without those that no two runs share."""
    return [{name: value for name, value in row.items() if not name.startswith(VARIES) and not name.endswith("_s")} for row in rows]


def left_by(stage: Path) -> dict[str, Any]:
    """Everything that must repeat: metrics, samples, and the hashes of all that a checkpoint holds of the trainer."""
    manifest = json.loads((stage / "checkpoints" / "step-000004" / "manifest.json").read_text())
    return {
        "metrics": steady(rows_of(stage / "metrics.jsonl")),
        "samples": rows_of(stage / "samples.jsonl"),
        "trainer": {name: record for name, record in manifest["files"].items() if name.startswith("trainer")},
    }


def killed(nth_write: int) -> dict[str, str]:
    return {"GRPO_FAULT": f"kill:saving:{nth_write}"}


def processes_of(folder: Path) -> list[str]:
    """What still runs with ``folder`` in its environment or arguments."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in " ".join([*process.cmdline(), *process.environ().values()]) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {' '.join(process.cmdline())[:80]}")
        except psutil.Error:
            continue
    return found


def gone_within(folder: Path, seconds: float) -> list[str]:
    deadline = time.monotonic() + seconds
    while (left := processes_of(folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def result_of(stage: Path) -> dict[str, Any]:
    """What a finished stage must have made again."""
    return {
        "metrics": steady(rows_of(stage / "metrics.jsonl")),
        "samples": rows_of(stage / "samples.jsonl"),
        "model": (stage / "model" / "model.safetensors").read_bytes(),
    }


def test_kill_9_and_the_same_command_end_in_the_same_bits(grpo: Grpo, small_rl: Path, tmp_path: Path) -> None:
    # 32 prompts: the second epoch begins within the third step.
    changes = ["stages.reason.steps=3", "stages.reason.checkpoint_every=1", "stages.reason.prompts_per_step=12", "rollout.sync=in_place"]

    def run(name: str, fault: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return grpo("run", small_rl, *changes, "--out", tmp_path / name, env={**fault, "MARKED": str(tmp_path)})

    assert run("undisturbed", {}).returncode == 0
    assert run("killed", killed(LAST_WRITE + 2)).returncode == -signal.SIGKILL  # within the second checkpoint
    resumed = run("killed", {})
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "step-000002.writing was left unfinished by an earlier run; removed" in resumed.stdout
    assert "goes on after step 1 of 3, from step-000001" in resumed.stdout
    assert result_of(tmp_path / "killed" / "01-reason") == result_of(tmp_path / "undisturbed" / "01-reason")
    assert not (tmp_path / "killed" / "01-reason" / "checkpoints").exists()  # done: its model is what remains


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "changes",
    [
        ["stages.reason.updates_per_rollout=2", "stages.reason.prompts_per_step=12"],
        ["stages.reason.lora={rank: 4}"],
        ["stages.reason.refresh_reference_every=2"],
        ["rollout.workers=2", "rollout.sync=rebuild"],
        ["rollout.max_staleness=1"],
        ["stages.reason.dynamic_sampling={max_rounds: 1}"],
    ],
    ids=["two-updates", "lora", "refreshed-reference", "two-workers-rebuilt", "drawn-ahead", "dynamic"],
)
def test_optimizer_and_weights_go_on_to_the_bit(grpo: Grpo, small_rl: Path, tmp_path: Path, changes: list[str]) -> None:
    def run(name: str, fault: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return grpo("run", small_rl, *EVERY_STEP, *changes, "--out", tmp_path / name, env=fault)

    # Both end by kill -9 once the last checkpoint is whole, so that it can be looked at.
    assert run("undisturbed", killed(4 * LAST_WRITE)).returncode == -signal.SIGKILL
    assert run("killed", killed(2 * LAST_WRITE + 2)).returncode == -signal.SIGKILL  # within the third checkpoint
    resumed = run("killed", killed(2 * LAST_WRITE))
    assert resumed.returncode == -signal.SIGKILL, resumed.stdout + resumed.stderr
    assert "goes on after step 2 of 4, from step-000002" in resumed.stdout
    assert left_by(tmp_path / "killed" / "01-reason") == left_by(tmp_path / "undisturbed" / "01-reason")
    done = run("killed", {})  # and to the end
    assert done.returncode == 0, done.stdout + done.stderr
    assert "goes on after step 4 of 4" in done.stdout
    assert [row["step"] for row in rows_of(tmp_path / "killed" / "01-reason" / "metrics.jsonl")] == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_saves_and_leaves_no_process(small_rl: Path, tmp_path: Path, grpo: Grpo, signum: signal.Signals) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "grpo.cli", "run", str(small_rl), "stages.reason.steps=60", "--out", str(out)]
    started = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "MARKED": str(tmp_path)}, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    metrics = out / "01-reason" / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        assert started.poll() is None, started.communicate()[0]
        time.sleep(0.05)
    if signum == signal.SIGINT:
        os.killpg(started.pid, signum)  # as a terminal does: everyone in the foreground gets it
    else:
        for process in [psutil.Process(started.pid), *psutil.Process(started.pid).children(recursive=True)]:
            process.send_signal(signum)  # as scancel and systemd do
    stdout, _ = started.communicate(timeout=120)
    assert started.returncode == 128 + signum, stdout
    assert f"{signum.name}: this step is finished and saved" in stdout
    assert gone_within(tmp_path, 20) == []
    assert json.loads((out / "summary.json").read_text())["status"] == "interrupted"
    steps = [row["step"] for row in rows_of(metrics)]
    (kept,) = (out / "01-reason" / "checkpoints").iterdir()
    assert kept.name == f"step-{steps[-1]:06d}"

    on = grpo("run", small_rl, "stages.reason.steps=60", "--out", out, env={"GRPO_FAULT": "kill:update:2"})
    assert on.returncode == -signal.SIGKILL and f"goes on after step {steps[-1]} of 60" in on.stdout, on.stdout + on.stderr
    assert [row["step"] for row in rows_of(metrics)] == [*steps, steps[-1] + 1]


@pytest.mark.slow
def test_a_half_done_stage_keeps_to_its_recipe(grpo: Grpo, small_rl: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert grpo("run", small_rl, *EVERY_STEP, "--out", out, env=killed(LAST_WRITE + 1)).returncode == -signal.SIGKILL
    changed = grpo("run", small_rl, *EVERY_STEP, "stages.reason.learning_rate=1e-4", "--out", out)
    assert changed.returncode == 2
    assert "stage 'reason' in" in changed.stderr and "is half done, but the recipe is another now" in changed.stderr
    assert "changed since: stage.learning_rate" in changed.stderr and "--redo reason" in changed.stderr
    harmless = grpo("run", small_rl, *EVERY_STEP, "stages.reason.steps=5", "stages.reason.checkpoint_every=7", "--out", out)
    assert harmless.returncode == 0, harmless.stderr
    redone = grpo("run", small_rl, "stages.reason.steps=1", "--redo", "reason", "--out", out)
    assert redone.returncode == 0
    assert [row["step"] for row in rows_of(out / "01-reason" / "metrics.jsonl")] == [1]


@pytest.mark.slow
def test_an_edit_is_followed_where_nothing_was_kept(grpo: Grpo, small_rl: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert grpo("run", small_rl, *EVERY_STEP, "--out", out, env={"GRPO_FAULT": "kill:update:1"}).returncode == -signal.SIGKILL
    again = grpo("run", small_rl, "stages.reason.steps=1", "stages.reason.learning_rate=1e-4", "--out", out)
    assert again.returncode == 0, again.stderr
    assert len(rows_of(out / "01-reason" / "metrics.jsonl")) == 1


SUPERVISED = (
    f"name: taught{SUMS_OVER_A_MODEL}"
    + """\
    question: "Calculate {{expression}}."
    completion: worked_sums
    rows: 24
rollout: {{max_sequences: 64}}
stages:
  - {{{stage}, name: taught, data: sums, epochs: 2, batch_size: 10, learning_rate: 1.0e-3, checkpoint_every: 1, lr_schedule: cosine}}
"""
)


TOO_FAST = [  # so that it gets worse, and goes back to an earlier checkpoint
    "stages.taught.validation={every: 2, rows: 4, tolerance: 0.0}",
    "stages.taught.learning_rate=2.0",
    "stages.taught.lr_schedule=constant",
    "stages.taught.epochs=4",
    "stages.taught.keep_checkpoints=2",
]

LOOKED_AT = [
    "data.heldout={reasoning_gym: chain_sum, settings: {max_terms: 2, max_digits: 1}, question: 'Calculate {expression}.', rows: 8, seed: 5}",
    "evaluation={prompts: heldout, max_completion_tokens: 8}",
    "stages.taught.validation={every: 2, by: accuracy}",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("kind: sft", []),
        ("kind: sft", TOO_FAST),
        ("kind: sft", LOOKED_AT),
        ("kind: sft, lora: {rank: 4}", []),
        ("kind: distill, from: {path: STUDENT}", []),
    ],
    ids=["sft", "sft-with-rollbacks", "sft-by-accuracy", "sft-lora", "distill"],
)
def test_supervised_training_goes_on_in_the_middle_of_an_epoch(
    grpo: Grpo, tiny_qwen2: Path, tiny_llama: Path, tmp_path: Path, stage: str, changes: list[str]
) -> None:
    recipe = tmp_path / "taught.yaml"
    recipe.write_text(SUPERVISED.format(model=tiny_qwen2, stage=stage.replace("STUDENT", str(tiny_llama))), encoding="utf-8")

    def run(name: str, fault: dict[str, str]) -> Path:
        result = grpo("run", recipe, *changes, "--out", tmp_path / name, env=fault)
        assert result.returncode == (-signal.SIGKILL if fault else 0), result.stdout + result.stderr
        return tmp_path / name / "01-taught"

    undisturbed = run("undisturbed", {})
    if changes is TOO_FAST:
        assert max(row.get("validation/rollbacks", 0) for row in rows_of(undisturbed / "metrics.jsonl")) >= 2
    run("killed", killed(4 * LAST_WRITE + 2))  # of two or three updates an epoch, the fifth
    resumed = run("killed", {})
    assert steady(rows_of(resumed / "metrics.jsonl")) == steady(rows_of(undisturbed / "metrics.jsonl"))
    model = Path("model") / "model.safetensors"
    assert (resumed / model).read_bytes() == (undisturbed / model).read_bytes()
