"""How much of the thinking is in the language it should be in?"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby
from typing import Any, Literal

from rewards.function import reward
from rewards.rules.extract import think_text
from rewards.rules.tokenize import WORD

LATIN, CYRILLIC, ARABIC, GREEK, HEBREW, HANGUL, CHINESE = "LATIN", "CYRILLIC", "ARABIC", "GREEK", "HEBREW", "HANGUL", "CJK"
SCRIPTS = {
    **dict.fromkeys(("en", "de", "fr", "es", "it", "pt", "nl", "pl"), (LATIN,)),
    **dict.fromkeys(("ru", "uk"), (CYRILLIC,)),
    "ar": (ARABIC,),
    "el": (GREEK,),
    "he": (HEBREW,),
    "ko": (HANGUL,),
    "zh": (CHINESE,),
    "ja": (CHINESE, "HIRAGANA", "KATAKANA"),
}
Language = Literal["en", "de", "fr", "es", "it", "pt", "nl", "pl", "ru", "uk", "ar", "el", "he", "ko", "zh", "ja"]

CONFIDENCE = 0.8
"""Only a confident verdict for another language makes words foreign: three words of mathematics look like anything."""

NOT_PROSE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\\\[.*?\\\]|\\\(.*?\\\)|\\begin\{(\w+\*?)\}.*?\\end\{\1\}"
    r"|\\[a-zA-Z]+(?:\{[^{}]*\})*|https?://\S+|</?\w+>",
    re.DOTALL,
)
SENTENCE = re.compile(r"[^.!?;:\n。！？；：]+")


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(list(SCRIPTS))
    return identifier


@reward(prepare=_identifier)
def language(
    completion: str, prefill: str = "", *, language: Language = "en", min_words: int = 5, think_tag: str = "think"
) -> float | None:
    """Share of the words in the thinking that are in the target language: R1's language consistency (arXiv:2501.12948, section 2.3.2).

    The paper does not say how words are counted; language_share says how we do. Without thinking, or with fewer than min_words words in
    it, it abstains.
    """
    thinking = think_text(completion, prefill, think_tag)
    return None if thinking is None else language_share(thinking, language, min_words=min_words)


def language_share(text: str, language: str, min_words: int = 5) -> float | None:
    """Words of the language / words, or None for fewer than min_words words.

    Formulas, code, tags, numbers and single letters are no words; a Chinese or Japanese character is one. A word is foreign if its script
    is, or if its part of the sentence (words of one script in a row) is confidently identified as another language.
    """
    num_words = num_own = 0
    for sentence in SENTENCE.findall(NOT_PROSE.sub("\n", text)):
        for words in _runs(sentence):
            num_words += len(words)
            own = [word for word in words if _script(word) in SCRIPTS[language]]
            num_own += len(own) if own and not _is_foreign(words, language) else 0
    return num_own / num_words if num_words >= max(min_words, 1) else None


def _runs(sentence: str) -> Iterator[Sequence[str]]:
    """The sentence's words, split wherever the script changes. Chinese and Japanese characters mix freely."""
    words = [match.group() for match in WORD.finditer(sentence)]
    words = [word for word in words if not any(c.isdigit() for c in word) and (len(word) > 1 or _script(word) in SCRIPTS["ja"])]
    for _, run in groupby(words, key=lambda word: CHINESE if _script(word) in SCRIPTS["ja"] else _script(word)):
        yield list(run)


def _is_foreign(words: Sequence[str], language: str) -> bool:
    is_spaced = _script(words[0]) not in SCRIPTS["ja"]
    found, confidence = _identifier().classify((" " if is_spaced else "").join(words))
    return found != language and confidence >= CONFIDENCE


def _script(word: str) -> str:
    """The script of a word's first letter: the first word of that character's Unicode name."""
    return _script_of(word[0])


@cache
def _script_of(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split()[0]
