"""Which prompts say almost the same? MinHash finds candidates, the Jaccard index decides.

A prompt is the set of its runs of three words (numbers and signs count as words). The Jaccard index of two sets is what they share over what
they have together; the chance that two sets agree in a random hash's minimum is just that (Broder 1997). 128 such minima in bands of four bring
together what is 0.8 alike in all but one case of 10^7; at an index of 0.5, 0.87 of the pairs. Every candidate is then compared in full.

Prompts whose numbers or signs differ, or stand in another order, are different problems, however alike their words: "120 km/h" is not "90 km/h".
"""

from __future__ import annotations

import re

import numpy as np

from grpo.data.held_out import prompt_key
from rewards.rules.tokenize import CJK

TOKEN = re.compile(rf"\d+(?:[.,]\d+)*|[{CJK}]|(?:(?![{CJK}\d_])\w)+|[^\w\s]|_")
SIGNS = frozenset("+-*/^=<>%×÷±≤≥−")
RUN, NUM_HASHES, BAND = 3, 128, 4


class NearDuplicates:
    """Holds the prompts that were kept. The same prompts in the same order are always judged alike."""

    def __init__(self, similarity: float):
        self.similarity = similarity
        rng = np.random.Generator(np.random.PCG64(20260101))
        self._factors_H = rng.integers(0, 1 << 63, NUM_HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._offsets_H = rng.integers(0, 1 << 63, NUM_HASHES, dtype=np.uint64)
        self._buckets: dict[tuple[bytes, tuple[str, ...]], list[int]] = {}
        self._kept: list[frozenset[int]] = []

    def repeats(self, prompt: object) -> bool:
        """Is it nearly one of those kept before? If not, it is kept."""
        tokens = TOKEN.findall(prompt_key(prompt))
        runs, numbers = _hashed_runs(tokens), tuple(token for token in tokens if token[0].isdigit() or token in SIGNS)
        keys = [(band, numbers) for band in self._bands(runs)]
        candidates = {index for key in keys for index in self._buckets.get(key, ())}
        if any(_jaccard(runs, self._kept[i]) >= self.similarity for i in candidates):
            return True
        for key in keys:
            self._buckets.setdefault(key, []).append(len(self._kept))
        self._kept.append(runs)
        return False

    def _bands(self, runs: frozenset[int]) -> list[bytes]:
        """Multiply-shift hashing modulo 2^64: an odd factor, an offset, the upper half."""
        hashes_S = np.fromiter(runs, dtype=np.uint64)
        minima_H = ((hashes_S[:, None] * self._factors_H + self._offsets_H) >> np.uint64(32)).min(axis=0)
        return [bytes([number]) + minima_H[number * BAND : (number + 1) * BAND].tobytes() for number in range(NUM_HASHES // BAND)]


def _hashed_runs(tokens: list[str]) -> frozenset[int]:
    import xxhash

    padded = tokens if len(tokens) >= RUN else [*tokens, *[""] * (RUN - len(tokens))]
    return frozenset(xxhash.xxh3_64_intdigest("\n".join(padded[i : i + RUN]).encode()) for i in range(len(padded) - RUN + 1))


def _jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    return len(one & other) / len(one | other)
