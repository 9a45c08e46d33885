"""How does an answer read once characters that look alike are one, and what only dresses it is gone?"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

GREEK = {chr(code): unicodedata.name(chr(code)).split()[-1].lower() for code in (*range(0x3B1, 0x3C2), *range(0x3C3, 0x3CA))}
SYMBOLS = {
    **{letter: f"\\{name.replace('lamda', 'lambda')} " for letter, name in GREEK.items()},
    **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\u2014\ufe63", "-"),
    **dict.fromkeys("·⋅∙", r"\cdot "),
    **dict.fromkeys("\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u00ad", ""),
    **{"×": r"\times ", "✕": r"\times ", "÷": r"\div ", "∞": r"\infty ", "°": r"^\circ ", "±": r"\pm ", "∓": r"\mp ", "…": r"\ldots "},
    **{"≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∈": r"\in ", "∪": r"\cup ", "∩": r"\cap "},
    **{
        "∅": r"\emptyset ",
        "∠": r"\angle ",
        "△": r"\triangle ",
        "∆": r"\Delta ",
        "Δ": r"\Delta ",
        "ℝ": r"\mathbb{R}",
        "√": r"\sqrt ",
        "∣": "|",
    },
    **{
        "，": ",",
        "、": ",",
        "；": ";",
        "：": ":",
        "。": ".",
        "′": "'",
        "\u2044": "/",
        "“": '"',
        "”": '"',
        "\u2019": "'",
        "【": "[",
        "】": "]",
    },
}
TRANSLATION = str.maketrans(dict[str, str | int | None](SYMBOLS))
RAISED = {**{chr(0x2070 + digit): str(digit) for digit in (0, *range(4, 10))}, "¹": "1", "²": "2", "³": "3", "⁻": "-", "ⁿ": "n"}
LOWERED = {chr(0x2080 + digit): str(digit) for digit in range(10)}
RAISED_RUN, LOWERED_RUN = re.compile(f"[{''.join(RAISED)}]+"), re.compile(f"[{''.join(LOWERED)}]+")
FRACTION_CHARACTER = re.compile("(\\d?)([\u00bc-\u00be\u2150-\u215e])")
COMPATIBLE = re.compile("[\uff01-\uff5e\U0001d400-\U0001d7ff\u3000\u00a0\u2000-\u200a\u202f\u205f\ufb00-\ufb06]")

LOST = {"\a": r"\a", "\b": r"\b", "\v": r"\v", "\f": r"\f", "\t": r"\t", "\r": r"\r", "\n": r"\n"}
LOST_COMMAND = re.compile(r"[\a\b\v\f]|\t(?:ext|imes|heta|frac|an\b|au\b|o\b)|\r(?:ight|ho\b|angle|m\b)|\n(?:eq?\b|u\b|eg\b)")

SPACING = re.compile(r"(?<!\\)\\(?:[,;:! ]|q?quad|displaystyle\b|textstyle\b|limits\b|left\b(?!arrow)|right\b(?!arrow)|[bB]igg?[lrm]?\b)|~")
COLOUR = re.compile(r"\\(?:textcolor|color|colorbox)\s*(?:\[\w+\])?\{[\w!#-]*\}(?:\{([^{}]*)\})?|\\(?:bf|boldmath|large|Large)\b")
MARKUP = re.compile(r"</?(?:b|i|em|strong|u|span|p|code|font|div|center)(?:\s[^<>]*)?>|<br\s*/?>", re.IGNORECASE)
HTML_SCRIPT = re.compile(r"<(su[pb])>(.*?)</\1>", re.IGNORECASE)
MARKDOWN = [re.compile(rf"(?<![^\s(:=]){mark}(?=\S)(.+?)(?<=\S){mark}(?![^\s.,;:!?)])") for mark in (r"\*\*", "__", r"\*", "`")]
BOX = re.compile(r"\\f?box(?:ed)?\s*\{")
DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))


def lost_backslash(text: str) -> str | None:
    r"""What a JSON file made of \frac written with one backslash holds: a control character. None where there is none."""
    match = LOST_COMMAND.search(text)
    return LOST[match[0][0]] if match else None


def plain_characters(text: str) -> str:
    """One character for each meaning: full-width, zero-width and no-break characters, typographic signs, raised digits, Greek letters."""
    if text.isascii():
        return text
    text = FRACTION_CHARACTER.sub(lambda found: f"{found[1]} {unicodedata.normalize('NFKC', found[2])}", text)
    text = RAISED_RUN.sub(lambda found: f"^{{{''.join(RAISED[sign] for sign in found[0])}}}", text)
    text = LOWERED_RUN.sub(lambda found: f"_{{{''.join(LOWERED[sign] for sign in found[0])}}}", text)
    text = re.sub(r"√\s*(\d+(?:\.\d+)?)", r"\\sqrt{\1}", text.replace("（", "(").replace("）", ")"))
    return COMPATIBLE.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text).translate(TRANSLATION)


@lru_cache(maxsize=4096)
def undressed(text: str) -> str:
    """Without what says nothing about the value: markdown, HTML, colours, boxes, spacing commands, the sizes of brackets, a last full stop."""
    text = plain_characters(text).strip()
    text = MARKUP.sub("", HTML_SCRIPT.sub(lambda found: f"{'^' if found[1].lower() == 'sup' else '_'}{{{found[2]}}}", text))
    for mark in MARKDOWN:
        text = mark.sub(r"\1", text)
    text = COLOUR.sub(lambda found: found[1] or "", text)
    text = re.sub(r"(\d)\.(?=\s*[/*])", r"\1", text)
    text = re.sub(r"(\d)(?:\{,\}|,?\\[,!]\s*)(?=\d{3}(?!\d))", r"\1,", text)
    if "\\begin" not in text:
        text = re.sub(r"\\\\(?=[a-zA-Z])", r"\\", text)  # escaped twice
    text = SPACING.sub(" ", text.replace(r"\!", ""))
    text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text)
    text = re.sub(r"\\l?dots|\\cdots", r"\\ldots ", text)
    while (match := BOX.search(text)) and (end := _closing(text, match.end() - 1)) is not None:
        text = text[: match.start()] + text[match.end() : end] + text[end + 1 :]
    return " ".join(text.split()).removesuffix(".").rstrip()


def one_line_of_mathematics(text: str) -> str:
    r"""``undressed``, without the delimiters of a formula around the whole, and with one sign for percent."""
    text = undressed(text)
    for opening, closing in DELIMITERS:
        inner = text[len(opening) : len(text) - len(closing)]
        if len(text) > 2 and text.startswith(opening) and text.endswith(closing) and opening not in inner:
            text = inner.strip().removesuffix(".")
            break
    return text.replace(r"\%", "%").replace("{ }", " ").strip()


def _closing(text: str, opening: int) -> int | None:
    """Where the brace at ``opening`` closes."""
    depth = 0
    for at in range(opening, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return at
    return None
