"""Does the answer equal the gold answer as text?"""

from __future__ import annotations

from typing import Any

from rewards.extract import answer_text
from rewards.function import reward


@reward(gold="answer", write=str)
def exact(completion: str, answer: Any, *, answer_tag: str = "answer") -> float | None:
    """1 if the answer block says what column ``answer`` says, whatever the case and the spacing, else 0. No gold answer: None."""
    gold = plain(answer)
    if not gold:
        return None
    given = answer_text(completion, answer_tag)
    return float(given is not None and plain(given) == gold)


def plain(text: Any) -> str:
    """An answer without what text comparisons overlook: case and spacing."""
    return " ".join(str("" if text is None else text).casefold().split())
