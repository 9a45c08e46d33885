"""kill -9 of driver, trainer or rollout worker, twenty times, at a phase and a moment that a seed chooses; `--restarts` begins again.

Each prompt of an epoch is consumed once, steps only grow, and weights and samples at the end are those of the undisturbed run.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.conftest import SMALL_RL, Grpo, grpo, rows_of, small_rl  # noqa: F401 - fixtures
from tests.end_to_end.test_resume import gone_within, steady

pytestmark = [pytest.mark.faults, pytest.mark.slow]
# Phase: the points at which it can be met, each of one process. A point counts once a step, but for those of a checkpoint's four writes.
PHASES = {
    "generating": ("rollout", "generating"),  # the driver, a worker
    "updating": ("update", "updating"),  # the driver, the trainer
    "syncing": ("sync", "syncing"),  # the driver, a worker
    "saving": ("saving",),  # the driver
}
STEPS = 4


def schedule(seed: int) -> tuple[str, str]:
    """A phase and the fault: where, the how-manieth time, and in half of them up to half a second later."""
    phase, rng = list(PHASES)[seed % len(PHASES)], random.Random(seed)
    point = rng.choice(PHASES[phase])
    count = rng.randint(1, 4 * STEPS) if phase == "saving" else rng.randint(1, STEPS)
    delay = f"+{rng.random() / 2:.2f}" if rng.random() < 0.5 else ""
    return phase, f"kill:{point}:{count}{delay}"


def outcome(stage: Path) -> dict[str, Any]:
    return {
        "model": hashlib.sha256((stage / "model" / "model.safetensors").read_bytes()).hexdigest(),
        "samples": rows_of(stage / "samples.jsonl"),
        "metrics": steady(rows_of(stage / "metrics.jsonl")),
    }


@pytest.fixture(scope="session")
def undisturbed() -> dict[str, Any]:
    return {}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(20), ids=lambda seed: f"{seed}-{schedule(seed)[1]}")
def test_a_kill_at_any_time_changes_nothing(
    grpo: Grpo,  # noqa: F811
    small_rl: Path,  # noqa: F811
    tmp_path: Path,
    undisturbed: dict[str, Any],
    seed: int,
) -> None:
    # Two workers would each have a share of the two cores; one keeps the batches, and so the bits, the same.
    changes = [f"stages.reason.steps={STEPS}", "stages.reason.checkpoint_every=1", "stages.reason.prompts_per_step=8"]
    if not undisturbed:
        result = grpo("run", small_rl, *changes, "--out", tmp_path / "undisturbed")
        assert result.returncode == 0, result.stdout + result.stderr
        undisturbed.update(outcome(tmp_path / "undisturbed" / "01-reason"))
    happened = tmp_path / "happened"
    fault = {"GRPO_FAULT": schedule(seed)[1], "GRPO_FAULT_MARK": str(happened), "MARKED": str(tmp_path)}
    result = grpo("run", small_rl, *changes, "--restarts", 2, "--out", tmp_path / "run", env=fault, timeout_s=500)
    assert result.returncode == 0, result.stdout + result.stderr
    assert happened.exists(), "nothing was killed"
    found = outcome(tmp_path / "run" / "01-reason")
    assert [row["step"] for row in found["metrics"]] == list(range(1, STEPS + 1))
    # 32 prompts are one epoch of four steps of eight.
    assert set(Counter(row["prompt_id"] for row in found["samples"]).values()) == {4}
    assert len({row["prompt_id"] for row in found["samples"]}) == 32
    assert json.dumps(found) == json.dumps(undisturbed)
    assert gone_within(tmp_path, 30) == []
