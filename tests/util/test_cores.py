"""What containers and batch jobs allow counts, not what the machine has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from grpo.util import cores
from grpo.util.cores import num_cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux tells")
def test_cores_that_this_process_may_not_use_do_not_count() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert num_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert num_cores() == len(allowed)


@pytest.mark.parametrize(
    ("limit", "expected"), [("150000 100000", 2), ("100000 100000", 1), ("20000 100000", 1), ("max 100000", 8), ("900000 100000", 8)]
)
def test_a_containers_share_of_time_is_a_limit_too(limit: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "cpu.max")
    assert num_cores() == 8
    (tmp_path / "cpu.max").write_text(limit + "\n")
    assert num_cores() == expected
