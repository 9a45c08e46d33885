"""What does a relation say: that a name has a value, or that a letter is in an interval?"""

from __future__ import annotations

import re
from typing import Any

from rewards.rules import formula
from rewards.rules.answers import Bracketed, Node, Ratio, Relation, Union, Value, Words

FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!=", "==": "=="}


def assigned(relation: Relation) -> tuple[Any, Node] | None:
    """The name and the value of x = 5, AB = 5, f(x) = 5, |AC| = 5, the area = 5; the equation 3x = 5 names nothing."""
    if relation.signs != ("=",):
        return None
    first, last = relation.sides
    for name, value in ((first, last), (last, first)):
        if isinstance(name, Words) and not isinstance(value, Words):
            return name, value
        if isinstance(name, Value) and _is_name(name):
            return name.latex.replace(" ", ""), value
        if isinstance(name, Ratio) and isinstance(value, Ratio) and all(isinstance(part, Value) and _is_name(part) for part in name.parts):
            return name, value
        if isinstance(name, Bracketed) and name.opening == "(" and isinstance(value, Bracketed) and not _has_numbers(name):
            return name, value
    return None


def _is_name(value: Value) -> bool:
    latex = re.sub(r"\s", "", value.latex)
    if value.tree is None:
        return bool(re.fullmatch(r"\\(?:angle|triangle)[A-Za-z]+|[A-Za-z]'*\([a-z](?:,[a-z])*\)|\\text\{.*\}", latex))
    tree = value.tree
    while tree[0] in ("abs", "sin", "cos", "tan", "cot", "sec", "csc"):
        tree = tree[1]
    if tree[0] == "name":
        return tree[1] not in formula.CONSTANTS
    if tree[0] == "/" and re.fullmatch(r"\\frac\{[A-Z]{1,2}\}\{[A-Z]{1,2}\}|[A-Z]{2}/[A-Z]{2}", latex):
        return True
    is_letters = bool(re.fullmatch(r"\|?[A-Z]{2,4}'?\|?|\\(?:angle|triangle)[A-Z]+|m?\\angle[A-Z]+", latex))
    return is_letters or bool(re.fullmatch(r"[A-Za-z]'*\([A-Za-z0-9](?:,[A-Za-z0-9])*\)", latex))


def _has_numbers(node: Bracketed) -> bool:
    return any(not (isinstance(part, Value) and part.tree and part.tree[0] == "name") for part in node.parts)


def letter(node: Node) -> str | None:
    """The unknown of an inequality whose other sides are known."""
    if not isinstance(node, Relation):
        return None
    return next((side.tree[1] for side in node.sides if isinstance(side, Value) and side.tree and _is_unknown(side)), None)


def _is_unknown(side: Node) -> bool:
    return isinstance(side, Value) and side.tree is not None and side.tree[0] == "name" and side.tree[1] not in formula.CONSTANTS


def as_interval(node: Node) -> Node | None:
    """x < 5 and 2 < x <= 9 as intervals; x != 5 as two. An interval is itself."""
    if isinstance(node, Bracketed):
        return node if node.opening in "([" and node.closing in ")]" and len(node.parts) == 2 else None
    if not isinstance(node, Relation):
        return None
    infinite, negative = Value(("name", "infty"), r"\infty"), Value(("neg", ("name", "infty")), r"-\infty")
    if len(node.sides) == 2:
        unknown, bound = node.sides
        sign = node.signs[0]
        if not _is_unknown(unknown):
            unknown, bound, sign = bound, unknown, FLIPPED.get(sign, sign)
        if not _is_unknown(unknown) or sign not in ("<", "<=", ">", ">=", "!="):
            return None
        if sign == "!=":
            return Union((Bracketed("(", (negative, bound), ")"), Bracketed("(", (bound, infinite), ")")))
        if sign.startswith("<"):
            return Bracketed("(", (negative, bound), ")" if sign == "<" else "]")
        return Bracketed("(" if sign == ">" else "[", (bound, infinite), ")")
    if len(node.sides) != 3 or not _is_unknown(node.sides[1]):
        return None
    low, _, high = node.sides
    signs = node.signs
    if signs[0] in (">", ">=") and signs[1] in (">", ">="):
        low, high, signs = high, low, (FLIPPED[signs[1]], FLIPPED[signs[0]])
    if signs[0] not in ("<", "<=") or signs[1] not in ("<", "<="):
        return None
    return Bracketed("(" if signs[0] == "<" else "[", (low, high), ")" if signs[1] == "<" else "]")
