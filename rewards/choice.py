"""Is the right option of a multiple choice chosen?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any, Literal

from rewards.extract import answer_text, boxed_text
from rewards.function import reward

DRESSING = re.compile(r"\\(?:text|textbf|mathrm|mbox)\s*\{([^{}]*)\}|[$*_]")
LETTER = re.compile(r"(?:option|choice|answer)?\s*(?:\(([A-Z])\)|\[([A-Z])\]|([A-Z])(?=[).:]|$))[).:]*\s*(.*)", re.IGNORECASE | re.DOTALL)
LONE_LETTER = re.compile(r"(?<![\w'’])([A-Z])(?![\w'’])")


@reward(required=True, gold="answer")
def choice(
    completion: str,
    answer: Any,
    options: Any = None,
    *,
    extract: Literal["answer_tag", "boxed", "last_letter"] = "answer_tag",
    answer_tag: str = "answer",
) -> float | None:
    r"""1 if the chosen option is the one that column ``answer`` names, else 0.

    options   the texts in order, or {letter: text}; without them only letters count. An option may be chosen by its letter ("B", "(b)",
              "B) Paris"), by its text, or by both if they agree
    answer    a letter, an option's text, or with ``options`` its number, counted from 0
    extract   "answer_tag" (in the last answer block, and there in \boxed{...} if there is one), "boxed" (in the last box of all),
              "last_letter" (lenient: the last lone capital that is an option's letter)

    Nothing chosen, or several: 0. An ``answer`` that is none of the options: None.
    """
    texts = _texts(options)
    right = texts and list(texts)[answer] if type(answer) is int and texts and 0 <= answer < len(texts) else chosen(str(answer), texts)
    if right is None:
        return None
    if extract == "last_letter":
        letters = [letter for letter in LONE_LETTER.findall(completion) if not texts or letter in texts]
        return float(bool(letters) and letters[-1] == right)
    inside = completion if extract == "boxed" else answer_text(completion, answer_tag)
    given = inside and (boxed_text(inside) or (inside if extract == "answer_tag" else None))
    return float(given is not None and chosen(given, texts) == right)


def chosen(text: str, texts: Mapping[str, str]) -> str | None:
    """The letter of the option that ``text`` names, or None where it names none, several, or a letter with another option's text."""
    text = DRESSING.sub(lambda match: match[1] or "", text).strip()
    by_text = [letter for letter, option in texts.items() if _plain(option) == _plain(text)]
    if len(by_text) == 1:
        return by_text[0]
    if not (match := LETTER.fullmatch(text)):
        return None
    letter, rest = (match[1] or match[2] or match[3]).upper(), _plain(match[4])
    if texts:
        return letter if letter in texts and rest in ("", _plain(texts[letter])) else None
    return letter if not LETTER.fullmatch(rest) else None


def _texts(options: Any) -> dict[str, str]:
    if isinstance(options, Mapping):
        return {str(letter).strip().upper(): str(text) for letter, text in options.items()}
    return dict(zip(ascii_uppercase, map(str, options if options is not None else ()), strict=False))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .")
