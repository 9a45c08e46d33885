"""Tests that faults are injected only if they exist and are explicitly allowed."""

from __future__ import annotations

import pytest

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
        with pytest.raises(EngineError, match="GRPO_ALLOW_FAULTS=1 is not set"):
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
