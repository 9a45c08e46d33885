"""Does a completion repeat itself?"""

from __future__ import annotations

from collections.abc import Sequence

from rewards.function import reward
from rewards.rules.tokenize import words

LONGEST_PERIOD = 32
LEAST_LOOP = 150
"""Characters: lines and rows of dashes, padding and long numbers are shorter, and a policy that is stuck is not."""


def _check(n: int, max_penalty: float) -> str | None:
    return None if n >= 1 and max_penalty > 0 else f"n must be at least 1 (found {n}) and max_penalty positive (found {max_penalty})"


@reward(check=_check)
def repetition(completion: str, *, n: int = 4, max_penalty: float = 1.0) -> float:
    """Minus the share of repeated n-grams of words, or of characters in a loop without words (hahaha, ......), whichever is more, times
    max_penalty: 0 where nothing is repeated, near -max_penalty in a loop."""
    share = repeated_share(completion, n)
    return -max_penalty * share if share else 0.0


def repeated_share(text: str, n: int) -> float:
    """The share of repeated n-grams of words, or of characters in loops, whichever is more."""
    return max(repeated_ngram_share(words(text), n), looped_share(text))


def repeated_ngram_share(words: Sequence[str], n: int) -> float:
    """1 - distinct n-grams / n-grams: 0 for none repeated, nearly 1 for a loop, and 0 for fewer than n words."""
    ngrams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def looped_share(text: str) -> float:
    """The share of characters that repeat those up to LONGEST_PERIOD before them, in loops of at least LEAST_LOOP such characters.

    A loop is longer than two windows, so that looking at every 64th character finds it: a text without loops costs next to nothing.
    """
    at = looped = 0
    while at + 2 * LONGEST_PERIOD <= len(text):
        again = text.find(text[at : at + LONGEST_PERIOD], at + 1, at + 2 * LONGEST_PERIOD)
        end = at + 2 * LONGEST_PERIOD
        if again >= 0:
            period, start, end = again - at, at, again
            while start > 0 and text[start - 1] == text[start - 1 + period]:
                start -= 1
            while end < len(text) and text[end] == text[end - period]:
                end += 1
            if end - start - period >= LEAST_LOOP:
                looped += end - start - period
        at = max(end, at + 1)
    return looped / len(text) if text else 0.0
