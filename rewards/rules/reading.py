"""What kind of answer is a text: a value, words, a list, a set, an interval, a relation, a time? And what are its parts?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from rewards.rules import formula
from rewards.rules.answers import Bracketed, InBase, NoAnswer, Node, Ratio, Relation, Several, Table, Time, Union, Value, Words
from rewards.rules.formula import Tree, Unparsable
from rewards.rules.normalize import lost_backslash, one_line_of_mathematics, undressed
from rewards.rules.numbers import plain_number
from rewards.rules.tokens import UNREADABLE, Token, as_latex, tokens
from rewards.rules.units import CURRENCIES, UNITS, unit_of

REFUSALS = frozenset(
    "not never neither nor except excluding unless anything cannot can't isn't aren't doesn't don't won't wrong incorrect false unknown maybe "
    "perhaps possibly probably might guess unsure uncertain".split()
)
"""A sentence with one of these says what isn't, or doesn't commit itself."""
BOUNDS = (
    "at least",
    "at most",
    "more than",
    "less than",
    "fewer than",
    "greater than",
    "other than",
    "up to",
    "could be",
    "may be",
    "no more",
)
VERBS = frozenset(("is", "are", "equals", "equal", "be", "becomes", "was", "were", "gives", "yields", "get", "obtain", "have", "has"))
JOINING = frozenset(("and", "or", "und", "oder", "和", "或", "或者"))
FILLER = frozenset(("either", "both", "respectively", "only", "exactly", "approximately", "about", "roughly", "hence", "thus", "so"))
SIGNS = {"=": "=", "<": "<", ">": ">", "lt": "<", "gt": ">", "le": "<=", "ge": ">=", "ne": "!=", "in": "in", "approx": "~", "equiv": "=="}
SIGNS |= {"leqslant": "<=", "geqslant": ">=", "≡": "=="}
OPENING = {
    "(": ")",
    "[": "]",
    "{": "}",
    "\\{": "\\}",
    "langle": "rangle",
    "lvert": "rvert",
    "lfloor": "rfloor",
    "lceil": "rceil",
    "begin": "end",
}
CLOSING = frozenset(OPENING.values())
TIME = re.compile(r"(\d{1,2}):([0-5]\d)(?:\s*(?:\\(?:text|mathrm)\{)?[\s~]*([aApP])\.?\s*[mM]\.?\s*\}?)?")
IN_BASE = re.compile(r"([0-9A-Z]+)_(?:\{?(?:\\text\{)?(\d{1,2}|two|three|four|five|six|seven|eight|nine|ten|twelve|sixteen)\}?\}?)")
BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
BASES |= {"twelve": "12", "sixteen": "16"}
TABLES = frozenset(("matrix", "pmatrix", "bmatrix", "Bmatrix", "array", "smallmatrix"))
SOLUTION_MARKS = re.compile(r"^(?:.*\n)?####\s*")
SAYS_ANSWER = re.compile(
    r"(?:(?:so|thus|hence|therefore|then),? )?(?:(?:the|my) )?(?:(?:final|correct) )?answer(?: is:?| ?[:=]) *(.+)", re.I
)
WORDS_ONLY = re.compile(r"[^\W\d_]+(?:[\s'-]+[^\W\d_]+)*")


@lru_cache(maxsize=8192)
def read(text: str) -> Node:
    """The answer that a text gives; NoAnswer where it gives none."""
    if (what := lost_backslash(text)) is not None:
        raise NoAnswer(f"a backslash was lost: {what} stands there as one control character")
    text = undressed(SOLUTION_MARKS.sub("", text))
    if not text or text.casefold() in UNREADABLE:
        raise NoAnswer("there is nothing to read")
    if (number := plain_number(text)) is not None:
        return Value(("number", str(number.value)), text, number)
    if match := SAYS_ANSWER.fullmatch(text):
        return read(match[1])
    bare = one_line_of_mathematics(text)
    if (match := TIME.fullmatch(bare)) and int(match[1]) < 24:
        return Time(int(match[1]) % 12 * 60 + int(match[2]) if match[3] else int(match[1]) * 60 + int(match[2]), (match[3] or "").lower())
    if match := IN_BASE.fullmatch(bare.replace(" ", "")):
        return InBase(match[1], BASES.get(match[2], match[2]))
    found = _stripped(tokens(text))
    if words := words_of(bare):
        if any(token.is_roman for token in found) or len(found) == 1 and found[0].kind == "name":
            return Words(words)
    node = _answer(found)
    if isinstance(node, Value) and isinstance(node.tree, tuple) and node.tree[0] == "number" and node.number is None:
        return node._replace(number=plain_number(node.tree[1]))
    return node


def words_of(text: str) -> str:
    r"""An answer in words without what dresses it (\text{Evelyn} is evelyn); empty for what is not only words."""
    plain = re.sub(r"\\(?:text|textbf|textit|mathrm|mbox|textrm)\s*\{([^{}]*)\}|\$|\\[,;! ]", lambda found: found[1] or " ", text)
    plain = plain.strip(" .()").casefold()
    return " ".join(plain.split()) if WORDS_ONLY.fullmatch(plain) else ""


def _answer(found: Sequence[Token]) -> Node:
    """A whole answer: a sentence, or answers joined by commas and words."""
    if not found:
        raise NoAnswer("there is nothing to read")
    spoken = " ".join(token.text.casefold() for token in found if token.kind == "word" or token.text == "'")
    spoken = spoken.replace(" ' ", "'")
    if REFUSALS.intersection(spoken.split()) or any(f" {bound} " in f" {spoken} " for bound in BOUNDS):
        raise NoAnswer("a sentence that denies, bounds or guesses is no answer")
    depths = _depths(found)
    verbs = [at for at, token in enumerate(found) if depths[at] == 0 and _introduces(found, at)]
    if verbs and verbs[-1] + 1 < len(found):
        tail = _stripped(found[verbs[-1] + 1 :])
        while tail and tail[0].kind == "word" and tail[0].text.casefold() in ("to", "by", "the", "a", "an", "that", "given"):
            tail = tail[1:]
        return _answer(tail)
    found = [token for token in found if token.kind != "word" or token.text.casefold() not in FILLER]
    found = _without_introduction(found)
    parts = _split(found, lambda token: token.text in (",", ";") and token.kind == "sign" or token.text.casefold() in JOINING)
    if len(parts) > 1:
        return Several(tuple(_part(part) for part in parts))
    return _part(parts[0] if parts else found)


def _without_introduction(found: Sequence[Token]) -> Sequence[Token]:
    """Without the words before a formula, unless they are what it is about: "area = 5"."""
    start = next((at for at, token in enumerate(found) if token.kind != "word"), 0)
    if not start or found[0].is_roman or found[start].text in SIGNS or found[start].text in "$£€,;|'-.)":
        return found
    start += found[start].text == ":"
    return found[start:] if not any(token.kind == "word" and token.text.casefold() in JOINING for token in found[:start]) else found


def _part(found: Sequence[Token]) -> Node:
    """One answer of several."""
    found = _stripped(found)
    if not found:
        raise NoAnswer("a part is empty")
    if all(token.kind == "word" for token in found):
        if not any(token.is_roman for token in found):
            raise NoAnswer("words that name no value")
        return Words(" ".join(token.text.casefold() for token in found))
    sides = _split(found, lambda token: token.text in SIGNS and token.kind in ("sign", "command"), keep=True)
    if len(sides) > 1:
        return _relation(sides)
    if (node := _table(found) or _bracketed(found)) is not None:
        return node
    unions = _split(found, lambda token: token.text == "cup" and token.kind == "command")
    if len(unions) > 1:
        return Union(tuple(_part(part) for part in unions))
    ratio = _split(found, lambda token: token.text == ":" and token.kind == "sign")
    if len(ratio) > 1:
        return Ratio(tuple(_part(part) for part in ratio))
    if any(token.kind == "command" and token.text in ("pm", "mp") for token in found):
        return Several(tuple(_part(_signed(found, is_upper)) for is_upper in (True, False)))
    return _value(found)


def _relation(sides: Sequence[Sequence[Token]]) -> Node:
    """x = 5; 2 < x <= 9; x in [1, 2], which is its set."""
    signs, texts = [], []
    for at, side in enumerate(sides):
        if at % 2:
            signs.append(SIGNS[side[0].text])
            if side[0].text == "!":
                raise NoAnswer("a sign that can't be read")
        else:
            texts.append(list(side))
    for at, sign in enumerate(signs):  # <=, >=, != and == as programs write them
        if at + 1 < len(signs) and sign in "<>=" and signs[at + 1] == "=" and not texts[at + 1]:
            signs[at : at + 2], texts[at + 1 : at + 3] = [(sign + "=")], [texts[at + 2]]
            break
    if signs and signs[0] == "=" and texts[0] and texts[0][-1].text == "!" and len(texts[0]) > 1:
        signs[0], texts[0] = "!=", texts[0][:-1]
    while len(signs) > 1 and signs[-1] == "~":
        signs, texts = signs[:-1], texts[:-1]
    signs = ["=" if sign == "~" else sign for sign in signs]
    if not all(texts):
        if not texts[0] and all(texts[1:]) and set(signs) == {"="}:
            return _part(texts[-1])  # = 5
        raise NoAnswer("a side of a relation is empty")
    if signs[0] == "in" and len(signs) == 1:
        return _part(texts[1])
    return Relation(tuple(_side(text) for text in texts), tuple(signs))


def _side(found: Sequence[Token]) -> Node:
    found = _stripped(found)
    spoken = [token for token in found if token.kind == "word"]
    if spoken and found[0].kind == "word" and not any(token.kind == "number" for token in found):
        return Words(" ".join(token.text.casefold() for token in found))
    return _part(found)


def _bracketed(found: Sequence[Token]) -> Node | None:
    """Where one pair of brackets holds all of it; brackets that only group, as in (x + 1), are None."""
    depths = _depths(found)
    first, last = found[0], found[-1]
    opening, closing = _mark(first), _mark(last)
    if opening not in ("(", "[", "\\{", "{", "langle") or closing not in (")", "]", "\\}", "}", "rangle") or len(found) < 2:
        return None
    if any(depth == 0 for depth in depths[1:-1]) or depths[-1] != 0:
        return None
    inside = found[1:-1]
    is_set = opening == "\\{"
    if opening == "{" and not is_set:
        return _answer(inside)
    if is_set:
        if not inside:
            return Bracketed("{", (), "}")
        condition = _split(inside, lambda token: token.text in ("|", "mid", ":") and token.kind in ("sign", "command"))
        if len(condition) == 2:
            return _answer(condition[1])
    parts = _split(inside, lambda token: token.text in (",", ";") and token.kind == "sign")
    if len(parts) < 2 and not is_set:
        return None
    return Bracketed("{" if is_set else opening, tuple(_part(part) for part in parts), "}" if is_set else closing)


def _table(found: Sequence[Token]) -> Table | None:
    r"""\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}; an array may stand in brackets."""
    if len(found) > 2 and _mark(found[0]) + _mark(found[-1]) in ("[]", "()") and found[1].text == "begin":
        found = found[1:-1]
    if found[0].text != "begin" or found[0].kind != "command" or found[-1].text != "}":
        return None
    opens = found.index(Token("sign", "}"), 1) if Token("sign", "}") in found else 0
    environment = "".join(token.text for token in found[2:opens])
    ends = [at for at, token in enumerate(found) if token.kind == "command" and token.text == "end"]
    if environment not in TABLES or len(ends) != 1 or len(found) - ends[0] != opens + 1:
        return None
    cells = found[opens + 1 : ends[0]]
    if environment == "array" and cells and cells[0].text == "{":
        cells = cells[cells.index(Token("sign", "}")) + 1 :]
    cells = [token for token in cells if token.text != "hline"]
    rows = _split(cells, lambda token: token.kind == "command" and token.text in ("\\", "cr"))
    read_rows = tuple(tuple(_part(cell) for cell in _split(row, lambda token: token.text == "&")) for row in rows if row)
    return Table(read_rows, as_latex(found))


def _value(found: Sequence[Token]) -> Value:
    """A formula, and what is said about it: a currency before it, a unit or a noun after it."""
    found, prefix = _without_currency(found)
    is_percent = bool(found) and found[-1].text == "%"
    if is_percent:
        found = found[:-1]
    if not found:
        raise NoAnswer("there is nothing to read")
    depths = _depths(found)
    start = next(
        (at for at, token in enumerate(found) if token.kind == "word" and depths[at] == 0 and at and not _is_angle(found, at)), None
    )
    if found[0].kind == "word":
        return _only_value(found)
    unit = prefix
    if start is not None:
        rest, found = found[start:], found[:start]
        if any(token.kind == "number" and rest[at - 1].text not in ("^", "-", "{") for at, token in enumerate(rest)) and "per" not in {
            token.text for token in rest
        }:
            raise NoAnswer("words with several values in them")
        if any(token.text in ("+", "=") for token in rest):
            raise NoAnswer("words in a formula")
        while found and found[-1].kind == "command" and found[-1].text in ("cdot", "times"):
            found = found[:-1]
        unit = _unit(rest) or unit
    if unit == "percent":
        is_percent, unit = True, None
    latex = as_latex(found)
    number = plain_number(latex)
    if number is not None:
        return Value(("number", str(number.value)), latex, number._replace(is_percent=is_percent or number.is_percent), unit)
    try:
        tree: Tree | None = formula.parse(list(found))
    except formula.NeedsAlgebra:
        tree = None
    except Unparsable as error:
        raise NoAnswer(str(error)) from None
    if tree is not None and is_percent:
        tree = ("/", tree, ("number", "100"))
    short = None
    last = found[-1]
    if len(found) > 1 and last.kind == "name" and last.is_spaced and found[-2].kind == "number" and unit_of(last.text) and unit is None:
        short = _value(found[:-1])._replace(unit=unit_of(last.text))
    return Value(tree, latex, None, unit, short)


def _only_value(found: Sequence[Token]) -> Value:
    """Of words around one formula: that formula."""
    runs: list[list[Token]] = []
    was_word = True
    for token in found:
        is_word = token.kind == "word" or (was_word and token.text in (".", ":", "'", "!", "-"))
        if not is_word:
            if was_word:
                runs.append([])
            runs[-1].append(token)
        was_word = is_word
    if len(runs) != 1:
        raise NoAnswer("a sentence with no value, or with several")
    node = _part(_stripped(runs[0]))
    if not isinstance(node, Value):
        raise NoAnswer("a sentence whose value can't be told")
    return node


def _introduces(found: Sequence[Token], at: int) -> bool:
    """Does what follows this token say the answer? After a verb, or after the colon of a heading."""
    token = found[at]
    if token.kind == "word" and not token.is_roman or token.kind == "word" and token.text in ("is", "are"):
        return token.text.casefold() in VERBS and any(each.kind != "word" for each in found[at + 1 :])
    if token.text in (":", "therefore", "Rightarrow", "implies", "to"):
        return at == 0 or token.text != "to" and all(each.kind == "word" or each.text in ("*", "'") for each in found[:at])
    return False


def _is_angle(found: Sequence[Token], at: int) -> bool:
    """Degrees in the argument of a sine are part of the formula."""
    return found[at].text == "degree" and any(token.text in formula.TRIGONOMETRIC for token in found[:at])


def _without_currency(found: Sequence[Token]) -> tuple[Sequence[Token], str | None]:
    texts = [token.text for token in found[:3]]
    if texts[:2] in (["U", "S"], ["A", "S"]) and texts[2:] == ["$"]:
        return found[3:], "dollar"
    if found[0].text in CURRENCIES and found[0].kind in ("sign", "command"):
        return found[1:], CURRENCIES[found[0].text]
    if len(found) > 1 and found[0].kind == "word" and found[1].text in ("$", "£", "€") and len(found[0].text) < 3:
        return found[2:], CURRENCIES[found[1].text]
    if found[0].kind in ("word", "command") and (found[0].text in ("USD", "EUR", "GBP", "INR", "RMB", "Rs") or found[0].text == "pounds"):
        return _stripped(found[1:]), UNITS.get(found[0].text)
    if found[-1].text in CURRENCIES and found[-1].kind in ("sign", "command"):
        return found[:-1], CURRENCIES[found[-1].text]
    return found, None


def _unit(rest: Sequence[Token]) -> str | None:
    """The units among words, in order; None where there is none."""
    known: list[str] = []
    power = ""
    for at, token in enumerate(rest):
        unit = unit_of(token.text) if token.kind in ("word", "name") else None
        if unit in ("square", "cubic"):
            power = {"square": "^2", "cubic": "^3"}[unit]
        elif unit is not None and unit != "unit":
            raised = "".join(each.text for each in rest[at + 1 : at + 5] if each.text not in "{}") if _follows_power(rest, at) else ""
            known.append(unit + (re.match(r"\^-?\d*", raised) or [power])[0])
            power = ""
    return " ".join(known) or None


def _follows_power(rest: Sequence[Token], at: int) -> bool:
    return at + 1 < len(rest) and rest[at + 1].text == "^"


def _signed(found: Sequence[Token], is_upper: bool) -> list[Token]:
    upper, lower = ("+", "-") if is_upper else ("-", "+")
    signs = {"pm": upper, "mp": lower}
    return [Token("sign", signs[token.text]) if token.kind == "command" and token.text in signs else token for token in found]


def _split(found: Sequence[Token], parts_at, keep: bool = False) -> list[list[Token]]:  # type: ignore[no-untyped-def]
    """At the tokens outside of brackets for which ``parts_at`` holds; ``keep``: with these tokens in between."""
    depths = _depths(found)
    parts: list[list[Token]] = [[]]
    for depth, token in zip(depths, found, strict=True):
        if depth == 0 and parts_at(token):
            if keep:
                parts += [[token], []]
            elif parts[-1]:
                parts.append([])
        else:
            parts[-1].append(token)
    return parts if keep or parts[-1] else parts[:-1]


def _depths(found: Sequence[Token]) -> list[int]:
    """How many brackets each token is inside of; a bracket itself counts as outside."""
    depth, depths = 0, []
    for token in found:
        mark = _mark(token)
        if mark in CLOSING:
            depth -= 1
        depths.append(depth)
        if mark in OPENING:
            depth += 1
    return depths


def _mark(token: Token) -> str:
    if token.kind == "command":
        return "\\" + token.text if token.text in ("{", "}") else {"lbrace": "\\{", "rbrace": "\\}"}.get(token.text, token.text)
    return token.text if token.kind == "sign" else ""


def _stripped(found: Sequence[Token]) -> list[Token]:
    """Without punctuation at its ends."""
    found = list(found)
    while found and found[0].kind == "sign" and found[0].text in (".", ",", ":", ";", '"', "*"):
        found.pop(0)
    while found and found[-1].kind == "sign" and found[-1].text in (".", ",", ":", ";", '"', "*", "?"):
        found.pop()
    return found
