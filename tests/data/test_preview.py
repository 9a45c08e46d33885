"""What a plan can tell of sources without running them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo.config import Recipe
from grpo.data.preview import Preview, previews
from grpo.errors import DataError


def recipe(**data: dict) -> Recipe:
    keys = {"name": "r", "model": {"path": "."}, "evaluation": {"prompts": "heldout"}}
    stages = [{"name": name, "kind": "sft", "data": name} for name in data if name != "heldout"]
    return Recipe.model_validate({**keys, "data": data, "stages": stages})


def test_files_are_read_and_what_filters_leave_out_is_counted(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"prompt": prompt, "completion": "c"}) + "\n" for prompt in "abcA"))
    (tmp_path / "heldout.csv").write_text("prompt\nb\n")
    filters = {"duplicates": "exact", "max_prompt_tokens": 5}
    assert previews(recipe(train={"jsonl": "train.jsonl", "filters": filters}, heldout={"csv": "heldout.csv"}), tmp_path) == [
        Preview("train", "jsonl", 2, {"held_out": 1, "duplicate": 1}, False, "before filters by length, which need the model's tokenizer"),
        Preview("heldout", "csv", 1, {}, True),
    ]


def test_nobodys_code_is_run_and_nothing_is_fetched(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("raise SystemExit('nothing here is run')")
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "completion": "c"}\n')
    planned = previews(
        recipe(
            made={"generator": "./bad.py:rows"},
            drawn={"reasoning_gym": "chain_sum", "rows": 40},
            waiting={"jsonl": "train.jsonl", "disjoint_from": ["made"]},
            train={"jsonl": "train.jsonl"},
            heldout={"hub": "nobody/nothing"},
        ),
        tmp_path,
    )
    assert [(each.rows, each.note) for each in planned] == [
        (None, "read when the run begins"),
        (40, "drawn when the run begins"),
        (None, "known once made is read"),
        (1, "before what heldout holds is left out"),
        (None, "read when the run begins"),
    ]


def test_bad_lines_of_all_sources_end_a_plan_each_said_once(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "completion": "c"}\n{"prompt": null}\n')
    (tmp_path / "heldout.csv").write_text("prompt\nb\n")
    (tmp_path / "other.json").write_text("[7]")
    again = {"csv": "heldout.csv", "disjoint_from": ["train"]}
    sources = {"train": {"jsonl": "train.jsonl"}, "again": again, "other": {"json": "other.json"}, "heldout": {"csv": "heldout.csv"}}
    with pytest.raises(DataError) as raised:
        previews(recipe(**sources), tmp_path)
    assert str(raised.value).replace(f"{tmp_path}/", "").splitlines() == [
        "data source 'train': train.jsonl:2: column 'prompt' must be text or a list of messages, found null",
        "data source 'other': other.json:1: expected an object, found int",
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"completion": ""}, "column 'completion' is empty; write what the model should say, or delete the row"),
        ({"completion": " \n"}, "column 'completion' is empty"),
        ({"completion": None}, "column 'completion' is null"),
        ({"other": "c"}, "column 'completion' not found; found ['other', 'prompt']"),
        ({"completion": [{"role": "user", "content": "b"}]}, "column 'completion' has no turn of the assistant"),
        ({"completion": [{"role": "assistant", "content": ""}]}, "column 'completion' has an empty turn of the assistant"),
    ],
)
def test_a_row_with_nothing_to_imitate_is_said_by_file_and_line_before_anything_runs(tmp_path: Path, row: dict, said: str) -> None:
    rows = [{"prompt": "a", "completion": "c"}, {"prompt": "b", **row}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "heldout.csv").write_text("prompt\nh\n")
    with pytest.raises(DataError) as raised:
        previews(recipe(train={"jsonl": "train.jsonl"}, heldout={"csv": "heldout.csv"}), tmp_path)
    assert f"{tmp_path}/train.jsonl:2: {said}" in str(raised.value)


def test_what_is_odd_about_rows_is_a_note(tmp_path: Path) -> None:
    rows = [{"prompt": "1 + 1", "completion": "c", "answer": answer} for answer in ("2", "2 ", 3)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "heldout.csv").write_text("prompt\nh\n")
    train, heldout = previews(recipe(train={"jsonl": "train.jsonl"}, heldout={"csv": "heldout.csv"}), tmp_path)
    assert train.note == (
        "1 prompt with different answers in different rows, such as '1 + 1': '2' and '3'; correct the answers or delete the rows"
    )
    assert heldout.note == ""
