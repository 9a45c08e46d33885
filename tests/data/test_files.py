"""What is wrong in a file is said by line, all at once; what is right in it comes out as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo.data.files import read_file, read_folder, refuse
from grpo.errors import DataError


def read(path: Path, content: str | bytes) -> tuple[list[tuple[str, dict]], list[str]]:
    """(line, row) of each record, and what was wrong, without the path."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    problems: list[str] = []
    records = [(record.place.removeprefix(str(path)), record.row) for record in read_file(path, problems)]
    assert all(problem.startswith(str(path)) for problem in problems)
    return records, [problem.removeprefix(str(path)) for problem in problems]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"a": ', "not JSON (Expecting value at column 7)"),
        (b'{"a": 1} {"a": 2}', "not JSON (Extra data at column 10)"),
        (b"[1]", "expected an object, found list"),
        (b"null", "expected an object, found NoneType"),
        (b'{"a": NaN}', "not JSON that can be read (NaN is no JSON; write null)"),
        (b'{"a": "\xff"}', "not UTF-8 (byte 0xff); save the file as UTF-8"),
        (b'{"a": "x\ty"}', "not JSON (Invalid control character at at column 9)"),
        (b"[" * 100_000, "not JSON that can be read (nested too deeply)"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "not JSON that can be read (Exceeds the limit (4300 digits)"),
    ],
)
def test_a_bad_line_is_said_by_its_number_and_the_others_are_read(tmp_path: Path, line: bytes, said: str) -> None:
    rows, (problem,) = read(tmp_path / "a.jsonl", b'{"a": 1}\r\n\r\n' + line + b'\n{"a": 2}')
    assert rows == [(":1", {"a": 1}), (":4", {"a": 2})]
    assert problem.startswith(f":3: {said}")


def test_a_utf16_file_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    rows, problems = read(tmp_path / "a.jsonl", '{"a": 1}\n'.encode("utf-16"))
    assert not rows and problems[0] == ":1: not UTF-8 (byte 0xff); save the file as UTF-8"


def test_a_list_of_objects_is_placed_by_lines(tmp_path: Path) -> None:
    rows, problems = read(tmp_path / "a.json", '\ufeff [\r\n  {"a": 1},\r\n  {"a":\r\n   2}, {"a": 3}\r\n]\r\n')
    assert rows == [(":2", {"a": 1}), (":3", {"a": 2}), (":4", {"a": 3})] and not problems
    assert read(tmp_path / "a.json", "[]") == ([], [])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"a": 1}\n{"a": 2}', ':1: expected a list of objects, found \'{"a": 1}'),
        ('[{"a": 1},\n 7]', ":2: expected an object, found int"),
        ('[{"a": 1}\n {"a": 2}]', ":2: not JSON (the list goes on with neither ',' nor ']')"),
        ('[{"a": 1},\n {"a": }]', ":2: not JSON (Expecting value at column 8)"),
        ('[{"a": 1}]\n[', ":1: not JSON (something stands after the list's end)"),
        ('[{"a": 1},\n', ":2: not JSON (Expecting value at column 1)"),
        ("", ":1: expected a list of objects, found ''"),
    ],
)
def test_a_bad_list_is_said_by_line(tmp_path: Path, content: str, said: str) -> None:
    _, problems = read(tmp_path / "a.json", content)
    assert len(problems) == 1 and problems[0].startswith(said)


def test_values_of_a_csv_file_stay_as_they_are_written(tmp_path: Path) -> None:
    rows, problems = read(tmp_path / "a.csv", '\ufeffprompt,answer\r\n"two\nlines, one value",007\r\n\r\n"a ""b""",\r\n')
    assert rows == [
        (":2", {"prompt": "two\nlines, one value", "answer": "007"}),
        (":5", {"prompt": 'a "b"', "answer": ""}),
    ]
    assert not problems


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,b\n1,2\n1\n1,2,3\n", [":3: 1 values for 2 columns", ":4: 3 values for 2 columns"]),
        ("a,a\n1,2\n", [":1: the header needs a name of its own for every column, found ['a', 'a']"]),
        ('a,b\n1,2\n"1,2\n3,4\n', [":3: not CSV (unexpected end of data)"]),
        (b"a,b\n1,\xe9\n", [":2: not UTF-8 (byte 0xe9)"]),
    ],
)
def test_a_bad_csv_line_is_said(tmp_path: Path, content: str | bytes, said: list[str]) -> None:
    _, problems = read(tmp_path / "a.csv", content)
    assert len(problems) == len(said) and all(problem.startswith(text) for problem, text in zip(problems, said, strict=True))


def test_a_field_of_ten_megabytes_is_read_whole(tmp_path: Path) -> None:
    long = "x" * 10_000_000
    assert read(tmp_path / "a.csv", f"a\n{long}\n")[0] == [(":2", {"a": long})]
    assert read(tmp_path / "a.jsonl", json.dumps({"a": long}))[0] == [(":1", {"a": long})]


def test_a_cut_parquet_file_is_said(tmp_path: Path) -> None:
    rows, (problem,) = read(tmp_path / "a.parquet", b"PAR1")
    assert not rows and problem.startswith(": not a Parquet file that can be read (")


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.csv").write_text("a\n3\n")
    (tmp_path / "a.JSONL").write_text('{"a": 1}\n')
    (tmp_path / "README.md").write_text("# no rows")
    (tmp_path / ".hidden.jsonl").write_text("no JSON")
    problems: list[str] = []
    records = read_folder(tmp_path, problems)
    assert [(Path(record.place).name, record.row) for record in records] == [("a.JSONL:1", {"a": 1}), ("1.csv:2", {"a": "3"})]
    assert not problems
    assert not read_folder(tmp_path / "c", problems) and problems == [
        f"{tmp_path / 'c'}: no file here or below ends in .jsonl, .json, .csv, .parquet"
    ]


def test_a_long_list_of_problems_is_cut_and_says_so() -> None:
    with pytest.raises(DataError) as raised:
        refuse([f"f:{number}: bad" for number in range(31)], "data source 'a': ")
    lines = str(raised.value).splitlines()
    assert lines[0] == "data source 'a': 31 problems, and no row was used; mend these rows or delete them:"
    assert (lines[1], lines[20], lines[21]) == ("  f:0: bad", "  f:19: bad", "  ... and 11 more")
