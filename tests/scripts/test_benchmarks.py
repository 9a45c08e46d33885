"""Benchmarks run, and their last line is the object that a script reads. No test looks at how fast anything was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def last_line(*arguments: str) -> dict[str, Any]:
    result = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_bench_trainer_compares_with_the_naive_way_and_with_matrix_products() -> None:
    script = SCRIPTS / "bench_trainer.py"
    found = last_line(script, "--model", "tiny", "--shapes", "12/6", "--prompts", "2", "--samples", "3", "--rounds", "1", "--json")
    assert found["ratio"] > 0 and found["model"] == "tiny"
    shape = found["shapes"]["12/6"]
    assert shape["tokens"] < 2 * (12 + 3 * 9)  # each prompt once
    assert shape["utilisation"] * shape["matmul_gflops"] == pytest.approx(shape["useful_gflops"])
    assert shape["ratio"] == shape["naive_s"] / shape["ours_s"]


def test_bench_trainer_measures_memory_in_processes_of_their_own() -> None:
    found = last_line(SCRIPTS / "bench_trainer.py", "--model", "tiny", "--memory", "2x2x8", "--json")
    assert found["ours"]["peak_gib"] >= found["ours"]["before_gib"] > 0 and found["naive"]["peak_gib"] > 0
    assert found["logits_gib"] == 2 * 2 * 8 * 400 * 4 / 2**30


@pytest.mark.slow
def test_bench_rollout_overlaps_a_step_with_the_next_ones_samples() -> None:
    found = last_line(SCRIPTS / "bench_rollout.py", "--overlap", "--seconds", "0.5", "--json")
    assert found["rollouts_begun"]["strict"] == [1, 2, 3, 4, 5]
    overlapped = found["rollouts_begun"]["overlapped"]  # on a busy machine a sync may take as long as an update
    assert overlapped[0] == 2 and all(begun in (step + 1, min(step + 2, 5)) for step, begun in enumerate(overlapped))
    assert found["ratio"] == found["overlapped_s"] / found["strict_s"]


def test_bench_rewards_rates_three_kinds_of_steps() -> None:
    found = last_line(SCRIPTS / "bench_rewards.py", "--prompts", "4", "--samples", "4", "--rounds", "1", "--json")
    assert found["rates"].keys() == {"plain", "formulas", "mixed"} and min(found["rates"].values()) > 0
    assert found["scores_per_s"] == found["rates"]["mixed"] and found["processes"] == 2


@pytest.mark.slow
def test_bench_rollout_compares_with_a_bare_engine_and_measures_the_controller() -> None:
    small = ("--prompts", "2", "--samples", "2", "--tokens", "8", "--rounds", "1", "--json")
    found = last_line(SCRIPTS / "bench_rollout.py", *small)
    assert found["tokens"] == 2 * 2 * 8 and found["ratio"] == found["samples_per_s"]["pool"] / found["samples_per_s"]["bare"]
    found = last_line(SCRIPTS / "bench_rollout.py", "--controller", "--workers", "3", *small)
    assert found["samples"] == 4 and found["wall_s"] >= found["controller_s"] > 0
