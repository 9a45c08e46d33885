"""How much is the answer like the gold answer, as text?"""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import Any

from rewards.errors import Undecidable
from rewards.function import reward
from rewards.rules.exact import plain, plain_golds
from rewards.rules.extract import answer_text

MAX_CHARACTERS = 2000
"""The comparison takes the product of both lengths: 2,000 by 2,000 characters are a fraction of a second, 20,000 by 20,000 minutes."""


def _check(threshold: float | None, answer_tag: str) -> str | None:
    if threshold is None or 0 < threshold <= 1:
        return None
    return f"threshold is {threshold:g}; it must lie between 0 and 1, or be left out for the likeness itself"


@reward(undecidable=0.0, check=_check, gold="answer", write=str)
def fuzzy(completion: str, answer: Any, *, threshold: float | None = None, answer_tag: str = "answer") -> float | None:
    """Likeness of the answer block and column ``answer``; with a threshold, 1 from there on and 0 below.

    Likeness is 2 M / T: M characters in matching blocks (Ratcliff and Obershelp, as in Python's difflib), of T in both texts; case and
    spacing do not count. 1 is equal, 0 has no character in common; unlike words of one language reach 0.3 to 0.5 by chance, so give it a
    threshold, or little weight. Of a list of answers the likest counts. No answer block: 0. Longer than 2,000 characters: undecidable, 0.
    No gold answer, or a longer one: None.
    """
    golds = plain_golds(answer)
    if not golds or max(map(len, golds)) > MAX_CHARACTERS:
        return None
    given = plain(answer_text(completion, answer_tag))
    if len(given) > MAX_CHARACTERS:
        raise Undecidable(f"the answer has {len(given)} characters, more than {MAX_CHARACTERS}")
    likeness = max(SequenceMatcher(None, given, gold, autojunk=False).ratio() for gold in golds)
    return likeness if threshold is None else float(likeness >= threshold)
