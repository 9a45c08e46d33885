"""Have two answers the same mathematical value? Plain numbers at once and exactly, everything else by math-verify."""

from __future__ import annotations

import logging
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal, NamedTuple

Verdict = Literal["same", "different", "undecidable", "unreadable gold"]

MAX_CHARACTERS = 1000
"""Longer answers are nobody's answer, and parsers take for ever over them."""

MAX_WORDS = 8
"""A gold answer of more words, beside mathematics, is a text about its answer."""

DIGITS = r"\d{1,3}(?:[, ]\d{3})+|\d+"
PLAIN = re.compile(rf"(?P<sign>[-+]?)(?:(?P<whole>{DIGITS})?(?P<decimals>\.\d+)?(?:[eE](?P<exponent>[-+]?\d{{1,3}}))?)")
RATIO = re.compile(r"(?P<sign>[-+]?)(?:(?P<whole>\d+)\s+)?(?P<top>\d+)\s*/\s*(?P<bottom>\d+)")
PERIODIC = re.compile(r"(?P<sign>[-+]?)(?P<whole>\d*)\.(?P<decimals>\d*)\\overline\{(?P<period>\d+)\}")
SYMBOLS = {"\u2212": "-", "\u2013": "-", "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "π": r"\pi ", "∞": r"\infty ", "°": r"^\circ "}
TRANSLATION = str.maketrans(SYMBOLS)
DELIMITED = re.compile(r"\$|\\\(|\\\[|\\boxed")
BARE_NAMES = {name: rf"\{name} " for name in ("sin", "cos", "tan", "log", "exp", "ln", "pi")}
BARE_NAMES |= {"infinity": r"\infty ", "inf": r"\infty ", "oo": r"\infty ", "sqrt": "sqrt"}
BARE_NAME = re.compile(rf"(?<![a-zA-Z\\])(?:{'|'.join(BARE_NAMES)})(?![a-zA-Z])")
LATEX = re.compile(r"\\(?:text|mathrm|textbf|mbox|operatorname|begin|end)\s*\{[^{}]*\}|\\[a-zA-Z]+")
DRESSING = re.compile(r"\\(?:text|textbf|mathrm|mbox)\s*\{([^{}]*)\}|\$|\\[,;! ]")
PROSE = re.compile(r"[^\W\d_]{2,}")


class Number(NamedTuple):
    """A plain number. ``is_decimal``: written with a decimal point, so that it may be rounded."""

    value: Fraction
    is_decimal: bool


def readable(answer: Any) -> str:
    """A gold answer's text, whatever its type; empty for nothing, and for what is longer than an answer can be."""
    text = "" if answer is None else str(answer).strip()
    return text if len(text) <= MAX_CHARACTERS else ""


def plain_number(text: str) -> Number | None:
    r"""An integer, decimal, simple fraction, mixed number or 0.\overline{3}, thousands separators allowed; None for anything else."""
    text = text.strip()
    for opening, closing in (("$", "$"), (r"\(", r"\)")):
        if len(text) > 2 and text.startswith(opening) and text.endswith(closing):
            text = text[len(opening) : -len(closing)]
    text = text.translate(TRANSLATION).replace("{,}", ",").replace(r"\,", "").replace(r"\!", "").strip().removesuffix(".")
    if len(text) > 100:
        return None
    if (match := PLAIN.fullmatch(text)) and (match["whole"] or match["decimals"]):
        whole = re.sub("[, ]", "", match["whole"] or "0")
        value = Fraction(f"{match['sign']}{whole}{match['decimals'] or ''}") * Fraction(10) ** int(match["exponent"] or 0)
        return Number(value, bool(match["decimals"]))
    if (match := RATIO.fullmatch(text)) and int(match["bottom"]):
        value = int(match["whole"] or 0) + Fraction(int(match["top"]), int(match["bottom"]))
        return Number(-value if match["sign"] == "-" else value, False)
    if match := PERIODIC.fullmatch(text):
        digits, period = match["decimals"], match["period"]
        fixed = Fraction(int(digits or 0), 10 ** len(digits))
        value = int(match["whole"] or 0) + fixed + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(digits))
        return Number(-value if match["sign"] == "-" else value, False)
    return None


def same_number(gold: Number | None, given: Number | None) -> bool:
    """Exactly equal; where one is written as a decimal, equal to six decimals. That is math-verify's rule: 1/3 = 0.333333, not 0.3333."""
    if gold is None or given is None:
        return False
    if gold.is_decimal or given.is_decimal:
        return round(gold.value, 6) == round(given.value, 6)
    return gold.value == given.value


@lru_cache(maxsize=2**16)
def judge(gold: str, given: str) -> Verdict:
    """Compares by math-verify, with its timeouts off (they need signals and the main thread): only call it where it can be killed.

    One comparison takes milliseconds; a verdict is kept, because the samples of a group say the same few things.
    """
    from math_verify import verify

    right = _parse_gold(gold)
    if right is None:
        return "unreadable gold"
    if not given:
        return "different"
    if len(given) > MAX_CHARACTERS:
        return "undecidable"
    if gold == given or (_words(gold) and _words(gold) == _words(given)):
        return "same"
    value = _parse(given)
    if value is None:
        return "undecidable"
    try:
        return "same" if verify(right, value, timeout_seconds=None, raise_on_error=True) else "different"
    except Exception:  # sympy raises anything
        return "undecidable"


def form_problem(gold: str) -> str | None:
    """Why a gold answer is no answer but a text with values in it, of which the last would silently count; None where it is one."""
    num_words = len(PROSE.findall(BARE_NAME.sub(" ", LATEX.sub(" ", gold))))
    if gold.rstrip().endswith("?"):
        return "is a question"
    if "####" in gold:
        return "is a worked solution: the answer is only what follows ####"
    return f"is a text of {num_words} words, not an answer" if num_words > MAX_WORDS else None


def warm_up() -> None:
    """Imports math-verify and builds its tables, which takes most of a second."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    judge(r"\frac{1}{2}", "$x+1$")


@lru_cache(maxsize=4096)
def _parse_gold(text: str) -> Any | None:
    """A gold answer's value; None where it can't be read, or doesn't even equal itself (1/0)."""
    from math_verify import verify

    value = _parse(text)
    return value if value is not None and verify(value, value, timeout_seconds=None) else None


def _parse(text: str) -> Any | None:
    """What math-verify reads in a text, or None. Its last resort, the text itself as a string, is no value."""
    from math_verify import parse

    number = plain_number(text)
    if number is not None:
        import sympy

        value = sympy.Rational(number.value.numerator, number.value.denominator)
        return value.evalf(30) if number.is_decimal else value
    found = parse(_as_latex(text), parsing_timeout=None)
    return next((value for value in found if not isinstance(value, str)), None)


def _as_latex(text: str) -> str:
    """A bare formula between dollar signs, as math-verify wants it (it reads 2x+1 as 2 otherwise); prose stays, and so do dollar signs."""
    text = text.translate(TRANSLATION).strip().removesuffix(".")
    if DELIMITED.search(text.replace(r"\$", "")):
        return text
    formula = re.sub(r",?\s+(?:and|or)\s+", ", ", text)
    formula = re.sub(r"(?<=\d)\s*x\s*(?=10\s*\^)", r"\\times ", formula)
    has_prose = PROSE.search(BARE_NAME.sub(" ", LATEX.sub(" ", formula)))
    return text if has_prose else f"${BARE_NAME.sub(lambda match: BARE_NAMES[match[0]], formula)}$"


def _words(text: str) -> str:
    r"""An answer in words without what dresses it (\text{Evelyn} is evelyn); empty for what is not only words."""
    plain = DRESSING.sub(lambda match: match[1] or " ", text).strip(" .").casefold()
    return " ".join(plain.split()) if re.fullmatch(r"[^\W\d_]+(?:[\s'-]+[^\W\d_]+)*", plain) else ""
