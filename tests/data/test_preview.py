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
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in "abcA"))
    (tmp_path / "heldout.csv").write_text("prompt\nb\n")
    filters = {"duplicates": "exact", "max_prompt_tokens": 5}
    assert previews(recipe(train={"jsonl": "train.jsonl", "filters": filters}, heldout={"csv": "heldout.csv"}), tmp_path) == [
        Preview("train", "jsonl", 2, {"held_out": 1, "duplicate": 1}, False, "before filters by length, which need the model's tokenizer"),
        Preview("heldout", "csv", 1, {}, True),
    ]


def test_nobodys_code_is_run_and_nothing_is_fetched(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("raise SystemExit('nothing here is run')")
    (tmp_path / "train.jsonl").write_text('{"prompt": "a"}\n')
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
    (tmp_path / "train.jsonl").write_text('{"prompt": "a"}\n{"prompt": null}\n')
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
