"""How a prompt or a completion, which is a string or a message list, reads as one text, and how the two make a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Messages = Sequence[Mapping[str, Any]]


def plain_text(turn: str | Messages | None) -> str:
    """A string as it is; messages as lines 'role: content', one alone as its content."""
    if isinstance(turn, str):
        return turn
    messages = list(turn or ())
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def with_answer(prompt: str | Messages | None, answer: str) -> list[Mapping[str, Any]]:
    """The conversation of a prompt and its answer; a string was said by the user."""
    asked: Messages = [{"role": "user", "content": prompt or ""}] if isinstance(prompt, str | None) else prompt
    return [*asked, {"role": "assistant", "content": answer}]
