"""Does the answer equal the gold answer as text?"""

from __future__ import annotations

import math
from typing import Any

from rewards.function import reward
from rewards.rules.extract import answer_text


@reward(gold="answer", reads_gold=True, write=str)
def exact(completion: str, answer: Any, *, answer_tag: str = "answer") -> float | None:
    """1 if the answer block says what column ``answer`` says, or one text of a list there, whatever the case and the spacing, else 0.

    No gold answer, or one that is neither text nor a number: None.
    """
    golds = plain_golds(answer)
    if not golds:
        return None
    given = answer_text(completion, answer_tag)
    return float(given is not None and plain(given) in golds)


def plain_golds(answer: Any) -> list[str]:
    """The gold answers that a column holds, as plain texts: one, or those of a list. None where there is nothing to compare with."""
    listed = answer if isinstance(answer, list | tuple) else [answer]
    is_readable = all(isinstance(gold, str | int) or (isinstance(gold, float) and math.isfinite(gold)) for gold in listed)
    golds = [plain(gold) for gold in listed] if is_readable else []
    return golds if all(golds) else []


def plain(text: Any) -> str:
    """An answer without what text comparisons overlook: case and spacing."""
    return " ".join(str("" if text is None else text).casefold().split())
