"""Every shipped recipe loads, is free of contradictions, and stands in the table of recipes/README.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo.config.load import load_recipe
from grpo.util.shipped_recipes import shipped_recipes

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipe(name: str) -> None:
    loaded = load_recipe(name, check_inputs="smollm2" not in name)  # its model is fetched by a script first
    assert f"| {name} |" in (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    assert loaded.recipe.description


def test_there_are_the_three_that_the_readme_promises() -> None:
    assert {"r1_tiny", "r1_zero_tiny", "r1_zero_smollm2"} <= shipped_recipes().keys()
