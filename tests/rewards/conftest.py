"""Users' rewards as they write them: a file in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from rewards import ScoreInput


@pytest.fixture
def reward_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file of rewards, and returns the folder it is in."""

    def write(source: str, name: str = "mine.py") -> Path:
        (tmp_path / name).write_text(dedent(source), encoding="utf-8")
        return tmp_path

    return write


@pytest.fixture
def samples() -> Callable[..., list[ScoreInput]]:
    """One sample for each completion, all with the same columns."""

    def make(*completions: str, **columns: Any) -> list[ScoreInput]:
        return [ScoreInput({"prompt": "q", "completion": text, "finish": "stop", **columns}) for text in completions]

    return make
