"""kill -9 of a rollout worker, twenty times: at each phase, at a time and on a worker that a seed chooses.

Each run completes, each prompt is counted once, versions are right, and with fixed dispatch every sample is that of the undisturbed run.
Whole runs, with vLLM and a trainer: one kill in each phase, and the weights at the end are the same bits.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from rollout.pool import RolloutPool
from tests.end_to_end.conftest import Grpo, grpo, rows_of, small_rl  # noqa: F401 - fixtures
from tests.rollout.test_pool import make_pool, sample, sync, tokens  # noqa: F401 - fixtures

pytestmark = pytest.mark.faults
PHASES = ("generating", "idle", "syncing", "starting")
STEPS = 4


def schedule(seed: int) -> tuple[str, str]:
    """A phase, and the fault: which worker, and the how-manieth time that it gets there. A worker starts once."""
    phase, rng = PHASES[seed % 4], random.Random(seed)
    count = 1 if phase == "starting" else rng.randint(1, STEPS - 1)
    return phase, f"kill:{phase}:{count}@{rng.randrange(2)}"


def four_steps(pool: RolloutPool) -> list[list[list[tuple[int, ...]]]]:
    found = []
    for step in range(STEPS):
        samples = sample(pool, step)
        assert {completion.version for group in samples for completion in group} == {step}
        found.append(tokens(samples))
        time.sleep(0.25)  # an update, in which workers are idle
        sync(pool, step + 1)
    return found


@pytest.mark.parametrize("seed", range(20), ids=lambda seed: f"{seed}-{schedule(seed)[1]}")
def test_a_kill_at_any_time_changes_nothing(make_pool: Callable[..., RolloutPool], tmp_path: Path, seed: int) -> None:  # noqa: F811
    undisturbed = four_steps(make_pool())
    phase, fault = schedule(seed)
    pool = make_pool(fault=fault)
    found = four_steps(pool)
    assert found == undisturbed
    assert (tmp_path / "happened").exists() and pool.num_lost == 1, f"no worker was killed while {phase}"
    ends = Counter(prompt for step in found for prompt in range(len(step)))
    assert set(ends.values()) == {STEPS}


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kill:generating:3@0", "kill:idle:2@1", "kill:syncing:1@0", "kill:starting:1@1"])
def test_the_weights_at_the_end_are_those_of_an_undisturbed_run(grpo: Grpo, small_rl: Path, tmp_path: Path, fault: str) -> None:  # noqa: F811
    def run(name: str, env: dict[str, str]) -> tuple[str, list[dict], list[dict]]:
        result = grpo("run", small_rl, "rollout.workers=2", "--out", tmp_path / name, env=env)
        assert result.returncode == 0, result.stdout + result.stderr
        stage = tmp_path / name / "01-reason"
        model = hashlib.sha256((stage / "model" / "model.safetensors").read_bytes()).hexdigest()
        return model, rows_of(stage / "samples.jsonl"), rows_of(stage / "metrics.jsonl")

    model, samples, _ = run("undisturbed", {})
    again, samples_again, metrics = run("disturbed", {"GRPO_FAULT": fault, "GRPO_FAULT_MARK": str(tmp_path / "happened")})
    assert (tmp_path / "happened").exists() and metrics[-1]["rollout/workers_lost"] >= 1
    assert json.dumps(samples_again) == json.dumps(samples) and again == model
