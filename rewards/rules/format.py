"""Is a completion one think block, then one answer block, and nothing else?"""

from __future__ import annotations

import unicodedata

from rewards.function import reward

BLANK = frozenset("\u034f\u115f\u1160\u2800\u3164\uffa0") | {chr(code) for code in range(0xFE00, 0xFE10)}
"""Characters that show nothing, though Unicode counts them among letters, marks and symbols: fillers, joiners, variation selectors."""


@reward
def format(completion: str, prefill: str = "", *, think_tag: str = "think", answer_tag: str = "answer") -> float:
    """1 if well formed, else 0: the format reward of R1 (arXiv:2501.12948, section 2.2.2).

    Each of the four tags stands exactly once and in order, both blocks hold more than whitespace, and outside of them there is only
    whitespace; what has no width, such as U+200B, counts as whitespace. What the template prefilled (often ``<think>``) is part of what is
    judged: leaving it out is how this reward comes to be 0 for every sample.
    """
    return float(is_well_formed(prefill + completion, think_tag, answer_tag))


def is_well_formed(text: str, think_tag: str = "think", answer_tag: str = "answer") -> bool:
    pieces, rest = [], text
    for tag in (f"<{think_tag}>", f"</{think_tag}>", f"<{answer_tag}>", f"</{answer_tag}>"):
        if text.count(tag) != 1:
            return False
        piece, found, rest = rest.partition(tag)
        if not found:
            return False
        pieces.append(_shows_something(piece))
    before, thinking, between, answer = pieces
    return thinking and answer and not (before or between or _shows_something(rest))


def _shows_something(text: str) -> bool:
    return any(not (one.isspace() or one in BLANK or unicodedata.category(one) in ("Cf", "Cc")) for one in text)
