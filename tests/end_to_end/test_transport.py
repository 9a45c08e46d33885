"""Weights that go from the trainer's memory straight to the engines': the same run, and the same proofs, as through main memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Grpo, rows_of
from tests.end_to_end.test_resume import steady

pytestmark = pytest.mark.slow


@pytest.fixture
def nixl() -> None:
    pytest.importorskip("nixl", reason="not part of the set-up: pip install nixl")


@pytest.mark.gpu
@pytest.mark.parametrize("transport", ["cuda_ipc", "nixl"])
def test_weights_go_from_the_trainer_to_an_engine_on_the_same_gpu(grpo: Grpo, small_rl: Path, tmp_path: Path, transport: str) -> None:
    if transport == "nixl":
        pytest.importorskip("nixl", reason="not part of the set-up: pip install nixl")
    result = grpo("run", small_rl, f"rollout.transport={transport}", "--out", tmp_path / "run")
    assert result.returncode == 0, result.stdout + result.stderr
    assert [row["sync/version"] for row in rows_of(tmp_path / "run" / "01-reason" / "metrics.jsonl")] == [1, 2]


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("nixl")
def test_a_run_through_nixl_is_the_run_through_main_memory_also_where_a_worker_is_lost(grpo: Grpo, small_rl: Path, tmp_path: Path) -> None:
    def run(transport: str, **fault: str) -> list[dict]:
        out = tmp_path / f"{transport}{len(fault)}"
        result = grpo("run", small_rl, f"rollout.transport={transport}", "--out", out, env=fault)
        assert result.returncode == 0, result.stdout + result.stderr
        return steady(rows_of(out / "01-reason" / "metrics.jsonl"))

    through_memory = run("host")
    assert run("nixl") == through_memory
    lost = run("nixl", GRPO_FAULT="kill:syncing:1", GRPO_FAULT_MARK=str(tmp_path / "killed"))
    assert (tmp_path / "killed").exists()
    assert max(row.pop("rollout/workers_lost") for row in lost) == 1 and {row.pop("rollout/workers_lost") for row in through_memory} == {0}
    assert lost == through_memory


@pytest.mark.usefixtures("nixl")
@pytest.mark.parametrize("fault", ["drop", "stale", "transpose"])
def test_a_corrupted_sync_through_nixl_ends_the_run_and_names_the_tensor(grpo: Grpo, small_rl: Path, tmp_path: Path, fault: str) -> None:
    result = grpo("run", small_rl, "rollout.transport=nixl", "--out", tmp_path / "run", env={"GRPO_FAULT": fault})
    assert result.returncode == 1
    assert re.search(r"is not what the trainer sent: \S+\.weight (was not received|differs from what was sent)", result.stderr), (
        result.stderr
    )
