"""Is a completion longer than it should be?"""

from __future__ import annotations

from rewards.function import reward


def _check(max_tokens: int, buffer: int | None) -> str | None:
    if max_tokens < 1:
        return f"max_tokens is {max_tokens}; it must be at least 1"
    if buffer is not None and not 0 <= buffer <= max_tokens:
        return f"buffer is {buffer}; it must lie between 0 and max_tokens, {max_tokens}"
    return None


@reward(check=_check)
def length(num_tokens: int, *, max_tokens: int, buffer: int | None = None) -> float:
    """0 up to max_tokens - buffer, then falling linearly to -1 at max_tokens: DAPO's soft overlong punishment (arXiv:2503.14476, eq. 13).

    buffer: how many tokens before the limit it begins; by default a fifth of the limit, which is DAPO's ratio (4,096 of 20,480).
    """
    buffer = max_tokens // 5 if buffer is None else buffer
    excess = num_tokens - (max_tokens - buffer)
    if excess <= 0:
        return 0.0
    return -1.0 if num_tokens >= max_tokens else -excess / buffer
