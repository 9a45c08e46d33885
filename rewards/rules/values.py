"""Have two formulas the same value? By their values at probe points; what only an algebra system knows, by math-verify."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from rewards.rules import formula
from rewards.rules.answers import Value
from rewards.rules.numbers import Number, same_number

PROBES = 6
TOLERANCE = 1e-25
"""Relative, for formulas, which are evaluated to 50 digits."""


class Unknown(Exception):
    """Nobody here can tell."""


def same_value(gold: Value, given: Value) -> bool:
    if gold.unit and given.unit and gold.unit != given.unit:
        return False
    if gold.number is not None and given.number is not None:
        return same_number(gold.number, given.number)
    if gold.latex == given.latex and gold.tree is None:
        return True
    for one, other in ((gold.in_units, given), (gold, given.in_units)):
        if one is not None and other is not None and same_value(one, other):
            return True
    if gold.tree is None or given.tree is None:
        return by_math_verify(gold.latex, given.latex)
    as_share = [_as_share(gold), _as_share(given)]
    return _same_formula(gold, given) or any(as_share) and _same_formula(as_share[0] or gold, as_share[1] or given)


def _as_share(value: Value) -> Value | None:
    number = value.number
    if number is None or not number.is_percent:
        return None
    share = Number(number.value / 100, number.last_digit / 100)
    return value._replace(number=share, tree=("number", str(share.value)))


def _same_formula(gold: Value, given: Value) -> bool:
    """Equal at every probe where both have a value. One number alone may be a decimal that was rounded."""
    assert gold.tree is not None and given.tree is not None
    rounded_by = max((each.number.rounded_by for each in (gold, given) if each.number is not None), default=0)
    values = formula.exact(gold.tree), formula.exact(given.tree)
    if values[0] is not None and values[1] is not None:
        return abs(values[0] - values[1]) <= rounded_by
    letters = formula.names(gold.tree) | formula.names(given.tree)
    pairs = [pair for number in range(PROBES if letters else 1) if (pair := at_probe(number, letters, gold, given)) is not None]
    real = [pair for pair in pairs if not any(each.imag for each in pair)]  # what a root of a negative number is, is a convention
    if not pairs:
        raise Unknown
    return all(near(one, other, 0.0 if letters else float(rounded_by)) for one, other in real or pairs)


def at_probe(number: int, letters: frozenset[str], *values: Value | formula.Tree) -> list[Any] | None:
    """The values at one probe; None where one of them has none there, or is out of reach."""
    places = {name: formula.point(name, number) for name in letters}
    try:
        trees = [each.tree if isinstance(each, Value) else each for each in values]
        found = [formula.value(tree, places) for tree in trees if tree is not None]
    except (ArithmeticError, ValueError, TypeError, KeyError, MemoryError):
        return None
    return None if any(each != each for each in found) else found


def near(one: Any, other: Any, rounded_by: float = 0.0) -> bool:
    """Equal but for rounding; ``rounded_by``: how far one of them may have been rounded from the other."""
    if one == other:
        return True
    distance, size = abs(one - other), max(abs(one), abs(other))
    return bool(size < float("inf")) and bool(distance <= max(TOLERANCE * size, rounded_by))


@lru_cache(maxsize=4096)
def _parsed(latex: str) -> Any | None:
    """What math-verify reads in a whole formula: in a box, so that it doesn't look for one. Its last resort, a string, is no value."""
    from math_verify import LatexExtractionConfig, parse

    found = parse(f"\\boxed{{{latex}}}", extraction_config=[_latex_only(LatexExtractionConfig)], parsing_timeout=None)
    return next((value for value in found if not isinstance(value, str)), None)


def _latex_only(config: Callable[..., Any]) -> Any:
    from latex2sympy2_extended import NormalizationConfig

    rules = NormalizationConfig(basic_latex=True, malformed_operators=True, nits=True, boxed="last")
    return config(boxed_match_priority=0, normalization_config=rules)


def by_math_verify(gold: str, given: str) -> bool:
    """With its timeouts off: they need signals and the main thread."""
    from math_verify import verify

    right, value = _parsed(gold), _parsed(given)
    if right is None or value is None:
        raise Unknown
    try:
        return bool(verify(right, value, timeout_seconds=None, raise_on_error=True))
    except Exception:  # sympy raises anything
        raise Unknown from None
