"""Are required rewards tried before training, each on the column that says what is right by it?"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from grpo.config import Recipe, RewardUse
from grpo.errors import DataError
from grpo.resources.services import Services
from rollout.types import Prompt
from tests.stages.conftest import Heard

SUMS: list[dict[str, Any]] = [{"answer": str(n)} for n in range(3)]
CODE: list[dict[str, Any]] = [{"tests": [f"assert f() == {n}"], "solution": f"def f():\n    return {n}"} for n in range(3)]


def test_unreadable_gold_answers_are_in_the_runs_data_json(tmp_path: Path, heard: Heard) -> None:
    """By source: reported, or left out."""
    rows = [{"prompt": f"{n} + 0", "answer": None if n in (3, 5) else str(n)} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {"name": "reason", "kind": "rl", "prompts": ["kept", "cut"], "rewards": [{"use": "math"}], "steps": 1}
    data = {"kept": {"jsonl": "rows.jsonl"}, "cut": {"jsonl": "rows.jsonl", "filters": {"unreadable_gold": "leave_out"}}}
    recipe = Recipe.model_validate({"name": "r", "model": "m", "data": data, "stages": [stage]})
    services = Services.of(recipe, tmp_path, tmp_path, {}, heard)
    prompts = [
        Prompt(id=f"{name}/{n}", tokens=(1,), columns=row)
        for name in ("kept", "cut")
        for n, row in enumerate(services.prompts.rows([name]))
    ]
    with services.context.rewards([RewardUse(use="math")]) as rewards:
        services.prompts.try_rewards(rewards, prompts)
    assert json.loads((tmp_path / "data.json").read_text()) == {
        "kept": {"rows": 40, "left_out": {}, "unreadable_gold": 2},
        "cut": {"rows": 38, "left_out": {"unreadable_gold": 2}},
    }
    assert heard.lines[0] == "  data source 'cut': 38 rows (left out: 2 unreadable_gold)"
    assert "2 of 78 gold answers" in heard.lines[1] and heard.lines[1].endswith(
        f"Found: {tmp_path / 'rows.jsonl'}:4 None, {tmp_path / 'rows.jsonl'}:6 None"
    )


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def tried(tmp_path: Path, heard: Heard) -> Callable[..., None]:
    def try_rewards(rows: Sequence[dict[str, Any]], *uses: str, canary: str | None = None) -> None:
        stage = {"name": "reason", "kind": "rl", "prompts": "rows", "rewards": [{"use": use} for use in uses], "steps": 1}
        recipe = Recipe.model_validate({"name": "r", "model": "m", "canary": canary, "stages": [stage]})
        services = Services.of(recipe, tmp_path, tmp_path, {}, heard)
        prompts = [Prompt(id=str(number), tokens=(1,), columns={"prompt": "q", **row}) for number, row in enumerate(rows)]
        with services.context.rewards([RewardUse(use=use) for use in uses]) as rewards:
            services.prompts.try_rewards(rewards, prompts)

    return try_rewards


def test_each_required_reward_is_tried_on_its_own_column(tried: Callable[..., None]) -> None:
    tried([*SUMS, *CODE], "math", "code", "exact")
    with pytest.raises(DataError, match=r"row 0: its own gold answer 'def g\(\): pass' scores 0.0 by 'code', not 1"):
        tried([*SUMS, {**CODE[0], "solution": "def g(): pass"}], "math", "code")


def test_code_without_solutions_is_not_tried(tried: Callable[..., None]) -> None:
    tried([{"tests": ["assert False"]}], "code")


@pytest.mark.parametrize(
    ("use", "row", "other"),
    [
        ("choice", {"answer": "B", "options": ["x", "y"]}, {"answer": "A", "options": ["x", "y"]}),
        (
            "reasoning_gym",
            {"answer": "3", "metadata": {"source_dataset": "chain_sum"}},
            {"answer": "4", "metadata": {"source_dataset": "chain_sum"}},
        ),
    ],
)
def test_a_right_completion_is_written_as_the_reward_reads_it(tried: Callable[..., None], use: str, row: dict, other: dict) -> None:
    tried([row, other], use)
    with pytest.raises(DataError, match=f"by '{use}', not 1"):
        tried([row, other], use, canary="{answer}")  # without the tags nothing is an answer


def test_gold_answers_that_cannot_be_read_are_said_before_training(tried: Callable[..., None], heard: Heard) -> None:
    rows = [{"answer": str(n)} for n in range(40)]
    tried(rows, "math")
    assert heard.lines == []
    rows[13], rows[27] = {"answer": ""}, {"answer": "see the appendix"}  # none of the eight that the canary tries
    tried(rows, "math")
    assert heard.lines == [
        "  2 of 40 gold answers can't be read by 'math', so samples of these rows get no reward. Correct them, or leave them out by filters of the "
        "source: {unreadable_gold: leave_out}. Found: 13 '', 27 'see the appendix'"
    ]
