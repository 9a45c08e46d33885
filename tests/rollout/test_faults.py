"""Tests that faults are injected only if they exist and are explicitly allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo import run_recipe
from grpo.errors import RecipeError
from rollout.errors import EngineError
from rollout.faults import fault, fault_point, requested_fault


def test_no_fault_is_requested_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRPO_FAULT", raising=False)
    monkeypatch.delenv("GRPO_ALLOW_FAULTS")
    fault_point("saving")
    assert fault() == requested_fault() == ""


@pytest.mark.parametrize("allowed", [None, "0", ""])
@pytest.mark.parametrize("name", ["drop", "kill:saving:1"])
def test_a_fault_that_is_not_allowed_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, allowed: str | None) -> None:
    monkeypatch.setenv("GRPO_FAULT", name)
    monkeypatch.delenv("GRPO_ALLOW_FAULTS")
    if allowed is not None:
        monkeypatch.setenv("GRPO_ALLOW_FAULTS", allowed)
    for ask in (fault, requested_fault, lambda: fault_point("saving")):
        with pytest.raises(EngineError, match="is set without GRPO_ALLOW_FAULTS=1"):
            ask()


@pytest.mark.parametrize("name", ["dorp", "kill:savign:1", "kill:saving"])
def test_a_fault_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("GRPO_FAULT", name)
    with pytest.raises(EngineError, match=f"GRPO_FAULT='{name}' does not exist"):
        fault()


def test_a_fault_that_is_allowed_is_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_FAULT", "drop")
    assert fault() == requested_fault() == "drop"
    monkeypatch.setenv("GRPO_FAULT", "kill:saving:1")
    assert (fault(), requested_fault()) == ("", "kill:saving:1")


def test_a_run_refuses_a_stray_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRPO_FAULT", "drop")
    monkeypatch.delenv("GRPO_ALLOW_FAULTS")
    with pytest.raises(RecipeError, match="is set without GRPO_ALLOW_FAULTS=1"):
        run_recipe("r1_tiny", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
