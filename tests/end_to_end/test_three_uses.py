"""Runs the README's three uses, shortened to seconds: a recipe, a custom reward, and distillation into another architecture."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.end_to_end.conftest import ROOT, Grpo, rows_of

README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT = ["model.pretrain_updates=4", "evaluation.rows=8", "stages.reason.steps=1", "stages.reason.warmup_updates=0"]


def command_of(readme_line: str) -> list[str]:
    """The arguments of the README's command that contains ``readme_line``, without --out."""
    import shlex

    (line,) = [line for line in README.splitlines() if readme_line in line and "bin/grpo" in line]
    words = shlex.split(line.split("  #")[0])
    return words[1 : words.index("--out")] if "--out" in words else words[1:]


def block_after(marker: str) -> str:
    """The indented block of the README that begins with the comment ``marker``."""
    lines = README[README.index(marker) :].splitlines()[1:]
    block = []
    for line in lines:
        if line and not line.startswith("    "):
            break
        block.append(line.removeprefix("    "))
    return "\n".join(block).split("\n\n.venv")[0]


def test_run_a_recipe_and_plan_it(grpo: Grpo) -> None:
    result = grpo(*command_of("grpo plan r1_zero_tiny"))
    assert result.returncode == 0
    assert re.search(r"reason\s+rl\s+base\s+model", result.stdout)


def test_a_reward_of_ones_own(grpo: Grpo, tmp_path: Path) -> None:
    (tmp_path / "my_rewards.py").write_text(block_after("# my_rewards.py"), encoding="utf-8")
    # a file that hides the toolkit's own package from a careless import
    (tmp_path / "rewards.py").write_text("raise SystemExit('the wrong rewards')", encoding="utf-8")
    environment = {"GRPO_CACHE": str(tmp_path / "cache")}
    result = grpo(*command_of("my_rewards.py:brief"), *SHORT, "--out", tmp_path / "run", env=environment, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    for row in rows_of(tmp_path / "run" / "01-reason" / "samples.jsonl"):
        assert row["parts"]["brief"] == float(row["completion_tokens"] <= 30)


@pytest.mark.slow  # a daily test of all six stages distills too
def test_distill_into_another_architecture(grpo: Grpo, tmp_path: Path) -> None:
    trained = "{path: ../runs/r1-tiny/05-final/model}"
    assert "examples/distill.yaml" in command_of("grpo run examples/distill.yaml")
    recipe = (ROOT / "examples" / "distill.yaml").read_text(encoding="utf-8")
    assert trained in recipe
    made = "{make: tiny_qwen2, problems: sums, pretrain_updates: 20}"
    (tmp_path / "distill.yaml").write_text(recipe.replace(trained, made), encoding="utf-8")
    short = [
        "evaluation.rows=8",
        "stages.student.from.pretrain_updates=4",
        "stages.student.rows=60",
        "stages.student.keep.min_reward.math=0",
        "stages.student.keep.min_reward.format=0",
    ]
    environment = {"GRPO_CACHE": str(tmp_path / "cache")}
    result = grpo("run", tmp_path / "distill.yaml", *short, "--out", tmp_path / "run", env=environment, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    (stage,) = json.loads((tmp_path / "run" / "summary.json").read_text())["stages"]
    assert (stage["name"], stage["from"], stage["output"]) == ("student", "tiny_llama", "01-student/model")
    assert json.loads((tmp_path / "run" / "01-student" / "model" / "config.json").read_text())["model_type"] == "llama"
