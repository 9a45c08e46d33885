"""Rewards that cannot be trusted are refused at start, on the path that an rl stage takes: recipe, rows, template, runtime, canary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo.config.load import load_recipe
from grpo.errors import DataError
from grpo.resources.services import Services
from grpo.run.progress import Progress
from rollout.types import Prompt

RECIPE = """
name: start
model: some/model
data: {{sums: {{jsonl: sums.jsonl, columns: {columns}}}}}
stages:
  - {{name: reason, kind: rl, prompts: sums, steps: 1, rewards: [{rewards}]}}
"""
MINE = """
from rewards import reward

@reward(required=True)
def broken(completion: str, answer: str) -> float:
    return 0.0

def crashes(completion: str, answer: str) -> float:
    return float(int(completion) == int(answer))
"""
PLAIN = [
    {"question": f"What is {n} + {n}?", "answer": str(2 * n), "worked": f"{n} + {n} is {2 * n}, so we say:\n#### {2 * n}"}
    for n in range(40)
]


def start(folder: Path, rewards: str, columns: str = "{}", *overrides: str) -> None:
    """What happens before a stage loads a model."""
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PLAIN))
    (folder / "mine.py").write_text(MINE)
    (folder / "start.yaml").write_text(RECIPE.format(columns=columns, rewards=rewards))
    loaded = load_recipe(str(folder / "start.yaml"), overrides)
    services = Services.of(loaded.recipe, loaded.base, folder, {}, Progress(1))
    prompts = [Prompt(f"sums/{index}", (1,), row) for index, row in enumerate(services.prompts.rows("sums"))]
    with services.context.rewards(loaded.recipe.stages[0].rewards) as runtime:
        services.prompts.try_rewards(runtime, prompts)


@pytest.mark.parametrize(
    ("rewards", "columns", "says"),
    [
        (
            "{use: './mine.py:broken'}",
            "{}",
            "row 5: its own gold answer '10' scores 0.0 by 'broken', not 1; row: {'question': 'What is 5 + 5?'",
        ),
        ("{use: math}", "{answer: question}", "row 5: its gold answer 'What is 5 + 5?' is a question; name the column of answers"),
        ("{use: math}", "{answer: worked}", "is a worked solution: the answer is only what follows ####; name the column of answers"),
    ],
    ids=["a broken verifier", "a swapped column", "the wrong form"],
)
def test_rewards_that_cannot_be_trusted_are_refused_with_eight_rows(rewards: str, columns: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        start(tmp_path, rewards, columns)
    text = str(refused.value)
    assert "the rewards cannot be trusted with these rows, so nothing was trained" in text and says in text
    assert text.count("; row: {") == 8


def test_sound_rewards_are_not_refused(tmp_path: Path) -> None:
    start(tmp_path, "{use: math}, {use: format}")
    start(tmp_path, "{use: exact, on_error: stop}")  # takes the bare form of a right completion, not the box


def test_a_reward_that_crashes_on_the_canary_says_how_to_write_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be trusted with these rows, so nothing was trained .canary: in the recipe says") as refused:
        start(tmp_path, "{use: './mine.py:crashes'}")
    assert "'crashes' failed on all" in str(refused.value) and "ValueError: invalid literal for int()" in str(refused.value)
    start(tmp_path, "{use: './mine.py:crashes'}", "{}", "canary='{answer}'")
    start(tmp_path, "{use: './mine.py:crashes'}", "{}", "canary=''")


def test_a_recipe_says_how_much_failure_it_bears(tmp_path: Path) -> None:
    (tmp_path / "start.yaml").write_text(
        RECIPE.format(columns="{}", rewards="{use: math}, {use: exact, on_error: stop}, {use: format, max_error_frac: 0.1}")
    )
    (tmp_path / "sums.jsonl").write_text(json.dumps(PLAIN[0]))
    loaded = load_recipe(str(tmp_path / "start.yaml"), [])
    services = Services.of(loaded.recipe, loaded.base, tmp_path, {}, Progress(1))
    with services.context.rewards(loaded.recipe.stages[0].rewards) as runtime:
        assert [spec.max_error_frac for spec in runtime.specs.values()] == [0.5, 0.0, 0.1]


def test_what_the_canary_met_is_counted_in_no_step(tmp_path: Path) -> None:
    (tmp_path / "start.yaml").write_text(RECIPE.format(columns="{}", rewards="{use: math}, {use: './mine.py:shy'}"))
    (tmp_path / "mine.py").write_text(
        "def shy(completion):\n    if 'boxed' in completion:\n        raise ValueError('a box')\n    return 1.0\n"
    )
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PLAIN))
    loaded = load_recipe(str(tmp_path / "start.yaml"), [])
    services = Services.of(loaded.recipe, loaded.base, tmp_path, {}, Progress(1))
    with services.context.rewards(loaded.recipe.stages[0].rewards) as runtime:
        services.prompts.try_rewards(runtime, [Prompt(str(index), (1,), row) for index, row in enumerate(PLAIN)])
        assert not any(number for kinds in runtime.counts.values() for number in kinds.values())
        assert runtime.seconds == {"math": [], "shy": []} and runtime.first_error == {}
