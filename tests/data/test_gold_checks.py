"""Rewards are tried on the gold answers of every stage before a run makes or loads anything, and by a plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grpo.config.load import load_recipe
from grpo.data import gold_checks as trials
from grpo.data.gold_checks import try_before_the_run
from grpo.data.golds import GoldReader
from grpo.data.preview import previews
from grpo.errors import DataError, RecipeError
from grpo.pipeline.run import checked_recipe, run_recipe

RECIPE = """
name: later
model: {model}
template: plain
data:
  lessons: {{jsonl: lessons.jsonl}}
  rows: {{jsonl: rows.jsonl}}
  drawn: {{reasoning_gym: chain_sum, rows: 5000}}
  elsewhere: {{hub: somebody/something}}
stages:
  - {{name: first, kind: sft, data: lessons}}
  - {{name: second, kind: rl, from: first, prompts: rows, steps: 1, max_prompt_tokens: 64, max_completion_tokens: 64, rewards: [{{use: math}}]}}
  - {{name: third, kind: rl, from: second, prompts: [rows], steps: 1, max_prompt_tokens: 64, max_completion_tokens: 64, rewards: [{{use: math}}]}}
  - {{name: fourth, kind: rl, from: third, prompts: drawn, steps: 1, max_prompt_tokens: 64, max_completion_tokens: 64, rewards: [{{use: math}}]}}
  - {{name: fifth, kind: rl, from: fourth, prompts: elsewhere, steps: 1, max_prompt_tokens: 64, max_completion_tokens: 64, rewards: [{{use: math}}]}}
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

    def noted(rewards: Any, rows: Any, recipe: Any, base: Path) -> trials.Trial:
        asked.append((len(rows), Path(rows[0][0]).name))
        return plain(rewards, rows, recipe, base)

    monkeypatch.setattr(trials, "try_rewards", noted)
    assert tried(recipe(tmp_path, [str(2 * n) for n in range(20)])) == trials.Trial()
    assert asked == [
        (20, "rows.jsonl:1"),
        (64, "problem of seed 0, attempt 0 0"),
    ]  # the third stage asks what the second did; nobody fetches the fifth's rows


@pytest.mark.parametrize("bad", [[0], [0, 1, 2], [13, 27], [5, 10, 15], list(range(39)), list(range(1, 40))])
def test_gold_answers_that_cannot_be_read_are_counted_whichever_they_are(tmp_path: Path, bad: list[int]) -> None:
    """On the grid of rows that the canary tries (0, 5, 10, ...), beside it, and nearly all."""
    answers: list[Any] = ["see the appendix" if n in bad else str(2 * n) for n in range(40)]
    found = tried(recipe(tmp_path, answers))
    (line,) = found.refused
    assert line.startswith(
        f"{len(bad)} of 40 gold answers can't be read by 'math', so samples of these rows get no reward. Correct them, or leave"
    )
    assert f"them out by data.rows.filters: {{unreadable_gold: leave_out}}. Found: {tmp_path / 'rows.jsonl'}:{bad[0] + 1} 'see the" in line
    assert found.problems == []  # of the rows that can be read
    if len(bad) > 4:
        with pytest.raises(
            DataError, match=f"^too many gold answers can't be read, so nothing was trained:\n  {len(bad)} of 40 gold answers"
        ):
            found.raise_problems()
    else:
        found.raise_problems()


def test_a_lost_backslash_is_named(tmp_path: Path) -> None:
    answers: list[Any] = [*(str(n) for n in range(20)), "\x0crac{1}{4} and more words than there should be here"]
    (line,) = tried(recipe(tmp_path, answers)).refused
    assert "(it has lost a backslash: a control character stands where \\f stood; in JSON and YAML write \\\\ for each \\)" in line


def with_filter(path: Path) -> Path:
    path.write_text(
        path.read_text().replace("rows: {jsonl: rows.jsonl}", "rows: {jsonl: rows.jsonl, filters: {unreadable_gold: leave_out}}")
    )
    return path


def test_rows_whose_gold_answers_cannot_be_read_may_be_left_out(tmp_path: Path) -> None:
    answers: list[Any] = [None if n % 4 == 0 else str(2 * n) for n in range(40)]
    path = with_filter(recipe(tmp_path, answers))
    loaded = checked_recipe(str(path))
    (found,) = [one for one in previews(loaded.recipe, loaded.base) if one.source == "rows"]
    assert found.rows == 30 and found.dropped == {"unreadable_gold": 10}
    assert tried(path) == trials.Trial()
    reader = GoldReader(loaded.recipe, loaded.base, most=3)  # numbers cost nothing, and the others are all alike
    assert reader("rows", [{"answer": answer} for answer in answers]) == set(range(0, 40, 4)) and reader.num_unread == {"rows": 0}


def test_a_plan_reads_so_many_gold_answers_and_says_how_many_it_did_not(tmp_path: Path) -> None:
    loaded = load_recipe(str(with_filter(recipe(tmp_path, ["1"]))), [])
    reader = GoldReader(loaded.recipe, loaded.base, most=3)
    rows = [{"answer": f"x + {n}" if n else "no answer at all"} for n in range(10)]
    assert reader("rows", rows) == {0} and reader.num_unread == {"rows": 6}  # every third of ten different ones
    assert GoldReader(loaded.recipe, loaded.base)("rows", rows) == {0}


def test_a_filter_by_gold_answers_needs_a_reward_that_reads_them(tmp_path: Path) -> None:
    path = with_filter(stage_with(recipe(tmp_path, ["1"]), "{use: format}"))
    with pytest.raises(
        RecipeError, match="no required reward that reads reference answers, such as math, scores samples of 'rows'; delete this filter"
    ):
        checked_recipe(str(path))


def test_a_run_whose_later_stage_cannot_be_judged_begins_nothing(tmp_path: Path, tiny_qwen2: Path) -> None:
    path = recipe(tmp_path, [None] * 20, tiny_qwen2)
    with pytest.raises(DataError, match="cannot be trusted with these rows, so nothing was trained") as refused:
        run_recipe(str(path), out=tmp_path / "run")
    assert str(refused.value).count("its own gold answer '' scores None") == 8
    assert not (tmp_path / "run").exists()


def test_a_run_says_that_too_many_gold_answers_are_unreadable_before_it_begins(tmp_path: Path, tiny_qwen2: Path) -> None:
    answers: list[Any] = [None if n % 7 == 3 else str(n) for n in range(42)]
    with pytest.raises(DataError, match="too many gold answers can't be read, so nothing was trained:\n  6 of 42 gold answers"):
        run_recipe(str(recipe(tmp_path, answers, tiny_qwen2)), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def stage_with(path: Path, rewards: str, **more: str) -> Path:
    """The recipe with another second stage, and no later ones."""
    text = path.read_text()
    settings = "".join(f", {key}: {value}" for key, value in more.items())
    second = f"  - {{name: second, kind: reject, from: first, prompts: rows, rewards: [{rewards}], keep: {{min_reward: {{}}}}{settings}}}\n"
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
