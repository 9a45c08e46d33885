"""Have two answers the same mathematical value? Part by part; formulas by their values at probe points, what else there is by math-verify."""

from __future__ import annotations

import ast
import contextlib
import logging
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

from rewards.rules import formula
from rewards.rules.answers import Bracketed, InBase, NoAnswer, Node, Ratio, Relation, Several, Table, Time, Union, Value, Words
from rewards.rules.normalize import lost_backslash
from rewards.rules.numbers import Number, plain_number, same_number
from rewards.rules.reading import read, words_of
from rewards.rules.relations import FLIPPED, as_interval, assigned, letter
from rewards.rules.values import PROBES, Unknown, at_probe, by_math_verify, near, same_value

__all__ = ["Number", "Verdict", "form_problem", "judge", "plain_number", "readable", "same_number", "warm_up"]

Verdict = Literal["same", "different", "undecidable", "unreadable gold"]

MAX_CHARACTERS = 1000
"""Longer answers are nobody's answer, and parsers take for ever over them."""

MAX_WORDS = 8
"""A gold answer of more words, beside mathematics, is a text about its answer."""

LIST_TEXT = re.compile(r"\s*[\[(]\s*['\"].*['\"]\s*,?\s*[\])]\s*$|\s*\[.*['\"].*\]\s*$", re.DOTALL)
LATEX = re.compile(r"\\(?:text|mathrm|textbf|mbox|operatorname|begin|end)\s*\{[^{}]*\}|\\[a-zA-Z]+")
PROSE = re.compile(r"[^\W\d_]{2,}")


def readable(answer: Any) -> str:
    """A gold answer's text, whatever its type; empty for nothing, and for what is longer than an answer can be."""
    text = "" if answer is None else str(answer)
    if lost_backslash(text) is None:  # else a form feed at its beginning is what was \f
        text = text.strip()
    return text if len(text) <= MAX_CHARACTERS else ""


def parts(answer: Any) -> tuple[str, ...]:
    """A gold answer's text, or the texts of the parts of a list, which may also be written as JSON or as Python writes it."""
    if hasattr(answer, "tolist"):
        answer = answer.tolist()
    if isinstance(answer, str) and LIST_TEXT.match(answer):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            answer = ast.literal_eval(answer.strip())
    if isinstance(answer, list | tuple):
        return tuple(filter(None, map(readable, answer)))
    return (readable(answer),) if readable(answer) else ()


def judge_list(golds: tuple[str, ...], given: str, wanted: Literal["all", "any"]) -> Verdict:
    """``judge`` for a gold answer of several parts: all of them in any order, or any one."""
    if len(golds) == 1:
        return judge(golds[0], given)
    if wanted == "any":
        verdicts = [judge(gold, given) for gold in golds]
        return min(verdicts, key=("same", "different", "undecidable", "unreadable gold").index)
    return judge(golds, given)


@lru_cache(maxsize=2**16)
def judge(gold: str | tuple[str, ...], given: str) -> Verdict:
    """Compares an answer with a gold answer, or with all parts of one. Only call it where it can be killed: math-verify may take for ever.

    A verdict is kept, because the samples of a group say the same few things.
    """
    right = _read_gold(gold)
    if right is None:
        return "unreadable gold"
    if not given:
        return "different"
    if len(given) > MAX_CHARACTERS:
        return "undecidable"
    if gold == given or (isinstance(gold, str) and words_of(gold) and words_of(gold) == words_of(given)):
        return "same"
    try:
        return "same" if _same(right, read(given)) else "different"
    except (NoAnswer, Unknown, RecursionError):
        return "undecidable"


def damage(gold: str) -> str | None:
    r"""What happened to a gold answer on its way: "\frac" in JSON, with one backslash, is a form feed and "rac"."""
    if (command := lost_backslash(gold)) is None:
        return None
    return f"has lost a backslash: a control character stands where {command} stood; in JSON and YAML write \\\\ for each \\"


def form_problem(gold: str) -> str | None:
    """Why a gold answer is no answer but a text with values in it, or was damaged on its way; None where it is one."""
    if (what := damage(gold)) is not None:
        return what
    num_words = len(PROSE.findall(LATEX.sub(" ", gold)))
    if gold.rstrip().endswith("?"):
        return "is a question"
    if "####" in gold:
        return "is a worked solution: the answer is only what follows ####"
    return f"is a text of {num_words} words, not an answer" if num_words > MAX_WORDS else None


def warm_up() -> None:
    """Imports math-verify and builds its tables, which takes most of a second."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    by_math_verify(r"\int_0^1 x dx", r"\frac{1}{2}")
    judge(r"x+1", "1+x")


@lru_cache(maxsize=4096)
def _read_gold(gold: str | tuple[str, ...]) -> Node | None:
    """A gold answer; None where it can't be read, or doesn't even equal itself (1/0)."""
    try:
        if isinstance(gold, str):
            node = read(gold)
        else:
            nodes = [read(part) for part in gold]
            node = nodes[0] if all(_same(nodes[0], other) for other in nodes[1:]) else Several(tuple(nodes))  # one value, written twice
        return node if _same(node, node) else None
    except (NoAnswer, Unknown, RecursionError):
        return None


def _same(gold: Node, given: Node) -> bool:
    """By the kinds of the two; each rule is in docs/rewards.md."""
    gold, given = _ends(gold), _ends(given)
    if isinstance(gold, Value) and isinstance(given, Value):
        return same_value(gold, given)
    if isinstance(gold, Relation) or isinstance(given, Relation):
        return _same_relation(gold, given)
    if isinstance(gold, Several) or isinstance(given, Several):
        return _same_several(gold, given)
    if isinstance(gold, Bracketed) and isinstance(given, Bracketed):
        if "{" in (gold.opening, given.opening):
            return gold.opening == given.opening and _is_covered(gold.parts, given.parts) and _is_covered(given.parts, gold.parts)
        is_same_shape = len(gold.parts) != 2 or (gold.opening, gold.closing) == (given.opening, given.closing)
        return is_same_shape and len(gold.parts) == len(given.parts) and all(map(_same, gold.parts, given.parts))
    if isinstance(gold, Bracketed | Union) and isinstance(given, Bracketed | Union):
        return _matched(_pieces(gold), _pieces(given))
    if isinstance(gold, Bracketed) and gold.opening == "{" and len(gold.parts) == 1:
        return _same(gold.parts[0], given)
    if isinstance(given, Bracketed) and given.opening == "{" and len(given.parts) == 1:
        return _same(gold, given.parts[0])
    if isinstance(gold, Words) and isinstance(given, Words):
        return gold == given
    if isinstance(gold, Table) and isinstance(given, Table):
        is_same_shape = [len(row) for row in gold.rows] == [len(row) for row in given.rows]
        return is_same_shape and all(map(_same, sum(gold.rows, ()), sum(given.rows, ())))
    if isinstance(gold, Table | Value) and isinstance(given, Table | Value):  # a sum of matrices
        return by_math_verify(gold.latex, given.latex)
    if isinstance(gold, Time) and isinstance(given, Time):
        return _same_time(gold, given)
    if isinstance(gold, InBase) and isinstance(given, InBase):
        return gold == given
    if isinstance(gold, InBase) and isinstance(given, Value):
        return given.latex.replace(" ", "") == gold.digits
    if isinstance(gold, Ratio) or isinstance(given, Ratio):
        return _same_ratio(gold, given)
    return False


def _same_several(gold: Node, given: Node) -> bool:
    """Side by side in any order, each as often as there; a point or an interval is in its order. Elements of a set count once."""
    if isinstance(gold, Several) and isinstance(given, Several):
        return _matched(gold.parts, given.parts)
    several, other = (gold, given) if isinstance(gold, Several) else (given, gold)
    assert isinstance(several, Several)
    if isinstance(other, Bracketed) and other.opening == "{":
        return _matched(several.parts, other.parts)
    if isinstance(other, Bracketed):
        return len(several.parts) == len(other.parts) and all(map(_same, several.parts, other.parts))
    if isinstance(other, Union) or as_interval(other) is not None:
        intervals = [as_interval(part) for part in several.parts]
        return None not in intervals and _matched([part for part in intervals if part is not None], _pieces(other))
    return False


def _matched(gold: Sequence[Node], given: Sequence[Node]) -> bool:
    """One to one, in any order."""
    waiting = list(given)
    for part in gold:
        partner = next((each for each in waiting if _same(part, each)), None)
        if partner is None:
            return False
        waiting.remove(partner)
    return not waiting


def _is_covered(parts: Sequence[Node], others: Sequence[Node]) -> bool:
    return all(any(_same(part, other) for other in others) for part in parts)


def _pieces(node: Node) -> Sequence[Node]:
    return node.parts if isinstance(node, Union) else (as_interval(node) or node,)


def _ends(node: Node) -> Node:
    """2 = x + y = 5 is x + y = 5; two equal numbers with a sign between them are the last."""
    if isinstance(node, Relation) and set(node.signs) == {"="}:
        if len(node.sides) > 2:
            node = Relation((node.sides[0], node.sides[-1]), ("=",))
        first, last = node.sides
        if isinstance(first, Value) and isinstance(last, Value) and first.tree and not formula.names(first.tree):
            if last.tree is None or not formula.names(last.tree):
                return last
    return node


def _same_relation(gold: Node, given: Node) -> bool:
    """Two relations say the same; or one names a value, x = 5, and the other is that value; or it is an interval."""
    if isinstance(gold, Relation) and isinstance(given, Relation):
        names = [assigned(gold), assigned(given)]
        if names[0] is not None and names[1] is not None:
            return (names[0][0] == names[1][0] and _same(names[0][1], names[1][1])) or _proportional(gold, given)
        intervals = [as_interval(gold), as_interval(given)]
        if intervals[0] is not None and intervals[1] is not None:
            return letter(gold) == letter(given) and _same(intervals[0], intervals[1])
        return _proportional(gold, given)
    relation, other = (gold, given) if isinstance(gold, Relation) else (given, gold)
    assert isinstance(relation, Relation)
    if (named := assigned(relation)) is not None:
        return _same(named[1], other) if relation is gold else _same(other, named[1])
    if (interval := as_interval(relation)) is None:
        return False
    return _same_several(other, interval) if isinstance(other, Several) else _matched(_pieces(interval), _pieces(other))


def _proportional(gold: Relation, given: Relation) -> bool:
    """Is one relation the other times a constant, positive or with its sign turned round?"""
    if len(gold.signs) != 1 or len(given.signs) != 1:
        is_alike = gold.signs == given.signs and len(gold.sides) == len(given.sides)
        return is_alike and all(map(_same, gold.sides, given.sides))
    trees = []
    for relation in (gold, given):
        if not all(isinstance(side, Value) and side.tree is not None for side in relation.sides):
            return gold.signs == given.signs and all(map(_same, gold.sides, given.sides))
        trees.append(("-", *(side.tree for side in relation.sides if isinstance(side, Value))))
    letters = formula.names(trees[0])
    if letters != formula.names(trees[1]):
        return False
    ratios = []
    for number in range(PROBES):
        pair = at_probe(number, letters, *trees)
        if pair is not None and pair[0] != 0:
            ratios.append(pair[1] / pair[0])
    if len(ratios) < 2 or ratios[0] == 0:
        return False
    if all(near(ratio, ratios[0], 0.0) for ratio in ratios):
        sign = gold.signs[0]
        return given.signs[0] == (sign if not hasattr(ratios[0], "imag") or ratios[0].real > 0 else FLIPPED.get(sign, sign))
    is_equation = gold.signs == given.signs == ("=",)
    return is_equation and by_math_verify(*(f"{side[0].latex}={side[1].latex}" for side in (gold.sides, given.sides)))  # type: ignore[union-attr]


def _same_time(gold: Time, given: Time) -> bool:
    """Equal; am or pm may be left out on one side, and pm may be written in 24 hours."""
    if gold.half and given.half:
        return gold == given
    later = [time.minutes + 720 if time.half == "p" else time.minutes for time in (gold, given)]
    return (
        gold.minutes == given.minutes
        or later[0] == later[1]
        or (gold.minutes - given.minutes) % 720 == 0
        and not gold.half == given.half == ""
    )


def _same_ratio(gold: Node, given: Node) -> bool:
    """3:4 is 6:8, and the fraction 3/4."""
    if isinstance(gold, Ratio) and isinstance(given, Ratio) and len(gold.parts) != len(given.parts):
        return False
    quotients = []
    for node in (gold, given):
        if isinstance(node, Ratio):
            if not all(isinstance(part, Value) and part.tree is not None for part in node.parts):
                return gold == given
            trees = [part.tree for part in node.parts if isinstance(part, Value)]
            quotients.append([Value(("/", tree, trees[-1]), "") for tree in trees[:-1]])
        else:
            quotients.append([node] if isinstance(node, Value) else [])
    return len(quotients[0]) == len(quotients[1]) and all(map(same_value, *quotients))
