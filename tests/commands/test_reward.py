"""`grpo reward`: what it shows, when it fails, and that it scores by the runtime that training uses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from grpo.cli import app

MINE = '''
import time

def zero(completion: str, answer: str) -> float:
    """Never pleased."""
    return 0.0

def pleased(completion: str, answer: str) -> float:
    return 1.0

def near(completion: str, target: int, *, scale: float = 1.0) -> float:
    return -abs(int(completion.split("{")[1].split("}")[0]) - target) * scale

def slow_on_eight(completion: str, answer: str) -> float:
    while answer == "8":
        time.sleep(0.01)
    return float(answer in completion)

def raises_on_eight(completion: str, answer: str) -> float:
    if answer == "8":
        raise KeyError("eight")
    return float(answer in completion)

def tokens_of(tokens: list) -> float:
    return float(len(tokens))

def in_lists(completions: list, solution: list, **columns) -> list:
    return [float(f"{{{right}}}" in text) for text, right in zip(completions, solution)]
'''
ROWS = [{"question": f"{n} + {n}", "answer": str(2 * n)} for n in range(1, 6)]
Reward = Callable[..., Any]


@pytest.fixture
def reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reward:
    """Runs `grpo reward ...` in a folder with mine.py and sums.jsonl; the result's json is its last line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    write_rows(tmp_path / "sums.jsonl", ROWS)
    return lambda *arguments: CliRunner().invoke(app, ["reward", *map(str, arguments)])


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_list_has_every_shipped_reward_with_columns_and_defaults(reward: Reward) -> None:
    listed = {row["name"]: row for row in json.loads(reward("list", "--json").stdout)["rewards"]}
    assert listed.keys() >= {"math", "exact", "format", "language", "length", "repetition"}
    assert listed["math"]["columns"] == ["completion", "answer", "prefill?"] and listed["math"]["settings"]["extract"] == "answer_tag"
    assert listed["format"]["columns"] == ["completion", "prefill?"]
    assert listed["length"]["settings"] == {"max_tokens": "(no default)", "buffer": None}
    assert listed["length"]["about"].startswith("0 up to max_tokens - buffer")


def test_a_sound_reward_passes_and_its_completions_are_scored(reward: Reward, tmp_path: Path) -> None:
    write_rows(
        tmp_path / "drawn.jsonl",
        [{"row": 0, "completion": "<answer>2</answer>"}, {"prompt": "3 + 3", "text": "<answer>x^</answer>", "completion_tokens": 4}],
    )
    result = reward("test", "math", "--data", "sums.jsonl", "--completions", "drawn.jsonl", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["passed"] and found["mean"] == {"gold": 1.0, "wrong": 0.0, "completion": 0.5}
    drawn = [(one["row"], one["score"], one["note"]) for one in found["scored"] if one["kind"] == "completion"]
    assert drawn == [(0, 1.0, ""), (2, 0.0, "undecidable")] and found["failures"] == {"undecidable": 1}
    assert 0 < found["seconds"]["median"] <= found["seconds"]["p95"]


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        ("./mine.py:zero", "row 0: its own gold answer '2' scores 0.0 by 'zero', not 1; row: {'question': '1 + 1', 'answer': '2'"),
        ("./mine.py:pleased", "row 0: the wrong answer '4' scores 1 by 'pleased', not 0; row: {'question': '1 + 1', 'answer': '2'"),
    ],
)
def test_a_reward_that_lies_fails_with_the_rows_shown(reward: Reward, ref: str, says: str) -> None:
    result = reward("test", ref, "--data", "sums.jsonl")
    assert result.exit_code == 1
    assert says in result.stdout and result.stdout.count("row: {") == 5


def test_a_hang_and_an_error_cost_their_rows_and_are_named(reward: Reward) -> None:
    late = reward("test", "./mine.py:slow_on_eight", "--data", "sums.jsonl", "--deadline", "0.2", "--json")
    found = json.loads(late.stdout)
    eight = [one for one in found["scored"] if one["row"] == 3]
    assert late.exit_code == 1 and found["failures"] == {"timeout": 3}
    assert {(one["score"], one["note"]) for one in eight} == {(None, "timeout")} and all(0.2 <= one["seconds"] < 2 for one in eight)
    wrong = reward("test", "./mine.py:raises_on_eight", "--data", "sums.jsonl")
    assert wrong.exit_code == 1 and "failures: 3 error" in wrong.stdout
    assert wrong.stdout.count("Traceback") == 1 and 'raise KeyError("eight")' in wrong.stdout


def test_another_scale_and_another_column(reward: Reward, tmp_path: Path) -> None:
    write_rows(tmp_path / "targets.jsonl", [{"target": n} for n in (3, 5, 9)])
    strict = reward("test", "./mine.py:near", "--data", "targets.jsonl", "scale=0.5")
    assert strict.exit_code == 1 and "its own gold answer '3' scores 0.0 by 'near', not 1" in strict.stdout
    assert reward("test", "./mine.py:near", "--data", "targets.jsonl", "--any-scale").exit_code == 0
    renamed = reward("test", "math", "--data", "targets.jsonl", "--column", "answer=target")
    assert renamed.exit_code == 0 and "3 gold answers, mean 1" in renamed.stdout


def test_the_summary_says_how_many_were_judged(reward: Reward, tmp_path: Path) -> None:
    write_rows(tmp_path / "half.jsonl", [{"question": f"{n}", "answer": str(n) if n % 2 else None} for n in range(8)])
    result = reward("test", "math", "--data", "half.jsonl")
    assert result.exit_code == 1 and "8 gold answers, 4 of 8 judged, mean 1; " in result.stdout
    assert json.loads(reward("test", "math", "--data", "half.jsonl", "--json").stdout)["judged"]["gold"] == 4


def test_a_list_of_gold_answers_is_tried_in_its_parts(reward: Reward, tmp_path: Path) -> None:
    """A reward that reads Python's way to write a list agrees with it, and with no part of it."""
    (tmp_path / "reads.py").write_text("def text(completion, answer):\n    return float(f'{{{answer}}}' in completion)\n")
    write_rows(tmp_path / "lists.jsonl", [{"question": f"{n}", "answer": [f"{n}", f"{n}.0"]} for n in range(3)])
    result = reward("test", "./reads.py:text", "--data", "lists.jsonl")
    assert result.exit_code == 1 and "3 gold answers, mean 0;" in result.stdout


def test_lists_as_trl_wants_them(reward: Reward, tmp_path: Path) -> None:
    write_rows(tmp_path / "trl.jsonl", [{"prompt": f"{n}", "solution": str(n)} for n in range(3)])
    result = reward("test", "./mine.py:in_lists", "--data", "trl.jsonl")
    assert result.exit_code == 0 and "3 gold answers, mean 1; 6 wrong answers, mean 0" in result.stdout


def test_a_reward_without_an_answer_only_shows_scores(reward: Reward) -> None:
    result = reward("test", "format", "--data", "sums.jsonl")
    assert result.exit_code == 0 and "5 gold answers, mean 1\n" in result.stdout
    assert "nothing here can be called right or wrong" in result.stdout
    counted = reward("test", "length", "--data", "sums.jsonl", "max_tokens=1")
    assert "5 gold answers, mean -1" in counted.stdout and "num_tokens is the number of words" in counted.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("math", "--data", "sum.jsonl"), ["--data sum.jsonl: there is no such file; did you mean 'sums.jsonl'?"]),
        (("math", "--data", "sums.txt"), ["expected a .jsonl, .csv, .parquet file, found .txt"]),
        (
            ("math", "--data", "solutions.jsonl", "extrct=boxed", "extract"),
            ["did you mean 'extract'?", "'extract' is not KEY=VALUE", "column 'answer' not found", "did you mean 'solution'? (--column"],
        ),
        (("math", "--data", "sums.jsonl", "--answer", "anser"), ["--answer anser: column 'anser' not found", "did you mean 'answer'?"]),
        (("math", "--data", "sums.jsonl", "--completions", "lost.jsonl"), ["no row of the data has its row (from 0) or prompt, 9"]),
        (("maths", "--data", "sums.jsonl"), ["unknown reward 'maths'; did you mean 'math'?"]),
        (("math", "--data", "empty.jsonl"), ["has no rows left"]),
        (("math", "--data", "broken.jsonl"), ["broken.jsonl:1: not JSON"]),
        (("format", "--data", "questions.jsonl"), ["there is nothing to score; give --completions FILE"]),
        (("./mine.py:tokens_of", "--data", "sums.jsonl"), ["asks for token ids, and there is no tokenizer here"]),
    ],
)
def test_bad_input_is_said_at_once_and_nothing_is_scored(reward: Reward, tmp_path: Path, arguments: tuple, says: list[str]) -> None:
    write_rows(tmp_path / "solutions.jsonl", [{"question": "1 + 1", "solution": "2"}])
    write_rows(tmp_path / "questions.jsonl", [{"question": "1 + 1"}])
    write_rows(tmp_path / "lost.jsonl", [{"row": 9, "completion": "x"}])
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text("{\n")
    result = reward("test", *arguments)
    assert result.exit_code == 2 and result.stdout == ""
    for words in says:
        assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_installed_rewards_are_listed_even_where_one_cannot_be_loaded(
    reward: Reward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "site" / "terseness-1.0.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "site" / "terseness.py").write_text(
        'def short(completion: str, *, limit: int) -> float:\n    """1 if short."""\n    return 1.0\n'
    )
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: terseness\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[grpo.rewards]\nshort = terseness:short\ngone = terseness:gone\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    listed = {row["name"]: row for row in json.loads(reward("list", "--json").stdout)["rewards"]}
    expected = {"about": "1 if short.", "columns": ["completion"], "settings": {"limit": "(no default)"}, "from": "terseness:short"}
    assert listed["short"] == {"name": "short", **expected}
    assert "cannot be loaded: AttributeError" in listed["gone"]["about"] and listed["gone"]["settings"] == {}
    assert "short (terseness:short)\n  1 if short.\n" in reward("list").stdout
