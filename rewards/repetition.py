"""Does a completion repeat itself?"""

from __future__ import annotations

from collections.abc import Sequence

from rewards.function import reward
from rewards.words import words


def _check(n: int, max_penalty: float) -> str | None:
    return None if n >= 1 and max_penalty > 0 else f"n must be at least 1 (found {n}) and max_penalty positive (found {max_penalty})"


@reward(check=_check)
def repetition(completion: str, *, n: int = 4, max_penalty: float = 1.0) -> float:
    """Minus the share of repeated n-grams, times max_penalty: 0 where none is repeated, near -max_penalty in a loop."""
    share = repeated_ngram_share(words(completion), n)
    return -max_penalty * share if share else 0.0


def repeated_ngram_share(words: Sequence[str], n: int) -> float:
    """1 - distinct n-grams / n-grams: 0 for none repeated, nearly 1 for a loop, and 0 for fewer than n words."""
    ngrams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
