"""Can a script read what a real evaluation prints?"""

from __future__ import annotations

import json
import shutil
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
def test_results_that_are_kept_are_not_those_of_another_model_in_the_same_folder(grpo: Grpo, tiny_qwen2: Path, tmp_path: Path) -> None:
    problems, model = tmp_path / "sums.jsonl", tmp_path / "model"
    problems.write_text("".join(f'{{"question": "{a} + 1", "answer": "{a + 1}"}}\n' for a in range(4)))
    shutil.copytree(tiny_qwen2, model)
    command = [
        "eval",
        model,
        "--data",
        problems,
        "--template",
        "plain",
        "--max-tokens",
        8,
        "--engine",
        "hf",
        "--json",
        "--out",
        tmp_path / "kept",
    ]
    first, again = grpo(*command), grpo(*command)
    assert first.returncode == 0 and again.stdout == first.stdout, first.stderr
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    refused = grpo(*command)
    assert refused.returncode == 2
    (problem,) = json.loads(refused.stdout)["error"]["problems"]
    assert f"what it was made from changed since: model.safetensors ({model}); undo the change, choose another --out" in problem
    assert "--redo" not in problem


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
