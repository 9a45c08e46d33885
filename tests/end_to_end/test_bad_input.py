"""What is wrong with a recipe is said at once, in lines, before anything is loaded or written."""

from __future__ import annotations

from pathlib import Path

from tests.end_to_end.conftest import Grpo

WRONG = """
name: wrong
model: {path: nowhere}
data:
  sums: {reasoning_gym: chain_sum, rows: 8}
  traces: {jsonl: missing.jsonl}
stages:
  - {name: reason, kind: rl, prompts: sums, stepz: 3, steps: 3, samples_per_prompt: 1, rewards: [{use: mth}]}
  - {name: harvest, kind: reject, from: reason, prompts: sums, rewards: [{use: math, exctract: boxed}]}
  - {name: student, kind: sft, from: harvest, data: nothing}
"""


def test_all_problems_of_a_recipe_come_together_and_nothing_is_written(grpo: Grpo, tmp_path: Path) -> None:
    recipe = tmp_path / "wrong.yaml"
    recipe.write_text(WRONG)
    result = grpo("run", recipe, "--out", tmp_path / "run")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()
    for part in (
        "stepz",
        "did you mean 'steps'",
        "samples_per_prompt",
        "mth",
        "exctract",
        "missing.jsonl",
        "'harvest', which is a dataset",
        "nothing",
    ):
        assert part in result.stderr, part
    assert "wrong.yaml:8" in result.stderr


def test_an_unknown_recipe_names_the_shipped_ones(grpo: Grpo) -> None:
    result = grpo("plan", "r1_tinny")
    assert result.returncode == 2
    assert "r1_tiny" in result.stderr


def test_bad_input_loads_neither_torch_nor_ray(tmp_path: Path) -> None:
    import subprocess
    import sys

    recipe = tmp_path / "wrong.yaml"
    recipe.write_text(WRONG)
    code = (
        "import sys\n"
        "from grpo.cli import app\n"
        f"try: app(['run', {str(recipe)!r}])\n"
        "except SystemExit as end: print('exit', end.code)\n"
        "print([name for name in ('torch', 'ray', 'vllm', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.splitlines()[-2:] == ["exit 2", "[]"]
