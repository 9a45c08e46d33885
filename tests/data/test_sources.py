"""Rows from files, generators and tasks: how many, which are left out, and what is said of a bad one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grpo.config import DataSource, Tags
from grpo.data.files import Row, read_jsonl
from grpo.data.sources import Sources
from grpo.data.sums import steps_of
from grpo.errors import DataError
from grpo.run.records import JsonLines, read_jsonl_rows
from rewards import load_reward

SUMS = {"reasoning_gym": "chain_sum", "settings": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}
# Two one-digit numbers with + or -: 200 different problems at most, so that collisions are certain.


def load(base: Path, name: str = "it", **sources: dict[str, Any]) -> list[Row]:
    return Sources({key: DataSource(**value) for key, value in sources.items()}, base, Tags()).load(name).rows


def jsonl(folder: Path, *rows: Any, name: str = "rows.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return name


# -------------------------------------------------------------------------------------------------------------------------- generated


def test_a_task_gives_exactly_so_many_rows_and_none_twice(tmp_path: Path) -> None:
    rows = load(tmp_path, it={**SUMS, "rows": 100})
    assert len({row["prompt"] for row in rows}) == len(rows) == 100


def test_a_task_has_no_prompt_of_the_sources_it_is_disjoint_from(tmp_path: Path) -> None:
    sources = {"heldout": {**SUMS, "rows": 60, "seed": 9}, "it": {**SUMS, "rows": 80, "seed": 1, "disjoint_from": ["heldout"]}}
    heldout, rows = (load(tmp_path, name, **sources) for name in ("heldout", "it"))
    together = load(tmp_path, it={**SUMS, "rows": 80, "seed": 1})
    assert {row["prompt"] for row in together} & {row["prompt"] for row in heldout}, "nothing would have had to be left out"
    assert not {row["prompt"] for row in rows} & {row["prompt"] for row in heldout}
    assert len({row["prompt"] for row in rows}) == 80


def test_a_task_with_too_few_problems_says_how_many_it_found(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data source 'it': only \d+ distinct problems found, 300 asked for; ask for fewer rows"):
        load(tmp_path, it={**SUMS, "rows": 300})


def test_a_tasks_rows_follow_from_its_seed(tmp_path: Path) -> None:
    one, again, other = (load(tmp_path, it={**SUMS, "rows": 20, "seed": seed}) for seed in (1, 1, 2))
    assert one == again != other


def test_a_tasks_metadata_do_not_take_the_place_of_its_question(tmp_path: Path) -> None:
    # this task's metadata have a "question" of their own, without the haystack
    (row,) = load(
        tmp_path, it={"reasoning_gym": "needle_haystack", "settings": {"min_num_statements": 3, "max_num_statements": 9}, "rows": 1}
    )
    assert row["answer"] in row["prompt"]


def test_a_tasks_rows_keep_what_its_verifier_needs(tmp_path: Path) -> None:
    for row in load(tmp_path, it={"reasoning_gym": "countdown", "rows": 3}):
        assert load_reward("reasoning_gym")(completion=f"<answer>{row['answer']}</answer>", **row) == 1
        assert row["metadata"]["numbers"] and "numbers" not in row


def test_worked_sums_are_right(tmp_path: Path) -> None:
    for row in load(tmp_path, it={**SUMS, "rows": 30, "completion": "worked_sums", "question": "Calculate {expression}."}):
        assert row["prompt"] == f"Calculate {row['expression']}."
        assert row["completion"].endswith(f"<answer> {row['answer']} </answer>")
        assert steps_of(row["expression"])[1] == int(row["answer"])


# ------------------------------------------------------------------------------------------------------------------------------ files


def test_a_file_gives_at_most_so_many_rows_after_those_that_are_left_out(tmp_path: Path) -> None:
    all_rows = jsonl(tmp_path, *({"prompt": letter} for letter in "abcdef"))
    heldout = jsonl(tmp_path, {"prompt": "b"}, {"prompt": "x"}, name="heldout.jsonl")
    sources = {"it": {"jsonl": all_rows, "rows": 3, "disjoint_from": ["heldout"]}, "heldout": {"jsonl": heldout}}
    assert [row["prompt"] for row in load(tmp_path, **sources)] == ["a", "c", "d"]


def test_prompts_that_are_messages_can_be_left_out_too(tmp_path: Path) -> None:
    ask = [{"role": "user", "content": "a"}]
    rows = (
        {"prompt": ask},
        {"prompt": "A "},
        {"prompt": [{"role": "system", "content": "b"}, *ask]},
    )  # a user's one message is the text it holds
    names = jsonl(tmp_path, *rows), jsonl(tmp_path, {"prompt": ask}, name="heldout.jsonl")
    rows = load(tmp_path, it={"jsonl": names[0], "disjoint_from": ["heldout"]}, heldout={"jsonl": names[1]})
    assert [len(row["prompt"]) for row in rows] == [2]


def test_columns_are_renamed_and_the_question_is_written_from_them(tmp_path: Path) -> None:
    name = jsonl(tmp_path, {"left": 3, "right": 4, "solution": "7"})
    (row,) = load(tmp_path, it={"jsonl": name, "columns": {"answer": "solution"}, "question": "What is {left} + {right}?"})
    assert (row["prompt"], row["answer"]) == ("What is 3 + 4?", "7")


def test_a_question_column_is_the_prompt_where_there_is_none(tmp_path: Path) -> None:
    rows = load(tmp_path, it={"jsonl": jsonl(tmp_path, {"question": "q"}, {"question": "q", "prompt": "p"})})
    assert [row["prompt"] for row in rows] == ["q", "p"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"columns": {"answer": "solution"}}, "rows.jsonl:2: column 'solution' not found; found ['prompt']"),
        ({"question": "What is {left}?"}, "rows.jsonl:1: question 'What is {left}?' names column 'left': column 'left' not found; found"),
        ({"completion": "worked_sums"}, "rows.jsonl:2: column 'expression' not found; found ['prompt']"),
    ],
)
def test_a_missing_column_names_source_file_and_line(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    name = jsonl(tmp_path, {"prompt": "a", "solution": "1"}, {"prompt": "b"})
    with pytest.raises(DataError) as raised:
        load(tmp_path, it={"jsonl": name, **settings})
    assert str(raised.value).startswith("data source 'it': ")
    assert said in str(raised.value)


def test_every_bad_line_is_named_with_its_file_and_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": \n[1]\n{"prompt": "b"}\n', encoding="utf-8")
    with pytest.raises(DataError) as raised:
        read_jsonl(path)
    assert str(raised.value).splitlines() == [
        f"{path}:3: not JSON (Expecting value at column 12)",
        f"{path}:4: expected an object, found list",
    ]


def test_a_line_ends_at_a_newline_and_at_nothing_else(tmp_path: Path) -> None:
    # JSON leaves these three as they are inside a string, and str.splitlines would break a line at each
    row = {"prompt": "a\u2028b\u0085c\u2029d"}
    with JsonLines(tmp_path / "rows.jsonl") as file:
        file.write_all([row, row])
    assert read_jsonl(tmp_path / "rows.jsonl") == read_jsonl_rows(tmp_path / "rows.jsonl") == [row, row]


def test_a_byte_order_mark_and_windows_line_ends_are_read_over(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}\r\n')
    assert read_jsonl(tmp_path / "rows.jsonl") == [{"prompt": "a"}, {"prompt": "b"}]


def test_a_csv_file_is_rows_too(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("question,answer\nWhat is 3 + 4?,7\n", encoding="utf-8")
    (row,) = load(tmp_path, it={"csv": "rows.csv"})
    assert (row["prompt"], row["answer"]) == ("What is 3 + 4?", "7")


# ------------------------------------------------------------------------------------------------------------------------- generators


def test_a_generator_gets_its_settings_and_yields_rows(tmp_path: Path) -> None:
    source = "def squares(*, upto):\n    for i in range(upto):\n        yield {'prompt': f'{i}^2', 'answer': i * i}\n"
    (tmp_path / "mine.py").write_text(source, encoding="utf-8")
    rows = load(tmp_path, it={"generator": "./mine.py:squares", "settings": {"upto": 3}})
    assert rows == [{"prompt": "0^2", "answer": 0}, {"prompt": "1^2", "answer": 1}, {"prompt": "2^2", "answer": 4}]


@pytest.mark.parametrize(("ref", "said"), [("./no.py:squares", "there is no file"), ("./mine.py:cubes", "there is no function 'cubes' in")])
def test_a_generator_that_is_not_there_is_named(tmp_path: Path, ref: str, said: str) -> None:
    (tmp_path / "mine.py").write_text("def squares():\n    yield {}\n")
    with pytest.raises(DataError, match=f"data source 'it': .*{said}"):
        load(tmp_path, it={"generator": ref})


def test_where_a_generator_fails_is_said_by_the_line_of_the_users_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def rows():\n    yield {'prompt': 'a'}\n    yield {'prompt': 1 / 0}\n")
    with pytest.raises(DataError, match=r"data source 'it': .*mine\.py:3: rows raised ZeroDivisionError: division by zero"):
        load(tmp_path, it={"generator": "./mine.py:rows"})
    (tmp_path / "mine.py").write_text("def rows():\n    yield 7\n    yield {'prompt': 7}\n")
    with pytest.raises(DataError) as raised:
        load(tmp_path, it={"generator": "./mine.py:rows"})
    assert "mine.py:rows, row 0: expected a dict, found 7" in str(raised.value)
    assert "mine.py:rows, row 1: column 'prompt' must be text or a list of messages, found int 7" in str(raised.value)


# ----------------------------------------------------------------------------------------------------------------------------- bad rows


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": None}, "column 'prompt' must be text or a list of messages, found null"),
        ({"prompt": 7}, "column 'prompt' must be text or a list of messages, found int 7"),
        ({"prompt": " \n"}, "column 'prompt' is empty"),
        ({"prompt": []}, "column 'prompt' is an empty list"),
        ({"prompt": [{"role": "user"}]}, "column 'prompt', message 0: expected {role: text, content: text}, found {'role': 'user'}"),
        ({"prompt": "a\ud800b"}, "column 'prompt', character 1: '\\ud800' is half of a surrogate pair, which is no text"),
        ({"prompt": "a", "answer": "\udc00"}, "column 'answer', character 0: '\\udc00' is half of a surrogate pair"),
        ({"prompt": "a", "completion": ["b"]}, "column 'completion', message 0: expected {role: text, content: text}, found 'b'"),
        ({"prompt": "a" * 10_000_000}, "column 'prompt' has 10,000,000 characters, and no model takes more than 1,000,000"),
        ({"problem": "a"}, "column 'prompt' not found; found ['problem']; did you mean 'problem'?"),
    ],
)
def test_a_bad_row_is_said_by_file_and_line_beside_all_others(tmp_path: Path, row: Row, said: str) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in ({"prompt": "fine"}, row, {"prompt": False})))
    with pytest.raises(DataError) as raised:
        load(tmp_path, it={"jsonl": "rows.jsonl"})
    first, second, third = str(raised.value).splitlines()
    assert first == "data source 'it': 2 problems, and no row was used; mend these rows or delete them:"
    assert second.startswith(f"  {tmp_path / 'rows.jsonl'}:2: {said}")
    assert third.startswith(f"  {tmp_path / 'rows.jsonl'}:3: column 'prompt' must be text")


def test_answers_may_be_missing_or_of_any_type_that_json_has(tmp_path: Path) -> None:
    answers = [None, 7, 0.5, True, ["a"], {"a": [1]}]
    rows = load(tmp_path, it={"jsonl": jsonl(tmp_path, *({"prompt": "q", "answer": answer} for answer in answers))})
    assert [row["answer"] for row in rows] == answers


def test_a_parquet_value_that_json_cannot_hold_is_said(tmp_path: Path) -> None:
    from datetime import date

    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"prompt": ["a", "b"], "answer": [date(2026, 1, 1), None]}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet, row 0: column 'answer' is a date; write it as text or a number"):
        load(tmp_path, it={"parquet": "rows.parquet"})


def test_json_and_folders_are_sources_too(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"prompt": "a"}]')
    assert load(tmp_path, it={"json": "rows.json"}) == [{"prompt": "a"}]
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "rows.csv").write_text("prompt\nb\n")
    assert load(tmp_path, it={"folder": "more"}) == [{"prompt": "b"}]


def test_what_the_hub_refuses_is_said_with_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match=r"data source 'it': 'nobody/nothing' \(split 'train'\) could not be had from the hub: .*check its name"
    ):
        load(tmp_path, it={"hub": "nobody/nothing"})


def test_a_source_that_filters_leave_empty_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    name = jsonl(tmp_path, {"prompt": "a"}, {"prompt": "A "})
    with pytest.raises(DataError, match=r"data source 'it' has no rows left: 0 rows \(left out: 2 held_out\)"):
        load(tmp_path, it={"jsonl": name, "disjoint_from": ["other"]}, other={"jsonl": jsonl(tmp_path, {"prompt": "a"}, name="o.jsonl")})


# ------------------------------------------------------------------------------------------------------- files as others write them


def test_a_column_may_be_a_field_of_another(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = {"prompt": [{"role": "user", "content": "1 + 1"}], "reward_model": {"ground_truth": "2", "style": "rule"}}  # as verl writes it
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    columns = {"answer": "reward_model.ground_truth"}
    assert load(tmp_path, it={"parquet": "rows.parquet", "columns": columns})[0]["answer"] == "2"
    assert (
        load(tmp_path, it={"jsonl": jsonl(tmp_path, row, {**row, "reward_model.ground_truth": "3"}), "columns": columns})[1]["answer"]
        == "3"
    )
    with pytest.raises(DataError, match=r"column 'reward_model\.truth' not found; .*did you mean 'reward_model\.ground_truth'\?"):
        load(tmp_path, it={"jsonl": jsonl(tmp_path, row), "columns": {"answer": "reward_model.truth"}})


def test_a_packed_file_is_read_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    import gzip

    whole = gzip.compress(b'{"prompt": "a"}\n{"prompt": 7}\n')
    (tmp_path / "good.jsonl.gz").write_bytes(gzip.compress(b'\xef\xbb\xbf{"prompt": "a"}\n'))
    assert load(tmp_path, it={"jsonl": "good.jsonl.gz"}) == load(tmp_path, it={"folder": "."}) == [{"prompt": "a"}]
    (tmp_path / "bad.jsonl.gz").write_bytes(whole)
    with pytest.raises(DataError, match=r"bad\.jsonl\.gz:2: column 'prompt' must be text"):
        load(tmp_path, it={"jsonl": "bad.jsonl.gz"})
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:20])
    with pytest.raises(DataError, match=r"cut\.jsonl\.gz: a gzip file that cannot be unpacked .*get it again"):
        load(tmp_path, it={"jsonl": "cut.jsonl.gz"})


@pytest.mark.parametrize("sign", [";", "\t"])
def test_columns_that_are_separated_otherwise_are_named(tmp_path: Path, sign: str) -> None:
    (tmp_path / "rows.csv").write_text(f"prompt{sign}answer\n1 + 1{sign}2\n")
    with pytest.raises(DataError) as raised:
        load(tmp_path, it={"csv": "rows.csv"})
    assert f"rows.csv:1: the columns are separated by {sign!r}" in str(raised.value)


def test_a_folder_of_several_splits_is_read_by_split(tmp_path: Path) -> None:
    for name in ("data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl", "more/validation.jsonl", "more/latest.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        jsonl(tmp_path, {"prompt": name[5:9]}, name=name)
    (tmp_path / "data" / "dataset_infos.json").write_text('{"default": {}}')
    with pytest.raises(
        DataError, match="files of several splits: test, train, validation\n  write split: test, or split: test.train.validation"
    ):
        load(tmp_path, it={"folder": "."})

    def read(split: str, folder: str = ".") -> list[str]:
        return [row["prompt"] for row in load(tmp_path, it={"folder": folder, "split": split})]

    assert read("train") == ["trai"] and read("train+test") == ["test", "trai"] and read("dev") == ["vali"]
    with pytest.raises(DataError, match="no file of split 'validation'; by their names there are test, train; write split: test"):
        read("validation", "data")
    assert len(load(tmp_path, it={"folder": "more"})) == 2  # one split, and a file that tells of none
    (tmp_path / "bare").mkdir()
    jsonl(tmp_path, {"prompt": "a"}, name="bare/rows.jsonl")
    with pytest.raises(DataError, match="bare: no file's name tells of a split\n  delete split: to read all files, or name the files"):
        read("test", "bare")


# ---------------------------------------------------------------------------------------------------------------------- conversations

TURNS = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
    {"role": "tool", "content": "t", "tool_calls": None},
    {"role": "assistant", "content": "b", "name": None},
]


def test_messages_are_a_prompt_and_what_follows_it(tmp_path: Path) -> None:
    (row,) = load(tmp_path, it={"jsonl": jsonl(tmp_path, {"messages": TURNS})})
    assert row["prompt"] == TURNS[:2]
    assert row["completion"] == [TURNS[2], {"role": "tool", "content": "t"}, {"role": "assistant", "content": "b"}]
    (row,) = load(tmp_path, it={"jsonl": jsonl(tmp_path, {"messages": TURNS, "prompt": "p"})})
    assert row["prompt"] == "p"  # whose rows are asked, and not imitated
    imitated = Sources({"it": DataSource(jsonl="rows.jsonl")}, tmp_path, Tags(), imitated=["it"]).load("it").rows
    assert imitated[0]["prompt"] == TURNS[:2]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (TURNS[:2], "column 'messages' has no turn of the assistant, so there is nothing to learn"),
        (TURNS[2:], "column 'messages' begins with the assistant's turn"),
        ([{"role": "user", "content": None}, *TURNS[2:]], "column 'messages', message 0: expected {role: text, content: text}"),
        ("text", "column 'messages' must be a list of messages, found str 'text'"),
    ],
)
def test_messages_that_teach_nothing_are_said_by_file_and_line(tmp_path: Path, messages: Any, said: str) -> None:
    with pytest.raises(DataError) as raised:
        load(tmp_path, it={"jsonl": jsonl(tmp_path, {"messages": messages})})
    assert f"rows.jsonl:1: {said}" in str(raised.value)
