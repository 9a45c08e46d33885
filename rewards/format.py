"""Is a completion one think block, then one answer block, and nothing else?"""

from __future__ import annotations

from rewards.function import reward


@reward
def format(completion: str, prefill: str = "", *, think_tag: str = "think", answer_tag: str = "answer") -> float:
    """1 if well formed, else 0: the format reward of R1 (arXiv:2501.12948, section 2.2.2).

    Each of the four tags stands exactly once and in order, both blocks hold more than whitespace, and outside of them there is only
    whitespace. What the template prefilled (often ``<think>``) is part of what is judged: leaving it out is how this reward comes to be
    0 for every sample.
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
        pieces.append(piece.strip())
    before, thinking, between, answer = pieces
    return bool(thinking and answer) and not (before or between or rest.strip())
