"""What is odd about rows that can be read? Nothing that forbids their use; a person who knows the data should look."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from grpo.data.held_out import prompt_key, prompt_text

LONGEST_PARSED = 100_000  # characters of a prompt that is looked at as a list


def oddities(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One line for each kind, with how many rows it concerns."""
    prompts = [row["prompt"] for row in rows]
    if number := sum(isinstance(prompt, str) and _is_list_of_messages(prompt) for prompt in prompts):
        yield f"{_of(number, rows)} are text that reads as a list of messages, and are taken as text; store them as lists"
    if number := sum(isinstance(prompt, list) and prompt[-1]["role"] == "assistant" for prompt in prompts):
        yield (
            f"{_of(number, rows)} end with a turn of the assistant, so the answer may stand in the prompt; "
            "end them with the user's turn (rows to imitate: name the column messages)"
        )
    answers: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row.get("answer") is not None:
            answers.setdefault(prompt_key(row["prompt"]), {}).setdefault(str(row["answer"]).strip(), row["prompt"])
    if doubtful := [found for found in answers.values() if len(found) > 1]:
        first, second = list(doubtful[0])[:2]
        asked = prompt_text(next(iter(doubtful[0].values())))
        yield (
            f"{len(doubtful):,} prompt{'s' if len(doubtful) > 1 else ''} with different answers in different rows, "
            f"such as {asked!r:.60}: {first!r:.40} and {second!r:.40}; correct the answers or delete the rows"
        )
    if number := sum(isinstance(row.get("answer"), Mapping) for row in rows):
        fields = next(row["answer"] for row in rows if isinstance(row.get("answer"), Mapping))
        yield (
            f"the column answer holds fields in {number:,} of {len(rows):,} rows ({', '.join(map(str, fields))}); "
            "columns: {answer: column.field} takes one of them"
        )


def _of(number: int, rows: Sequence[Any]) -> str:
    return f"{number:,} of {len(rows):,} prompts"


def _is_list_of_messages(text: str) -> bool:
    """JSON, or what Python prints of such a list."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")) or "role" not in text or len(text) > LONGEST_PARSED:
        return False
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return False
    return isinstance(found, list) and bool(found) and all(isinstance(item, dict) and "role" in item for item in found)
