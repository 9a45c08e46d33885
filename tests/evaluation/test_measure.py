"""What an evaluation kept with the run is still good for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from grpo.config import Recipe
from grpo.evaluation import measure as evaluation
from grpo.evaluation.scores import Scores
from grpo.resources.engines import Engines
from grpo.resources.services import Services
from grpo.run.progress import Progress
from grpo.types import Checkpoint

SCORES = Scores(0.5, 0.1, 0.5, 0.1, 1.0, 0.0, 8.0, 2, 0, {}, 0.5)


@pytest.fixture
def times_measured(tmp_path: Path, tiny_qwen2: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Asks for the base model's scores once more, and says how often they were measured so far."""
    (tmp_path / "base").symlink_to(tiny_qwen2)
    (tmp_path / "grader.py").write_text("def near(completion, answer): return 1.0\n", encoding="utf-8")
    heldout(tmp_path, "7")
    measured: list[Checkpoint] = []
    monkeypatch.setattr(Engines, "pool", lambda *_: None)
    monkeypatch.setattr(evaluation, "measure", lambda services, pool, model, *_: (measured.append(model), SCORES)[1])

    def ask(base: str = "base", **changes: Any) -> int:
        recipe = Recipe.model_validate(
            {
                "name": "r",
                "model": {"path": str(tiny_qwen2)},
                "template": "plain",
                "data": {"heldout": {"jsonl": "heldout.jsonl"}},
                "evaluation": {"prompts": "heldout", "accuracy": {"use": "./grader.py:near"}, **changes},
                "stages": [{"name": "look", "kind": "eval"}],
            }
        )
        model = Checkpoint(tmp_path / base)
        assert evaluation.measure_checkpoint(Services.of(recipe, tmp_path, tmp_path / "run", {"base": model}, Progress(1)), model) == SCORES
        return len(measured)

    return ask


def heldout(folder: Path, answer: str) -> None:
    (folder / "heldout.jsonl").write_text(json.dumps({"prompt": "3 + 4", "answer": answer}) + "\n", encoding="utf-8")


def test_a_model_is_measured_once(times_measured: Callable[..., int]) -> None:
    assert [times_measured(), times_measured()] == [1, 1]


def test_other_answers_another_grader_other_settings_or_other_weights_ask_for_it_again(
    times_measured: Callable[..., int], tmp_path: Path
) -> None:
    assert times_measured() == 1
    heldout(tmp_path, "8")
    assert [times_measured(), times_measured()] == [2, 2]
    (tmp_path / "grader.py").write_text("def near(completion, answer): return 0.0\n", encoding="utf-8")
    assert [times_measured(), times_measured()] == [3, 3]
    assert [times_measured(temperature=0.3), times_measured(temperature=0.3)] == [4, 4]
    weights = load_file(tmp_path / "base" / "model.safetensors")
    (tmp_path / "base").unlink()
    (tmp_path / "base").mkdir()
    save_file({name: weight + 1 for name, weight in weights.items()}, tmp_path / "base" / "model.safetensors")
    assert [times_measured(), times_measured()] == [5, 5]
