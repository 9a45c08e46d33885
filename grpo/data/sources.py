"""Where do rows come from? Every source ends as a list of dicts with a ``prompt`` and whatever columns rewards ask for."""

from __future__ import annotations

import importlib.util
import re
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo.config import DataSource, Filters, Tags
from grpo.config.check_inputs import nested_columns
from grpo.data.difficulty import measured_pass_rates
from grpo.data.files import Record, Row, read_csv, read_folder, read_json, read_lines, read_parquet, refuse
from grpo.data.general import general_rows
from grpo.data.held_out import SharedWords, prompt_key
from grpo.data.oddities import oddities
from grpo.data.row_filters import UNREADABLE, CountTokens, Sieve
from grpo.data.sums import worked_sum
from grpo.errors import DataError
from rewards.load import missing_column

MOST_DRAWS = 60  # of twice the rows asked for; a task that has so few distinct problems is refused
MOST_CHARACTERS = 1_000_000  # of one text: longer than any model's context
FILE_READERS = {"jsonl": read_lines, "json": read_json, "csv": read_csv, "parquet": read_parquet}
TEXTS = ("prompt", "completion", "answer")  # the columns that are written down and sent between processes


@dataclass(frozen=True)
class Loaded:
    """A source's rows and what is known of them.

    dropped   how many rows were left out, by reason
    places    where each row was read: "rows.jsonl:3"
    notes     what is odd about the rows, a line each
    """

    rows: list[Row]
    dropped: Mapping[str, int]
    places: list[str] = field(default_factory=list, compare=False)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        left_out = ", ".join(f"{number} {reason}" for reason, number in self.dropped.items())
        return f"{len(self.rows)} rows" + (f" (left out: {left_out})" if left_out else "")


class Sources:
    """The recipe's named sources, each read once.

    held_out      sources whose prompts no other one may hold
    count_tokens  of a prompt as the model receives it; None leaves filters by length out
    samples_of    the file in which a stage wrote its samples down, for measured_in
    unreadable    of a source's name and rows, the numbers of those whose gold answers can't be read; None leaves them in
    imitated      sources whose rows models imitate, so that each needs a completion
    """

    def __init__(
        self,
        sources: Mapping[str, DataSource],
        base: Path,
        tags: Tags,
        held_out: Sequence[str] = (),
        count_tokens: CountTokens | None = None,
        samples_of: Callable[[str], Path] | None = None,
        unreadable: Callable[[str, Sequence[Row]], Collection[int]] | None = None,
        imitated: Collection[str] = (),
    ):
        self.sources, self.base, self.tags, self.held_out, self.count_tokens = sources, base, tags, held_out, count_tokens
        self.samples_of, self.unreadable, self.imitated = samples_of, unreadable, imitated
        self._place: dict[int, str] = {}  # by id() of a row, while its source is being read
        self._loaded: dict[str, Loaded] = {}

    def load(self, name: str) -> Loaded:
        """The rows of the source called ``name`` that its filters let pass, and that no source it is to be disjoint from holds.

        Generated sources have exactly ``rows`` rows, none of them twice, others at most so many; bounds on pass rates come after that, so that
        a measured source has the rows of the one that was measured. Raises DataError with everything that is wrong with it, by file and line;
        and where nothing is left.
        """
        if name not in self._loaded:
            source = self.sources[name]
            excluded = [row["prompt"] for other in self.disjoint_from(name) for row in self.load(other).rows]
            shared = SharedWords(excluded, source.filters.decontaminate_words) if source.filters.decontaminate else None
            of_content, of_pass_rate = _split(source.filters)
            sieve = Sieve(of_content, {prompt_key(prompt) for prompt in excluded}, shared, self.count_tokens)
            last = Sieve(of_pass_rate, ())
            rows = self._generated(name, source, sieve) if source.reasoning_gym else self._read(name, source, sieve)
            rows = [row for row in rows if last.passes(row)]
            if source.filters.unreadable_gold is not None and self.unreadable is not None:
                unreadable = self.unreadable(name, rows)
                last.dropped[UNREADABLE] += len(unreadable)
                rows = [row for index, row in enumerate(rows) if index not in unreadable]
            dropped = dict(sieve.dropped + last.dropped)
            self._loaded[name] = Loaded(rows, dropped, [self._place[id(row)] for row in rows], tuple(oddities(rows)))
            self._place.clear()
            if not rows:
                raise DataError(
                    f"data source {name!r} has no rows left: {self._loaded[name]}; loosen its filters or what it is disjoint from"
                )
        return self._loaded[name]

    def disjoint_from(self, name: str) -> list[str]:
        """The sources it names, and the held-out sets; but for those that give way to it themselves."""
        held_out = [] if name in self.held_out else [other for other in self.held_out if name not in self._given_way_to(other)]
        return list(dict.fromkeys([*self.sources[name].disjoint_from, *held_out]))

    def _given_way_to(self, name: str) -> set[str]:
        found: set[str] = set()
        waiting = [name]
        while waiting:
            new = [other for other in self.sources[waiting.pop()].disjoint_from if other not in found]
            found.update(new)
            waiting += new
        return found

    def _read(self, name: str, source: DataSource, sieve: Sieve) -> list[Row]:
        problems: list[str] = []
        finished = self._finished(source, self._records(name, source, problems), problems, name in self.imitated)
        refuse(problems, f"data source {name!r}: ")
        return [row for row in finished if sieve.passes(row)][: source.rows]

    def _generated(self, name: str, source: DataSource, sieve: Sieve) -> list[Row]:
        """Draw until ``rows`` distinct, permitted problems are found; the generator's own duplicates are dropped."""
        wanted = source.rows or 1000
        rows: list[Row] = []
        seen: set[str] = set()
        for attempt in range(MOST_DRAWS):
            problems: list[str] = []
            drawn = _reasoning_gym(source, size=2 * wanted, seed=source.seed + 1_000_003 * attempt)
            for row in self._finished(source, _numbered(drawn, f"problem of seed {source.seed}, attempt {attempt}"), problems):
                key = prompt_key(row["prompt"])
                if len(rows) < wanted and key not in seen:
                    seen.add(key)
                    if sieve.passes(row):
                        rows.append(row)
            refuse(problems, f"data source {name!r}: ")
            if len(rows) == wanted:
                return rows
        left_out = f" (left out: {dict(sieve.dropped)})" if sieve.dropped else ""
        raise DataError(
            f"data source {name!r}: only {len(rows)} distinct problems found, {wanted} asked for{left_out}; "
            "ask for fewer rows or widen its settings"
        )

    def _records(self, name: str, source: DataSource, problems: list[str]) -> list[Record]:
        ((kind, value),) = source.given.items()
        if kind == "folder" or kind in FILE_READERS:
            path = self.base / value
            if not path.exists():
                raise DataError(f"data source {name!r}: there is no {'folder' if kind == 'folder' else 'file'} {path}")
            return read_folder(path, problems, source.split) if kind == "folder" else FILE_READERS[kind](path, problems)
        if kind == "general":
            return _numbered(general_rows(source.rows or 200, source.seed, self.tags))
        if kind == "generator":
            return _from_generator(name, source, self.base, problems)
        return _from_hub(name, source)

    def _finished(self, source: DataSource, records: Iterable[Record], problems: list[str], is_imitated: bool = False) -> list[Row]:
        """Rows with their columns renamed, their prompt written, and their pass rate looked up; what is wrong goes to ``problems``."""
        measured = self.base / source.measured if source.measured else None
        if source.measured_in is not None:
            assert self.samples_of is not None, "nobody reads such a source before its stage has run"
            measured = self.samples_of(source.measured_in)
        rates = measured_pass_rates(measured, source.measured_by) if measured else None
        rows = []
        for record in records:
            try:
                row = _shaped(record.row, source, self.tags, is_imitated)
            except DataError as error:
                problems.append(f"{record.place}: {error}")
                continue
            wrong = [text for column in TEXTS if (text := mistake_in(column, row.get(column)))]
            if is_imitated and not wrong and (nothing := nothing_to_imitate(row)):
                wrong.append(nothing)
            problems += [f"{record.place}: {text}" for text in wrong]
            if rates is not None:
                row["pass_rate"] = rates.get(prompt_key(row["prompt"]))
            if not wrong and (source.only is None or re.search(source.only, str(row["prompt"]))):
                rows.append(row)
                self._place[id(row)] = record.place
        return rows


def _split(filters: Filters) -> tuple[Filters, Filters]:
    """What looks at a prompt itself, and what looks at its pass rate."""
    rates = {"min_pass_rate": filters.min_pass_rate, "max_pass_rate": filters.max_pass_rate}
    return filters.model_copy(update=dict.fromkeys(rates)), Filters(**rates)


def _shaped(raw: Row, source: DataSource, tags: Tags, is_imitated: bool = False) -> Row:
    """Columns renamed; the prompt from ``question:``, or from the column question where there is no prompt yet.

    Where there is neither, or no completion to imitate, ``messages`` are a prompt up to the assistant's first turn, and a completion from there on.
    """
    row = {**raw, **{ours: _column(raw, theirs) for ours, theirs in source.columns.items()}}
    if row.get("messages") and row.get("completion") is None and (is_imitated or not {"prompt", "question"} & row.keys()):
        row["prompt"], row["completion"] = _parted(row.pop("messages"))
    if source.question is not None:
        try:
            row["prompt"] = source.question.format(**row)
        except (KeyError, IndexError) as error:
            name = str(error.args[0])
            raise DataError(f"question {source.question!r} names column {name!r}: {missing_column(name, row)}") from None
    elif "prompt" not in row:
        row["prompt"] = _column(row, "question") if "question" in row else _column(row, "prompt")
    if source.completion == "worked_sums":
        row["completion"] = worked_sum(_column(row, "expression"), tags)
    for column in ("prompt", "completion"):
        if isinstance(row.get(column), list):
            row[column] = [_without_blanks(message) for message in row[column]]
    return row


def _column(row: Row, column: str) -> Any:
    """The value of a column; reward_model.ground_truth is that of a field in it."""
    if column in row:
        return row[column]
    value: Any = row
    for name in column.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise DataError(missing_column(column, [*row, *(path for path in nested_columns(row) if path not in row)]))
        value = value[name]
    return value


def _parted(messages: Any) -> tuple[Any, Any]:
    """The turns before the assistant's first one, and the rest. Raises DataError where there is none, or nothing before it."""
    if mistake := _mistake_in_messages("messages", messages):
        raise DataError(mistake)
    first = next((number for number, message in enumerate(messages) if message["role"] == "assistant"), None)
    if not first:
        what = "has no turn of the assistant, so there is nothing to learn" if first is None else "begins with the assistant's turn"
        raise DataError(f"column 'messages' {what}; correct the row or delete it")
    return messages[:first], messages[first:]


def _without_blanks(message: Any) -> Any:
    """Without the fields that a table's other rows have and this message has not; its content stays, also where it is null."""
    if not isinstance(message, Mapping):
        return message
    return {key: value for key, value in message.items() if value is not None or key == "content"}


def nothing_to_imitate(row: Row) -> str | None:
    """Why a row cannot be imitated; None where it can."""
    completion = row.get("completion")
    if isinstance(completion, list):
        said = [message for message in completion if message["role"] == "assistant"]
        if not said:
            return "column 'completion' has no turn of the assistant, so there is nothing to learn"
        if not all((message.get("content") or "").strip() or message.get("tool_calls") for message in said):
            return "column 'completion' has an empty turn of the assistant; write what it says, or delete the row"
        return None
    if completion is None or not completion.strip():
        what = (
            missing_column("completion", row)
            if "completion" not in row
            else f"column 'completion' is {'null' if completion is None else 'empty'}"
        )
        return f"{what}; write what the model should say, or delete the row"
    return None


def mistake_in(column: str, value: Any) -> str | None:
    """Why a prompt, completion or answer cannot be used; None where it can. Answers may be missing, and of any type that JSON has."""
    if column != "prompt" and value is None:
        return None
    if column in ("prompt", "completion") and isinstance(value, list):
        return _mistake_in_messages(column, value)
    if column == "answer" and not isinstance(value, str):
        return None if _is_plain(value) else f"column 'answer' is a {type(value).__name__}; write it as text or a number"
    if not isinstance(value, str):
        wanted = "text" if column == "answer" else "text or a list of messages"
        return f"column {column!r} must be {wanted}, found {'null' if value is None else f'{type(value).__name__} {value!r:.40}'}"
    if column == "prompt" and not value.strip():
        return "column 'prompt' is empty"
    return _mistake_in_text(column, value)


def _mistake_in_messages(column: str, messages: Any) -> str | None:
    """Messages have a role and a text; one that calls tools may do without the text."""
    if not isinstance(messages, list):
        return f"column {column!r} must be a list of messages, found {type(messages).__name__} {messages!r:.40}"
    if not messages:
        return f"column {column!r} is an empty list; a list of messages has at least one"
    for number, message in enumerate(messages):
        if isinstance(message, Mapping) and isinstance(message.get("role"), str):
            content = message.get("content")
            if content is None and message.get("tool_calls"):
                continue
            if isinstance(content, str):
                if wrong := _mistake_in_text(f"{column}, message {number}", content):
                    return wrong
                continue
        return f"column {column!r}, message {number}: expected {{role: text, content: text}}, found {message!r:.60}"
    return None


def _mistake_in_text(column: str, text: str) -> str | None:
    if len(text) > MOST_CHARACTERS:
        return (
            f"column {column!r} has {len(text):,} characters, and no model takes more than {MOST_CHARACTERS:,}; cut it or leave the row out"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"column {column!r}, character {error.start}: {text[error.start]!r} is half of a surrogate pair, which is no text"
    return None


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float)


def _numbered(rows: Iterable[Row], what: str = "row") -> list[Record]:
    return [Record(f"{what} {index}", row) for index, row in enumerate(rows)]


def _reasoning_gym(source: DataSource, size: int, seed: int) -> list[Row]:
    import reasoning_gym

    dataset = reasoning_gym.create_dataset(source.reasoning_gym, size=size, seed=seed, **source.settings)
    return [{**_plain(item["metadata"]), **{key: item[key] for key in ("question", "answer", "metadata")}} for item in dataset]


def _plain(metadata: Mapping[str, Any]) -> Row:
    return {key: value for key, value in metadata.items() if isinstance(value, str | int | float) and not key.startswith("source_")}


def _from_generator(name: str, source: DataSource, base: Path, problems: list[str]) -> list[Record]:
    """The rows that a user's function yields. Raises DataError with the line of the user's file where it fails."""
    file, _, function = str(source.generator).rpartition(":")
    path = (base / file).resolve()
    if not path.is_file():
        raise DataError(f"data source {name!r}: generator {source.generator!r}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"_user_data_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not callable(getattr(module, function, None)):
            raise DataError(f"data source {name!r}: there is no function {function!r} in {path}")
        made = list(getattr(module, function)(**source.settings))
    except DataError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).resolve() == path]
        where = f"{path}:{lines[-1]}" if lines else str(path)
        raise DataError(f"data source {name!r}: {where}: {function} raised {type(error).__name__}: {error}") from error
    problems += [
        f"{path}:{function}, row {i}: expected a dict, found {row!r:.60}" for i, row in enumerate(made) if not isinstance(row, Mapping)
    ]
    return [Record(f"{path}:{function}, row {index}", dict(row)) for index, row in enumerate(made) if isinstance(row, Mapping)]


def _from_hub(name: str, source: DataSource) -> list[Record]:
    import datasets

    split = source.split or "train"
    try:
        loaded = datasets.load_dataset(source.hub, source.subset, split=split, revision=source.revision)
    except Exception as error:  # its own, the hub's and the network's, of many families
        reason = " ".join(str(error).split())
        raise DataError(
            f"data source {name!r}: {source.hub!r} (split {split!r}) could not be had from the hub: {type(error).__name__}: {reason:.300}; "
            "check its name, subset: and split:, the network and HF_TOKEN"
        ) from error
    return [Record(f"{source.hub}, {split}, row {index}", dict(row)) for index, row in enumerate(loaded)]
