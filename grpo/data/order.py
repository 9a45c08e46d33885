"""Which prompts does a step use? A pure function of the step, so that a resumed run needs no state."""

from __future__ import annotations

import random


def indices_of_step(num_prompts: int, per_step: int, step: int, seed: int) -> list[int]:
    """Rows of step ``step`` (the first is 0): each epoch is one permutation, and a step that crosses its end goes on in the next."""
    first = step * per_step
    return [_permutation(num_prompts, position // num_prompts, seed)[position % num_prompts] for position in range(first, first + per_step)]


_cache: dict[tuple[int, int, int], list[int]] = {}


def _permutation(num_prompts: int, epoch: int, seed: int) -> list[int]:
    key = (num_prompts, epoch, seed)
    if key not in _cache:
        if len(_cache) > 8:
            _cache.clear()
        order = list(range(num_prompts))
        random.Random(f"order-{seed}-{epoch}").shuffle(order)
        _cache[key] = order
    return _cache[key]
