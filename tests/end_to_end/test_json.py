"""Can a script read what a real evaluation prints?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Grpo


@pytest.mark.slow
def test_an_evaluation_prints_one_object_and_its_progress_elsewhere(grpo: Grpo, tiny_qwen2: Path, tmp_path: Path) -> None:
    problems = tmp_path / "sums.jsonl"
    problems.write_text("".join(f'{{"question": "{a} + 1", "answer": "{a + 1}"}}\n' for a in range(4)))
    result = grpo("eval", tiny_qwen2, "--data", problems, "--template", "plain", "--max-tokens", 8, "--json")
    assert result.returncode == 0, result.stderr
    scores = json.loads(result.stdout)  # nothing before it, nothing after it
    assert scores["eval/num_problems"] == 4 and 0 <= scores["eval/accuracy"] <= 1
    assert "[1/1] measure" in result.stderr


@pytest.mark.slow
def test_a_model_against_itself_differs_by_nothing(grpo: Grpo, tiny_qwen2: Path, tmp_path: Path) -> None:
    problems = tmp_path / "sums.jsonl"
    problems.write_text("".join(f'{{"question": "{a} + 1", "answer": "{a + 1}"}}\n' for a in range(4)))
    short = ["--template", "plain", "--max-tokens", 8, "--engine", "hf", "--lenient", "--json"]
    result = grpo("eval", tiny_qwen2, "--against", tiny_qwen2, "--data", problems, *short, "--out", tmp_path / "kept")
    assert result.returncode == 0, result.stderr
    scores = json.loads(result.stdout)
    assert (scores["eval/difference"], scores["eval/difference_se"], scores["eval/num_compared"]) == (0, 0, 4)
    assert scores["eval/accuracy_against"] == scores["eval/accuracy"]
    assert {path.parent.parent.name for path in (tmp_path / "kept").glob("*/01-measure/items.jsonl")} == {"model", "against"}
