"""What does a formula mean as a number? Its tree, and the tree's value for given values of its letters."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from math import factorial
from typing import Any

from rewards.rules.tokens import FUNCTIONS, Token

Tree = tuple
"""("number", text), ("name", text), or an operation and its trees."""

DIGITS = 50
ROUNDING = 1e-45
"""Of 50 digits these are what rounding leaves."""
MAX_TERMS = 10_000
MAX_FACTORIAL, MAX_BITS = 3000, 200_000
"""Of what is computed exactly: larger numbers are compared by their first digits."""
FAMILIAR = {"frac": 2, "binom": 2, "dbinom": 2, "tbinom": 2}
INVERSE = {"sin": "asin", "cos": "acos", "tan": "atan", "arcsin": "asin", "arccos": "acos", "arctan": "atan"}
CONSTANTS = {"pi", "e", "infty", "i"}
TRIGONOMETRIC = {"sin", "cos", "tan", "cot", "sec", "csc"}
NOT_NAMES = frozenset(
    "frac sqrt binom sum prod int lim begin end ldots cdot times div pm mp le ge lt gt ne in cup cap to rightarrow mid left right lfloor rfloor "
    "lceil rceil langle rangle approx equiv sim oint iint partial nabla bmod pmod mod not forall exists setminus emptyset varnothing perp "
    "parallel subset subseteq notin overline underbrace overbrace implies Rightarrow therefore because wedge vee neg colon infty".split()
)


class Unparsable(Exception):
    """This is no formula."""


class NeedsAlgebra(Unparsable):
    """This may be a formula, an integral, say, that only a computer algebra system knows."""


def parse(tokens: Sequence[Token]) -> Tree:
    """The tree of a formula; Unparsable, or NeedsAlgebra, where there is none."""
    reader = _Reader(tokens)
    try:
        tree = reader.sum_()
    except RecursionError:
        raise Unparsable("nested too deeply") from None
    if reader.at < len(tokens):
        rest = tokens[reader.at]
        raise (NeedsAlgebra if rest.kind == "command" and rest.text.isalpha() else Unparsable)(f"{rest.text!r} can't be read here")
    return tree


class _Reader:
    """Recursive descent over tokens: sum, product, power, operand."""

    def __init__(self, tokens: Sequence[Token]):
        self.tokens, self.at = tokens, 0
        self.num_bars = self.num_angles = 0

    def peek(self) -> Token:
        return self.tokens[self.at] if self.at < len(self.tokens) else Token("sign", "")

    def takes(self, *texts: str) -> bool:
        if self.peek().text in texts and self.peek().kind in ("sign", "command"):
            self.at += 1
            return True
        return False

    def needs(self, text: str) -> None:
        if not self.takes(text):
            raise Unparsable(f"{text!r} is missing")

    def sum_(self) -> Tree:
        tree = self.product()
        while self.peek().text in ("+", "-") and self.peek().kind == "sign":
            operation = self.peek().text
            self.at += 1
            tree = (operation, tree, self.product())
        return tree

    def product(self) -> Tree:
        tree = self.signed()
        while True:
            if self.takes("*", "times", "cdot"):
                tree = ("*", tree, self.signed())
            elif self.takes("/", "div"):
                tree = ("/", tree, self.signed())
            else:
                return tree

    def signed(self) -> Tree:
        if self.takes("-"):
            return ("neg", self.signed())
        if self.takes("+"):
            return self.signed()
        tree = self.power()
        while self.begins_operand():
            before, mark = self.tokens[self.at - 1], self.peek()
            if before.kind == mark.kind == "number":
                raise Unparsable("two numbers side by side")
            factor = self.power()
            tree = ("+", tree, factor) if _is_mixed(tree, factor, before) else ("*", tree, factor)
            if mark.kind == "number" and before.kind != "number" and tree[0] == "*" and before.text not in (")", "}", "]", "|"):
                raise Unparsable("a number after a letter")
        return tree

    def begins_operand(self) -> bool:
        token = self.peek()
        if token.kind in ("number", "name"):
            return True
        if token.kind == "sign":
            return token.text in ("(", "[", "{") or (token.text == "|" and not self.num_bars)
        if token.kind == "command":
            known = token.text in FUNCTIONS or token.text in FAMILIAR or token.text in ("lfloor", "lceil", "{", "sum", "prod", "infty")
            return known or (token.text not in NOT_NAMES and token.text.isalpha())
        return False

    def power(self) -> Tree:
        tree = self.operand()
        while True:
            if self.takes("^"):
                if self.takes("prime"):
                    raise NeedsAlgebra("a derivative")
                tree = ("^", tree, self.argument(is_power=True))
            elif self.takes("!"):
                tree = ("!", tree)
            elif self.peek().kind == "word" and self.peek().text == "degree":
                self.at += 1
                tree = ("/", ("*", tree, ("name", "pi")), ("number", "180"))
            else:
                return tree

    def argument(self, is_power: bool = False) -> Tree:
        """What a command takes: braces, or a single digit or letter."""
        if self.takes("{"):
            tree = self.sum_()
            self.needs("}")
            return tree
        token = self.peek()
        if is_power and token.text in ("-", "("):
            return ("neg", self.argument(True)) if self.takes("-") else self.operand()
        if token.kind == "number" and len(token.text) > 1 and not is_power:
            if not token.text.isdigit():
                raise Unparsable("an argument without braces")
            rest = Token("number", token.text[1:])
            self.tokens = [*self.tokens[: self.at], Token("number", token.text[0]), rest, *self.tokens[self.at + 1 :]]
        return self.operand()

    def operand(self) -> Tree:
        token = self.peek()
        self.at += 1
        if token.kind == "number":
            return ("number", token.text)
        if token.kind == "name":
            return self.name(token.text)
        for opening, closing in (("(", ")"), ("[", "]"), ("{", "}")):
            if token.text == opening and token.kind in ("sign", "command"):
                bars, self.num_bars = self.num_bars, 0
                tree = self.sum_()
                self.num_bars = bars
                self.needs(closing)
                return tree
        if token.text in ("|", "lvert") and token.kind in ("sign", "command"):
            self.num_bars += 1
            tree = ("abs", self.sum_())
            self.num_bars -= 1
            if not self.takes("|", "rvert"):
                raise Unparsable("a bar that doesn't close")
            return tree
        if token.kind == "command":
            return self.command(token.text)
        raise Unparsable(f"{token.text!r} can't be read here")

    def name(self, text: str) -> Tree:
        if self.takes("_"):
            text += "_" + self.subscript()
        while self.takes("'"):
            text += "'"
        return ("name", text)

    def subscript(self) -> str:
        if not self.takes("{"):
            self.at += 1
            if self.at > len(self.tokens):
                raise Unparsable("a subscript is missing")
            return self.tokens[self.at - 1].text
        start, depth = self.at, 1
        while depth and self.at < len(self.tokens):
            depth += {"{": 1, "}": -1}.get(self.peek().text, 0) if self.peek().kind == "sign" else 0
            self.at += 1
        return "".join(token.text for token in self.tokens[start : self.at - 1])

    def command(self, name: str) -> Tree:
        if name in FAMILIAR:
            return ("binom" if "binom" in name else "/", self.argument(), self.argument())
        if name == "sqrt":
            degree: Tree = ("number", "2")
            if self.takes("["):
                degree = self.sum_()
                self.needs("]")
            return ("root", self.operand() if self.peek().text in ("(", "|") else self.argument(), degree)
        if name in ("lfloor", "lceil"):
            tree = (name[1:], self.sum_())
            self.needs("r" + name[1:])
            return tree
        if name in ("sum", "prod"):
            return self.series(name)
        if name in FUNCTIONS:
            return self.function(name)
        if name in NOT_NAMES and name != "infty" or not name.isalpha():
            raise NeedsAlgebra(f"\\{name}")
        return self.name(name)

    def series(self, name: str) -> Tree:
        self.needs("_")
        self.needs("{")
        index = self.operand()
        self.needs("=")
        first = self.sum_()
        self.needs("}")
        self.needs("^")
        return (name, index, first, self.argument(is_power=True), self.product())

    def function(self, name: str) -> Tree:
        base: Tree | None = None
        exponent: Tree | None = None
        if self.takes("_"):
            base = self.argument()
        if self.takes("^"):
            exponent = self.argument(is_power=True)
        if name in ("max", "min", "gcd", "lcm"):
            self.needs("(")
            arguments = [self.sum_()]
            while self.takes(","):
                arguments.append(self.sum_())
            self.needs(")")
            return (name, *arguments)
        if self.peek().text in ("(", "{", "[") and self.peek().kind == "sign":
            argument = self.power()
        else:
            argument = self.power()
            while self.begins_operand() and self.peek().text not in FUNCTIONS and self.peek().text not in ("(", "["):
                argument = ("*", argument, self.power())
        if exponent == ("neg", ("number", "1")) and name in INVERSE:
            return (INVERSE[name], argument)
        tree: Tree = ("log", argument, base) if base is not None and name in ("log", "lg") else (INVERSE.get(name, name), argument)
        if name in ("sin", "cos", "tan"):
            tree = (name, argument)
        return tree if exponent is None else ("^", tree, exponent)


def _is_mixed(whole: Tree, fraction: Tree, before: Token) -> bool:
    r"""1\frac{1}{2} is three halves."""
    if whole[0] != "number" or fraction[0] != "/" or not whole[1].isdigit() or before.kind != "number":
        return False
    top, bottom = fraction[1:]
    is_plain = top[0] == bottom[0] == "number" and top[1].isdigit() and bottom[1].isdigit()
    return is_plain and 0 < int(top[1]) < int(bottom[1])


def names(tree: Tree) -> frozenset[str]:
    """The letters whose values aren't given."""
    found, waiting = set(), [tree]
    while waiting:
        node = waiting.pop()
        if node[0] == "name":
            if node[1] not in CONSTANTS:
                found.add(node[1])
        elif node[0] != "number":
            waiting += node[1:]
    return frozenset(found)


@lru_cache(maxsize=1)
def _arithmetic() -> Any:
    """mpmath with a precision of its own, so that nobody else's changes."""
    import mpmath

    context = mpmath.MPContext()
    context.dps = DIGITS
    return context


def point(name: str, number: int) -> Any:
    """The value of a letter at probe ``number``, the same in all formulas; at even probes it is positive."""
    mp = _arithmetic()
    value = mp.mpf(zlib.crc32(f"{name} {number}".encode()) % 1_000_003 + 1) / 400_000 + mp.mpf(1) / 7
    is_negative = number % 2 == 1 and zlib.crc32(f"{number} {name}".encode()) % 2
    return -value if is_negative else value


def value(tree: Tree, letters: Mapping[str, Any]) -> Any:
    """The value of a formula, real or complex; ArithmeticError or ValueError where there is none, or it is out of reach."""
    mp = _arithmetic()
    kind = tree[0]
    if kind == "number":
        return mp.mpf(tree[1])
    if kind == "name":
        constant = {"pi": mp.pi, "e": mp.e, "infty": mp.inf, "i": mp.j}.get(tree[1])
        return letters[tree[1]] if constant is None else +constant
    if kind in ("sum", "prod"):
        return _series(tree, letters)
    return _OPERATIONS[kind](mp, *[value(each, letters) for each in tree[1:]])


def exact(tree: Tree) -> Fraction | None:
    """The value of whole numbers, decimals and fractions, however large: 2^100 is not 2^100 - 1. None for what has none, or none in reach."""
    kind, *inside = tree
    if kind == "number":
        return Fraction(tree[1])
    if kind not in ("+", "-", "*", "/", "neg", "^", "!"):
        return None
    values = [exact(each) for each in inside]
    if None in values:
        return None
    one, other = values[0], values[-1]
    assert one is not None and other is not None
    match kind:
        case "neg":
            return -one
        case "+":
            return one + other
        case "-":
            return one - other
        case "*":
            return one * other
        case "/":
            return one / other if other else None
        case "!":
            return Fraction(factorial(int(one))) if one.denominator == 1 and 0 <= one <= MAX_FACTORIAL else None
    bits = max(one.numerator.bit_length(), one.denominator.bit_length())
    is_in_reach = other.denominator == 1 and abs(other) * bits <= MAX_BITS and (one or other > 0)
    return one ** int(other) if is_in_reach else None


def _unless_cancelled(mp: Any, result: Any, *terms: Any) -> Any:
    """0 where all digits but those of rounding cancel: the square root of 8, less twice that of 2."""
    is_rounding = abs(result) < ROUNDING * max(map(abs, terms))
    return mp.mpf(0) if is_rounding else result


def _series(tree: Tree, letters: Mapping[str, Any]) -> Any:
    mp = _arithmetic()
    kind, index, first, last, term = tree
    begin, end = value(first, letters), value(last, letters)
    if index[0] != "name" or not (mp.isint(begin) and mp.isint(end)) or end - begin > MAX_TERMS:
        raise ValueError("a series of too many terms")
    total = mp.mpf(kind == "prod")
    for k in range(int(begin), int(end) + 1):
        each = value(term, {**letters, index[1]: mp.mpf(k)})
        total = total * each if kind == "prod" else total + each
    return total


def _power(mp: Any, base: Any, exponent: Any) -> Any:
    if base and mp.isint(exponent) and abs(exponent) <= 1000:
        return base ** int(exponent.real)
    if abs(exponent) > 10**6 and not mp.isinf(exponent) or abs(exponent) * abs(mp.log(abs(base) or 1)) > 10**7:
        raise ValueError("a power out of reach")
    if base == 0 and mp.re(exponent) < 0:
        raise ZeroDivisionError
    return mp.power(base, exponent)


def _root(mp: Any, base: Any, degree: Any) -> Any:
    if mp.im(base) == 0 and mp.re(base) < 0 and mp.isint(degree) and int(degree) % 2:
        return -mp.power(-base, 1 / degree)
    return mp.power(base, 1 / degree)


def _factorial(mp: Any, of: Any) -> Any:
    if abs(of) > 10**9:
        raise ValueError("a factorial out of reach")
    return mp.gamma(of + 1)


def _integers(mp: Any, *values: Any) -> list[int]:
    if not all(mp.isint(each) and abs(each) < mp.mpf(10) ** DIGITS for each in values):
        raise ValueError("no integer")
    return [int(each) for each in values]


def _folded(name: str) -> Any:
    import math

    return lambda mp, *values: mp.mpf(getattr(math, name)(*_integers(mp, *values)))


_OPERATIONS: dict[str, Any] = {
    "+": lambda mp, a, b: _unless_cancelled(mp, a + b, a, b),
    "-": lambda mp, a, b: _unless_cancelled(mp, a - b, a, b),
    "*": lambda mp, a, b: a * b,
    "/": lambda mp, a, b: a / b,
    "neg": lambda mp, a: -a,
    "^": _power,
    "root": _root,
    "!": _factorial,
    "binom": lambda mp, n, k: mp.binomial(n, k),
    "abs": lambda mp, a: abs(a),
    "floor": lambda mp, a: mp.floor(a),
    "ceil": lambda mp, a: mp.ceil(a),
    "log": lambda mp, a, base=10: mp.log(a) / mp.log(base),
    "lg": lambda mp, a: mp.log(a) / mp.log(10),
    "ln": lambda mp, a: mp.log(a),
    "exp": lambda mp, a: mp.exp(a),
    "gcd": _folded("gcd"),
    "lcm": _folded("lcm"),
    "max": lambda mp, *values: max(values),
    "min": lambda mp, *values: min(values),
    **{name: (lambda mp, a, name=name: _unless_cancelled(mp, getattr(mp, name)(a), a)) for name in ("sin", "cos", "tan", "cot")},
    **{name: (lambda mp, a, name=name: getattr(mp, name)(a)) for name in ("sec", "csc", "sinh", "cosh", "tanh")},
    **{name: (lambda mp, a, name=name: getattr(mp, name)(a)) for name in ("asin", "acos", "atan")},
}
