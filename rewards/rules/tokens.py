"""What are the words, names, numbers and signs of an answer? Letters side by side are a word where they read as one, and a product else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from rewards.rules.units import UNITS

Kind = Literal["number", "name", "word", "command", "sign"]

FUNCTIONS = {"sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log", "ln", "lg", "exp"}
FUNCTIONS |= {"sqrt", "gcd", "lcm", "max", "min", "asin", "acos", "atan", "abs", "det"}
SPELT = {"pi": "pi", "infinity": "infty", "inf": "infty", "oo": "infty"} | dict.fromkeys(("theta", "alpha", "beta", "gamma"))
ROMAN = (
    "text",
    "textbf",
    "textit",
    "textrm",
    "textsf",
    "mathrm",
    "mbox",
    "rm",
    "mathsf",
    "mathit",
    "operatorname",
    "operatorname*",
    "hbox",
)
ACCENTS = ("mathbf", "boldsymbol", "vec", "hat", "bm", "overrightarrow", "pmb")
NAMED = ("mathbb", "mathcal", "overline", "bar", "tilde", "dot", "underline")
SHORT_WORDS = frozenset(
    "a am an and any are as at be but by can did do for go has he her his i if in is it its let me may my no nor not now of off on one or "
    "our out she so than the then they to too two up us we who yes you all odd non per".split()
)
UNREADABLE = frozenset(("nan", "none", "null", "undefined", "n/a"))

TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<number>\d+(?:\.\d+)?(?:[eE][-+]?\d+(?![\d.a-zA-Z]))?|\.\d+(?:[eE][-+]?\d+)?)"
    r"|\\(?P<command>[a-zA-Z]+\*?|.)|(?P<letters>[^\W\d_]+)|(?P<sign>\S)",
    re.DOTALL,
)
DIGIT_GROUPS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])|(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d ]*\d)")
MATHEMATICS = re.compile(r"(?<!\\)\$\$(.+?)\$\$|(?<!\\)\$(.+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]")
PRICES = re.compile(r"[^$]*(?:(?<!\\)\$\s?\d[^$]*)+")


class Token(NamedTuple):
    """``is_spaced``: white space stands before it. ``is_roman``: it came out of \\text{...} or the like."""

    kind: Kind
    text: str
    is_spaced: bool = False
    is_roman: bool = False


def tokens(text: str) -> list[Token]:
    """Of a text without dressing (see normalize.undressed). Formulas may stand between dollar signs or not."""
    if PRICES.fullmatch(text):
        text = text.replace("$", r"\$")
    if re.search(r"\$\s*(?:and|or|,|;)\s*\$", text) and not text.startswith("$"):
        text = text.replace("$", " ")  # of "$2$ and $3$" a box may hold the middle
    found: list[Token] = []
    at = 0
    for match in MATHEMATICS.finditer(text):
        found += _bare(text[at : match.start()], is_prose=True)
        found += _bare(" " + next(inside for inside in match.groups() if inside is not None), is_prose=False)
        at = match.end()
    return found + _bare((" " if at else "") + text[at:].replace("$$", ""), is_prose=True)


def _bare(text: str, is_prose: bool) -> list[Token]:
    """``is_prose``: letters side by side may be words; between dollar signs they are products."""
    text = _joined(text)
    found: list[Token] = []
    at, is_spaced = 0, False
    while match := TOKEN.match(text, at):
        at = match.end()
        if match["space"]:
            is_spaced = True
            continue
        if match["number"]:
            found.append(Token("number", match["number"], is_spaced))
        elif match["letters"]:
            rest = text[at : at + 8]
            found += _letters(match["letters"], is_spaced, found[-1] if found else None, rest, is_prose)
        elif name := match["command"]:
            content, end = _content(text, at)
            if name in ROMAN and content is not None:
                found += _roman(content, is_spaced, found[-1] if found else None)
                at = end
            elif name in ACCENTS and content is not None:
                found += _bare((" " if is_spaced else "") + content, is_prose=False)
                at = end
            elif name in NAMED and content is not None:
                found.append(Token("name", f"{name} {content}", is_spaced))
                at = end
            elif name in ("circ", "degree") and (name == "degree" or _is_raised(found)):
                at = _drop_raising(found, text, at)
                found.append(Token("word", "degree", False, True))
            else:
                found.append(Token("command", {"tfrac": "frac", "leq": "le", "geq": "ge", "neq": "ne"}.get(name, name), is_spaced))
        else:
            found.append(Token("sign", match["sign"], is_spaced))
        is_spaced = False
    return found


def _joined(text: str) -> str:
    """Digits in groups of three become one number, outside of brackets, where a comma may part numbers."""
    text = re.sub(r"(?<![a-zA-Z])(?:np|numpy|math|sympy)\.(?=[a-z])", "", text).replace("**", "^")

    def join(match: re.Match[str]) -> str:
        before = text[: match.start()]
        is_inside = any(before.count(opening) > before.count(closing) for opening, closing in ("()", "[]"))
        return match[0] if is_inside else re.sub("[, ]", "", match[0])

    return DIGIT_GROUPS.sub(join, text)


def _content(text: str, at: int) -> tuple[str | None, int]:
    """The inside of the braces that open at ``at``, and where they end."""
    while at < len(text) and text[at] == " ":
        at += 1
    if at >= len(text) or text[at] != "{":
        return None, at
    depth = 0
    for end in range(at, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[at + 1 : end], end + 1
    return None, at


def _roman(content: str, is_spaced: bool, before: Token | None) -> list[Token]:
    """Words, whatever their length; but i and e are numbers, and a letter that stands in a formula is its name."""
    content = content.replace("~", " ").strip()
    if content in FUNCTIONS:
        return [Token("command", content, is_spaced)]
    if content in ("i", "e"):
        return [Token("name", content, is_spaced)]
    found = []
    for match in TOKEN.finditer(content):
        if match["letters"]:
            found.append(Token("word", match["letters"], True, True))
        elif match["number"]:
            found.append(Token("number", match["number"], True, True))
        elif not match["space"]:
            found.append(Token("sign" if match["sign"] else "command", match["sign"] or match["command"], False, True))
    return found


def _letters(run: str, is_spaced: bool, before: Token | None, rest: str, is_prose: bool) -> list[Token]:
    if run in FUNCTIONS or run in SPELT:
        return [Token("command", SPELT.get(run) or run, is_spaced)]
    if len(run) == 1:
        return [Token("name", run, is_spaced)]
    if _is_word(run, is_spaced, before, rest, is_prose):
        return [Token("word", run, is_spaced)]
    return [Token("name", letter, is_spaced and not number) for number, letter in enumerate(run)]


def _is_word(run: str, is_spaced: bool, before: Token | None, rest: str, is_prose: bool) -> bool:
    """Can these letters not be a product?"""
    if not run.isascii() or run.casefold() in UNREADABLE or run in ("and", "or"):
        return True
    ends_operand = before is not None and (before.kind in ("number", "name") or before.text in (")", "}", "]", "%"))
    is_open = not rest.strip() or rest[0] in " .,;^/)" or rest[:2] == "\\ "
    if not is_prose:
        return len(run) > 3 and not run.isupper() and run.islower() and ends_operand and run in UNITS
    if ends_operand and is_open and (run in UNITS or run.casefold() in UNITS and len(run) > 2):
        return True
    if run.isupper():
        return len(run) > 6
    follows_sign = before is not None and before.kind in ("sign", "command") and before.text not in (",", ";", ":", ".")
    is_glued = (before is not None and not is_spaced and before.kind != "sign") or rest[:1] in ("^", "_", "+", "*", "/", "(")
    if run.casefold() in SHORT_WORDS:
        return not (follows_sign or is_glued) and (before is not None or rest[:1] == " ")
    if len(run) > 3:
        return not is_glued or len(run) > 4
    if is_glued or follows_sign:
        return False
    has_vowel = any(letter in "aeiouy" for letter in run.casefold())
    return len(run) == 3 and has_vowel and (is_spaced and before is not None or rest[:1] == " " and rest[1:2].isalpha())


def _is_raised(found: list[Token]) -> bool:
    return bool(found) and (found[-1].text == "^" or (found[-1].text == "{" and len(found) > 1 and found[-2].text == "^"))


def _drop_raising(found: list[Token], text: str, at: int) -> int:
    r"""Takes away ^ or ^{ before a degree sign, and returns where what follows it goes on; ^\circ C is one unit."""
    if found and found[-1].text == "{":
        found.pop()
        at = text.index("}", at) + 1 if "}" in text[at:] else at
    if found and found[-1].text == "^":
        found.pop()
    return at


def as_latex(found: Sequence[Token]) -> str:
    r"""The tokens as LaTeX: for math-verify, which reads letters side by side as a product."""
    written = []
    for token, following in zip(found, [*found[1:], None], strict=True):
        if token.kind == "command":
            written.append(f"\\{token.text}" + (" " if token.text.isalpha() and following and following.kind == "name" else ""))
        elif token.kind == "word":
            written.append(f"\\text{{{token.text}}}")
        else:
            written.append("\\{}{{{}}}".format(*token.text.split(" ", 1)) if " " in token.text else token.text)
    return re.sub(r"\\(begin|end)\{\\text\{(\w+)\}\}", r"\\\1{\2}", "".join(written)).strip()
