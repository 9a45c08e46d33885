"""Recipes are real files in a folder of their own; problems come back as the lines a user sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from grpo.config.load import LoadedRecipe, load_recipe
from grpo.errors import RecipeError

SOUND = """\
name: sound
model: org/base
data:
  sums: {general: true, rows: 20}
stages:
  - name: cold
    kind: sft
    data: sums
  - name: reason
    kind: rl
    from: cold
    prompts: sums
    rewards: [{use: math}]
    steps: 12
  - name: harvest
    kind: reject
    from: reason
    prompts: sums
    rewards: [{use: math}]
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write files into the current folder, which is empty at first: write("a.yaml", text) gives "a.yaml"."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str = SOUND) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text), encoding="utf-8")
        return name

    return write


@pytest.fixture
def sound() -> str:
    """A recipe without mistakes, for tests that add one."""
    return SOUND


@pytest.fixture
def load(write: Callable[..., str]) -> Callable[..., LoadedRecipe]:
    """Load a text as r.yaml, with overrides; the files that it names need not be there."""
    return lambda text=SOUND, *overrides: load_recipe(write("r.yaml", text), overrides, check_inputs=False)


@pytest.fixture
def problems(write: Callable[..., str]) -> Callable[..., list[str]]:
    """Everything that is wrong with a text, loaded as r.yaml with overrides: [] if nothing is."""

    def problems(text: str = SOUND, *overrides: str) -> list[str]:
        try:
            load_recipe(write("r.yaml", text), overrides)
        except RecipeError as error:
            return error.problems
        return []

    return problems
