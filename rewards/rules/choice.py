"""Is the right option of a multiple choice chosen?"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any, Literal

from rewards.errors import RewardError
from rewards.function import reward
from rewards.rules.extract import answer_text, boxed_text

DRESSING = re.compile(r"\\(?:text|textbf|mathrm|mbox)\s*\{([^{}]*)\}|[$*_`]")
SAID = (
    r"(?:i\s+(?:choose|pick|select)|(?:so|thus|therefore|hence)?,?\s*(?:the|my)?\s*"
    r"(?:(?:correct|right|final|best)\s+)?(?:answer|option|choice)?\s*(?:is|:)?)"
)
SAID_CHINESE = "(?:所以|因此|故)?[,:]?(?:我)?(?:本题)?(?:正确|最终)?(?:答案|选项)?(?:应?该?选择?|应?为|是)?[:]?"
BECAUSE = r"\s*(?:(?:because|since|as|for|due to|given that)\b|因为|由于)"
LETTER = re.compile(
    rf"(?:{SAID}|{SAID_CHINESE})\s*(?:option|choice|answer)?\s*(?:\(([A-Z])\)|\[([A-Z])\]|([A-Z])(?=[).:,;(=-]|\s*$|\s+[-(=]|{BECAUSE}))[).:]*(.*)",
    re.IGNORECASE | re.DOTALL,
)
LONE_LETTER = re.compile(r"(?<![\w'’])([A-Z])(?![\w'’])")
REASON = re.compile(rf"\s*[,;:.-]?{BECAUSE}", re.IGNORECASE)
HEDGE = re.compile(r"\s*(?:[,/&]|or\b|and\b|或|和)", re.IGNORECASE)
NUMBER = re.compile(r"[-+]?\d{1,15}(?:\.\d{1,15})?")
WIDTHS = str.maketrans({"、": ".", "。": ".", "【": "[", "】": "]", "〔": "[", "〕": "]", "–": "-", "—": "-", "−": "-"})


@reward(required=True, gold="answer", reads_gold=True)
def choice(
    completion: str,
    answer: Any,
    options: Any = None,
    *,
    extract: Literal["answer_tag", "boxed", "last_letter"] = "answer_tag",
    answer_tag: str = "answer",
) -> float | None:
    r"""1 if the chosen option is the one that column ``answer`` names, else 0.

    options   the texts in order, or {letter: text}, or either as JSON; without them only letters count. An option may be chosen by its
              letter ("B", "(b)", "B) Paris", "The answer is B, because ..."), by its text, or by both if they agree
    answer    a letter, an option's text, or with ``options`` its number, counted from 0
    extract   "answer_tag" (in the last answer block, and there in \boxed{...} if there is one), "boxed" (in the last box of all),
              "last_letter" (lenient: the last lone capital that is an option's letter)

    Nothing chosen, or several: 0. An ``answer`` that is none of the options: None.
    """
    texts = _texts(options)
    right = _right(answer, texts)
    if right is None:
        return None
    if extract == "last_letter":
        letters = [letter for letter in LONE_LETTER.findall(_one_width(completion)) if not texts or letter in texts]
        return float(bool(letters) and letters[-1] == right)
    inside = completion if extract == "boxed" else answer_text(completion, answer_tag)
    given = inside and (boxed_text(inside) or (inside if extract == "answer_tag" else None))
    return float(given is not None and chosen(given, texts) == right)


def chosen(text: str, texts: Mapping[str, str]) -> str | None:
    """The letter of the option that ``text`` names, or None where it names none, several, or a letter with another option's text."""
    text = DRESSING.sub(lambda match: match[1] or "", _one_width(text)).strip()
    by_text = [letter for letter, option in texts.items() if _is_same(option, text)]
    if len(by_text) == 1:
        return by_text[0]
    if not (match := LETTER.fullmatch(text)):
        return None
    letter, rest = (match[1] or match[2] or match[3]).upper(), match[4]
    if texts and letter not in texts:
        return None
    if _names_nothing_else(rest, texts) or (texts and any(_is_same(texts[letter], part) for part in _parts(rest))):
        return letter
    is_text = not texts and not LETTER.fullmatch(_plain(rest)) and not LONE_LETTER.search(rest) and not HEDGE.match(rest)
    return letter if is_text else None


def _names_nothing_else(rest: str, texts: Mapping[str, str]) -> bool:
    """Is what follows a letter nothing, or a reason that names no other option's letter?"""
    if not _plain(rest):
        return True
    reason = REASON.match(rest)
    others = {*(texts or ascii_uppercase)} - {"A", "I"}  # which are words too
    return reason is not None and others.isdisjoint(LONE_LETTER.findall(rest[reason.end() :]))


def _parts(rest: str) -> list[str]:
    """An option's text as it follows its letter: bare, in brackets, after a dash or an equals sign."""
    bare = re.sub(r"^\s*[-:=.,]\s*", "", rest)
    bracketed = re.fullmatch(r"\s*\((.*)\)\s*\.?", rest, re.DOTALL)
    return [rest, bare, *([bracketed[1]] if bracketed else [])]


def _right(answer: Any, texts: Mapping[str, str]) -> str | None:
    """The letter of the right option; None for an answer that names none."""
    if isinstance(answer, str):
        return chosen(answer, texts)
    if not isinstance(answer, int | float) or isinstance(answer, bool) or not 0 <= answer < len(texts) or answer % 1:
        return None
    return list(texts)[int(answer)]


def _texts(options: Any) -> dict[str, str]:
    if isinstance(options, str):
        try:
            options = json.loads(options)
        except ValueError:
            options = None if not options.strip() else options
    if isinstance(options, Mapping):
        return {str(letter).strip().upper(): str(text) for letter, text in options.items()}
    if isinstance(options, str | int | float):
        raise RewardError(f"column 'options': expected a list of texts, or {{letter: text}}, or one of them as JSON; found {options!r:.80}")
    return dict(zip(ascii_uppercase, map(str, options if options is not None else ()), strict=False))


def _one_width(text: str) -> str:
    """Full-width letters, brackets and punctuation as ASCII ones."""
    return unicodedata.normalize("NFKC", text).translate(WIDTHS)


def _is_same(option: str, text: str) -> bool:
    one, other = _plain(_one_width(option)), _plain(text)
    return one == other or (bool(NUMBER.fullmatch(one) and NUMBER.fullmatch(other)) and float(one) == float(other))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .")
