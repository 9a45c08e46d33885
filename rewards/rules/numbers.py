"""Is a text one plain number, and are two of them equal? Exactly, with fractions; no library is needed."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from rewards.rules.normalize import one_line_of_mathematics

SIMPLE = re.compile(r"-?[0-9]{1,50}(?:\.[0-9]{1,50})?")
DIGITS = r"\d{1,3}(?:[, ]\d{3})+|\d+"
PLAIN = re.compile(rf"(?P<sign>[-+]?)\s?(?:(?P<whole>{DIGITS})?(?:\.(?P<decimals>\d+))?(?:[eE](?P<exponent>[-+]?\d{{1,3}}))?)")
RATIO = re.compile(r"(?P<sign>[-+]?)\s?(?:(?P<whole>\d+)\s+)?(?P<top>\d+)\s*/\s*(?P<bottom>\d+)")
FRACTION = re.compile(
    r"(?P<sign>[-+]?)\s?(?P<whole>\d+)?\s*\\frac\s*(?:\{(?P<top>-?\d+)\}|(?P<one>\d))\s*(?:\{(?P<bottom>\d+)\}|(?P<other>\d))"
)
TEN = r"(?:\\times|\\cdot|\*|x)\s*10"
POWER_OF_TEN = re.compile(rf"(?P<number>.+?)\s*{TEN}\s*\^\s*(?:\{{\s*(?P<braced>[-+]?\d{{1,3}})\s*\}}|\(?(?P<bare>[-+]?\d{{1,3}})\)?)")
PERIODIC = re.compile(
    r"(?P<sign>[-+]?)\s?(?P<whole>\d*)\.(?P<decimals>\d*)"
    r"(?:\\overline\{(?P<bar>\d+)\}|\((?P<round>\d+)\)(?:\.{3})?|(?P<dots>\\dot\{?\d\}?(?:\d*\\dot\{?\d\}?)?))"
)
MIN_DIGITS = 6
"""A decimal with fewer significant digits is itself, not what something was rounded to: 0.333333 is 1/3, and 0.3333 is not."""
NOISE = Fraction(1, 10**10)
"""What binary arithmetic leaves behind: 0.30000000000000004 is 0.3."""


class Number(NamedTuple):
    """A plain number. ``last_digit``: what one step of its last digit is worth, where it has a decimal point or an exponent (else 0)."""

    value: Fraction
    last_digit: Fraction = Fraction(0)
    is_percent: bool = False

    @property
    def rounded_by(self) -> Fraction:
        """How far the value may be that it was rounded from: half a step of the last digit, where it has enough of them."""
        is_enough = abs(self.value) >= self.last_digit * 10 ** (MIN_DIGITS - 1)
        return self.last_digit / 2 if is_enough else Fraction(0)


def plain_number(text: str) -> Number | None:
    r"""An integer, decimal, fraction, mixed or periodic number, percentage, or power of ten, separators allowed; None for anything else."""
    if len(text) > 200 or not any(map(str.isdigit, text)):
        return None
    if SIMPLE.fullmatch(text):  # nearly all there are
        return _number(text)
    text = one_line_of_mathematics(text)
    if len(text) > 100:
        return None
    number = _number(text.removesuffix("%").strip())
    return number._replace(is_percent=True) if number is not None and text.endswith("%") else number


def same_number(gold: Number | None, given: Number | None) -> bool:
    """Equal as fractions, or a decimal of six significant digits or more and what rounds to it. A percentage is also its number: 50% is
    1/2 and 50."""
    if gold is None or given is None:
        return False
    if gold.is_percent != given.is_percent:
        percentage, other = (gold, given) if gold.is_percent else (given, gold)
        as_share = Number(percentage.value / 100, percentage.last_digit / 100)
        return close(percentage, other) or close(as_share, other)
    return close(gold, given)


def close(one: Number, other: Number) -> bool:
    """Equal, or equal as far as the one with fewer digits says."""
    distance = abs(one.value - other.value)
    if distance == 0:
        return True
    if not (one.last_digit or other.last_digit):
        return False
    return distance <= max(one.rounded_by, other.rounded_by, NOISE * max(abs(one.value), abs(other.value)))


def _number(text: str) -> Number | None:
    if (match := POWER_OF_TEN.fullmatch(text)) and (number := _number(match["number"].strip())):
        scale = Fraction(10) ** int(match["braced"] or match["bare"])
        return Number(number.value * scale, number.last_digit * scale)
    if (match := PLAIN.fullmatch(text)) and (match["whole"] or match["decimals"]):
        whole, decimals = re.sub("[, ]", "", match["whole"] or "0"), match["decimals"] or ""
        scale = Fraction(10) ** int(match["exponent"] or 0)
        is_exact = match["decimals"] is None and match["exponent"] is None
        last_digit = Fraction(0) if is_exact else scale / 10 ** len(decimals)
        return Number(_signed(match, Fraction(f"{whole}.{decimals or 0}") * scale), last_digit)
    if (match := RATIO.fullmatch(text)) and int(match["bottom"]):
        return Number(_signed(match, int(match["whole"] or 0) + Fraction(int(match["top"]), int(match["bottom"]))))
    if match := FRACTION.fullmatch(text):
        top, bottom = int(match["top"] or match["one"]), int(match["bottom"] or match["other"])
        if bottom and (match["whole"] is None or 0 <= top < bottom):  # 2\frac{5}{3} is a product
            return Number(_signed(match, int(match["whole"] or 0) + Fraction(top, bottom)))
    if match := PERIODIC.fullmatch(text):
        fixed = match["decimals"]
        period = match["bar"] or match["round"] or re.sub(r"\D", "", match["dots"])
        value = int(match["whole"] or 0) + Fraction(int(fixed or 0), 10 ** len(fixed))
        return Number(_signed(match, value + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))))
    return None


def _signed(match: re.Match[str], value: Fraction) -> Fraction:
    return -value if match["sign"] == "-" else value
