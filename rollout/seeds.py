"""Which random numbers does a sample get? Those that follow from who it is, not from when or where it is drawn."""

from __future__ import annotations


def sample_seed(seed: int, step: int, prompt_id: str, index: int) -> int:
    """A seed in [0, 2^63) for sample ``index`` of ``prompt_id`` in ``step``. Hashed, because engines derive neighbouring streams from neighbours."""
    import xxhash

    return xxhash.xxh3_64_intdigest(f"{seed}/{step}/{prompt_id}/{index}".encode()) >> 1
