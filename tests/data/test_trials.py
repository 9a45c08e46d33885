"""Rewards are tried on the gold answers of every stage before a run makes or loads anything, and by a plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grpo.data import trials
from grpo.data.trials import try_before_the_run
from grpo.errors import DataError
from grpo.loading import load_recipe
from grpo.recipe import run_recipe

RECIPE = """
name: later
model: {model}
data:
  lessons: {{jsonl: lessons.jsonl}}
  rows: {{jsonl: rows.jsonl}}
  drawn: {{reasoning_gym: chain_sum, rows: 5000}}
  elsewhere: {{hub: somebody/something}}
stages:
  - {{name: first, kind: sft, data: lessons}}
  - {{name: second, kind: rl, from: first, prompts: rows, steps: 1, rewards: [{{use: math}}]}}
  - {{name: third, kind: rl, from: second, prompts: [rows], steps: 1, rewards: [{{use: math}}]}}
  - {{name: fourth, kind: rl, from: third, prompts: drawn, steps: 1, rewards: [{{use: math}}]}}
  - {{name: fifth, kind: rl, from: fourth, prompts: elsewhere, steps: 1, rewards: [{{use: math}}]}}
"""


def recipe(folder: Path, answers: list[Any], model: Path = Path("some/model")) -> Path:
    rows = [{"prompt": f"What is {n} + {n}?", "answer": answer} for n, answer in enumerate(answers)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "lessons.jsonl").write_text('{"prompt": "1 + 1", "completion": "2"}\n')
    (folder / "later.yaml").write_text(RECIPE.format(model=model))
    return folder / "later.yaml"


def tried(path: Path) -> trials.Trial:
    loaded = load_recipe(str(path), [])
    return try_before_the_run(loaded.recipe, loaded.base)


def test_sound_rows_pass_and_each_kind_of_stage_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, str]] = []
    plain = trials.try_rewards

    def noted(rewards: Any, rows: Any, recipe: Any) -> trials.Trial:
        asked.append((len(rows), rows[0][0]))
        return plain(rewards, rows, recipe)

    monkeypatch.setattr(trials, "try_rewards", noted)
    assert tried(recipe(tmp_path, [str(2 * n) for n in range(20)])) == trials.Trial()
    assert asked == [(20, "rows/0"), (64, "drawn/0")]  # the third stage asks what the second did; nobody fetches the fifth's rows


def test_single_gold_answers_that_no_sample_can_match_are_named(tmp_path: Path) -> None:
    answers: list[Any] = [str(2 * n) for n in range(40)]
    answers[13], answers[27] = None, "see the appendix"  # none of the eight that the canary tries
    assert tried(recipe(tmp_path, answers)).refused == [
        "2 of 40 gold answers are not right by 'math' themselves, so no sample of theirs can be: rows/13 'None', rows/27 'see the appendix'; "
        "correct or remove them"
    ]


def test_a_run_whose_later_stage_cannot_be_judged_begins_nothing(tmp_path: Path, tiny_qwen2: Path) -> None:
    path = recipe(tmp_path, [None] * 20, tiny_qwen2)
    with pytest.raises(DataError, match="cannot be trusted with these rows, so nothing was trained") as refused:
        run_recipe(str(path), out=tmp_path / "run")
    assert str(refused.value).count("its own gold answer 'None' scores None") == 8
    assert not (tmp_path / "run").exists()


def stage_with(path: Path, rewards: str, **more: str) -> Path:
    """The recipe with another second stage, and no later ones."""
    text = path.read_text()
    settings = "".join(f", {key}: {value}" for key, value in more.items())
    second = f"  - {{name: second, kind: reject, from: first, prompts: rows, rewards: [{rewards}]{settings}}}\n"
    path.write_text(text[: text.index("  - {name: second")] + second)
    return path


def test_rows_that_a_stage_never_draws_do_not_keep_a_run_from_beginning(tmp_path: Path) -> None:
    answers = [str(2 * n) if n < 16 else None for n in range(64)]
    assert tried(stage_with(recipe(tmp_path, answers), "{use: math}", rows="16")) == trials.Trial()
    some_left_out_by_length = tried(stage_with(recipe(tmp_path, answers), "{use: math}"))
    assert some_left_out_by_length.problems == []  # perhaps the good ones are left: the stage's own trial will know
    assert tried(stage_with(recipe(tmp_path, answers), "{use: exact}")).problems == []
    assert len(tried(stage_with(recipe(tmp_path, [None] * 64), "{use: math}")).problems) == 8


def test_what_a_stage_pays_for_beside_right_answers_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def by_source(completion, data_source):\n    return float(data_source == 'rows')\n"
        "def asks_a_service(completion):\n    raise ConnectionError('it is not up yet')\n"
    )
    path = stage_with(recipe(tmp_path, ["2"] * 20), "{use: math}, {use: './mine.py:by_source'}, {use: './mine.py:asks_a_service'}")
    assert tried(path) == trials.Trial()


def test_an_accuracy_reward_knows_the_source_of_a_row(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from rewards import reward\n\n@reward(required=True, gold='answer')\n"
        "def right(completion: str, answer: str, data_source: str) -> float:\n    return float(data_source == 'rows' and answer in completion)\n"
    )
    answers = [str(100 + n) for n in range(20)]
    assert tried(stage_with(recipe(tmp_path, answers), "{use: './mine.py:right'}")) == trials.Trial()


def test_only_the_stages_that_are_still_to_be_made_are_asked(tmp_path: Path) -> None:
    loaded = load_recipe(str(recipe(tmp_path, [None] * 20)), [])
    assert try_before_the_run(loaded.recipe, loaded.base, loaded.recipe.stages[3:]) == trials.Trial()
    assert len(try_before_the_run(loaded.recipe, loaded.base, loaded.recipe.stages[2:]).problems) == 8
