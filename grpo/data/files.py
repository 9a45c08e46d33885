"""How does a file become rows, each with its place? Whatever is wrong in it is collected, so that all of it can be said at once."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo.errors import DataError

Row = dict[str, Any]
SHOWN_PROBLEMS = 20
SPLITS = {"train": "train", "test": "test", **dict.fromkeys(("validation", "valid", "val", "dev"), "validation")}
DESCRIPTIONS = (
    "dataset_infos.json",
    "dataset_info.json",
    "dataset_dict.json",
    "state.json",
)  # of a data set, which the datasets library writes
MOST_FIELD_CHARACTERS = 2**31 - 1  # the csv module's own limit is 131,072; ours is for all kinds of source and comes later


@dataclass(frozen=True)
class Record:
    """A row as it was read, and where: "rows.jsonl:3"."""

    place: str
    row: Row


def read_file(path: Path, problems: list[str]) -> list[Record]:
    """The records of a .jsonl, .json, .csv or .parquet file; what cannot be read is added to ``problems``, by file and line."""
    return READERS[_ending(path)](path, problems)


def read_folder(folder: Path, problems: list[str], split: str | None = None) -> list[Record]:
    """The records of all such files below ``folder``, in the order of their names; hidden files and other kinds are passed over.

    Where the names of files tell of several splits, ``split`` says which to read: train, or train+test.
    """
    files = data_files(folder)
    if not files:
        problems.append(f"{folder}: no file here or below ends in {', '.join(READERS)}")
    splits = {file: split_of(file.relative_to(folder)) for file in files}
    found = sorted({name for name in splits.values() if name is not None})
    wanted = [SPLITS.get(name, name) for name in split.split("+")] if split else None
    if wanted is not None and files and not found:
        problems.append(
            f"{folder}: no file's name tells of a split\n  delete split: to read all files, or name the files train.jsonl, test.jsonl, ..."
        )
    elif wanted is not None and (absent := [name for name in wanted if name not in found]) and files:
        problems.append(f"{folder}: no file of split {absent[0]!r}; by their names there are {', '.join(found)}; write split: {found[0]}")
    elif wanted is None and len(found) > 1:
        problems.append(
            f"{folder}: files of several splits: {', '.join(found)}\n  write split: {found[0]}, or split: {'+'.join(found)} for all of them"
        )
    if wanted is not None:
        files = [file for file in files if splits[file] in wanted]
    return [record for file in files for record in read_file(file, problems)]


def data_files(folder: Path) -> list[Path]:
    """The files that ``read_folder`` reads."""
    files = (path for path in folder.rglob("*") if _ending(path) in READERS and path.name not in DESCRIPTIONS and path.is_file())
    return sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def split_of(path: Path) -> str | None:
    """The split that a file's name tells of (train-00000-of-00002.parquet), or the name of its folder; None where they tell of none."""
    for part in reversed(path.parts):
        for word in re.split(r"[-_.]", part.lower()):
            if word in SPLITS:
                return SPLITS[word]
    return None


def _ending(path: Path) -> str:
    """Of a file that may be packed: .jsonl of rows.jsonl.gz."""
    return Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()


def read_jsonl(path: Path) -> list[Row]:
    """Rows of a JSON-lines file; DataError names file and line of every line that is not a JSON object."""
    problems: list[str] = []
    records = read_lines(path, problems)
    refuse(problems)
    return [record.row for record in records]


def refuse(problems: list[str], what: str = "") -> None:
    """Raise DataError with all problems, if there are any; a long list is cut and says so."""
    if not problems:
        return
    more = len(problems) - SHOWN_PROBLEMS
    shown = [*problems[:SHOWN_PROBLEMS], *([f"... and {more} more"] if more > 0 else [])]
    if what and len(problems) > 1:
        shown = [f"{what}{len(problems)} problems, and no row was used; mend these rows or delete them:", *(f"  {line}" for line in shown)]
    elif what:
        shown = [what + shown[0]]
    raise DataError("\n".join(shown))


def read_lines(path: Path, problems: list[str]) -> list[Record]:
    """JSON lines. A line ends at a newline and at nothing else; empty ones are passed over, and so is a byte order mark."""
    records = []
    for number, raw in enumerate(_bytes_of(path, problems).split(b"\n"), start=1):
        place = f"{path}:{number}"
        try:
            line = raw.decode("utf-8")
            row = _parsed(line) if line.strip() else None
        except UnicodeDecodeError as error:
            problems.append(f"{place}: {_not_utf8(error)}")
        except _NotJsonError as error:
            problems.append(f"{place}: {error}")
        else:
            if isinstance(row, dict):
                records.append(Record(place, row))
            elif line.strip():
                problems.append(f"{place}: expected an object, found {type(row).__name__}")
    return records


class _NotJsonError(ValueError):
    """Says why in its message, with the column where there is one."""


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise _NotJsonError(f"not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise _NotJsonError("not JSON that can be read (nested too deeply)") from None
    except ValueError as error:  # numbers: NaN, and those of more digits than Python reads
        raise _NotJsonError(f"not JSON that can be read ({error})") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON; write null")


def read_json(path: Path, problems: list[str]) -> list[Record]:
    """One list of objects, each placed at the line it begins in."""
    text = _text_of(path, problems)
    if text is None:
        return []
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    records: list[Record] = []
    at = _past_space(text, 0)
    if text[at : at + 1] != "[":
        problems.append(f"{path}:1: expected a list of objects, found {text[at : at + 20]!r}; one object a line is jsonl:")
        return []
    line, counted = 1, 0
    at = _past_space(text, at + 1)
    while text[at : at + 1] != "]" or records:
        line, counted = line + text.count("\n", counted, at), at
        place = f"{path}:{line}"
        try:
            row, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            problems.append(f"{path}:{error.lineno}: not JSON ({error.msg} at column {error.colno})")
            return records
        except (ValueError, RecursionError) as error:
            problems.append(f"{place}: not JSON that can be read ({error})")
            return records
        if isinstance(row, dict):
            records.append(Record(place, row))
        else:
            problems.append(f"{place}: expected an object, found {type(row).__name__}")
        at = _past_space(text, at)
        if text[at : at + 1] != ",":
            break
        at = _past_space(text, at + 1)
    line += text.count("\n", counted, at)
    if text[at : at + 1] != "]":
        problems.append(f"{path}:{line}: not JSON (the list goes on with neither ',' nor ']')")
    elif _past_space(text, at + 1) < len(text):
        problems.append(f"{path}:{line}: not JSON (something stands after the list's end); one object a line is jsonl:")
    return records


def _past_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def read_csv(path: Path, problems: list[str]) -> list[Record]:
    """A header and rows. Every value stays the text that it is: 007 is not 7."""
    text = _text_of(path, problems)
    if text is None:
        return []
    limit = csv.field_size_limit(MOST_FIELD_CHARACTERS)
    try:
        return list(_csv_records(path, csv.reader(io.StringIO(text, newline=""), strict=True), problems))
    finally:
        csv.field_size_limit(limit)


def _csv_records(path: Path, reader: Any, problems: list[str]) -> Iterator[Record]:
    header: list[str] | None = None
    begins = 1
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            problems.append(f"{path}:{begins}: not CSV ({error})")
            return
        place, begins = f"{path}:{begins}", reader.line_num + 1
        if fields is None:
            return
        if header is None:
            header = fields
            if len(header) == 1 and (other := next((sign for sign in ";\t|" if sign in header[0]), None)):
                problems.append(
                    f"{place}: the columns are separated by {other!r}, found {header[0]!r:.60}\n  save the file with commas between its columns"
                )
                return
            odd = sorted({name for name in header if not name.strip() or header.count(name) > 1})
            if odd:
                problems.append(f"{place}: the header needs a name of its own for every column, found {header}")
                return
        elif len(fields) == len(header):
            yield Record(place, dict(zip(header, fields, strict=True)))
        elif fields:
            problems.append(f"{place}: {len(fields)} values for {len(header)} columns; a value that holds a comma or a newline is quoted")


def read_parquet(path: Path, problems: list[str]) -> list[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        problems.append(f"{path}: not a Parquet file that can be read ({' '.join(str(error).split())})")
        return []
    return [Record(f"{path}, row {index}", row) for index, row in enumerate(rows)]


def _bytes_of(path: Path, problems: list[str]) -> bytes:
    """What is in a file, unpacked where it is a gzip, and without a byte order mark."""
    raw = path.read_bytes()
    if raw.startswith(b"\x1f\x8b"):
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            problems.append(f"{path}: a gzip file that cannot be unpacked ({error}); get it again")
            return b""
    return raw.removeprefix(b"\xef\xbb\xbf")


def _text_of(path: Path, problems: list[str]) -> str | None:
    raw = _bytes_of(path, problems)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        problems.append(f"{path}:{line}: {_not_utf8(error)}")
        return None


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 (byte 0x{error.object[error.start]:02x}); save the file as UTF-8"


READERS: dict[str, Callable[[Path, list[str]], list[Record]]] = {
    ".jsonl": read_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
}
