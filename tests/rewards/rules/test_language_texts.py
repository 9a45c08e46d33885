"""200 texts of English, Chinese and both, with formulas and code, labelled by hand: which language does language_share say they are in?

The thresholds were fixed before the texts were written, at what the toolkit ships with: a text is in a language if at least
keep.min_language_share of its words are; if no language reaches that, it is mixed. "mixed" is the label where both languages carry the prose;
a term, a name or a quotation in the other language does not make a text mixed, nor does what stands in code or formulas.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from grpo.config import Keep
from rewards.rules.language import CONFIDENCE, language_share

MIN_SHARE, MIN_WORDS = 0.8, 5
TEXTS = Path(__file__).with_name("language_texts.jsonl")


def verdict(text: str) -> str:
    shares = {name: language_share(text, name, MIN_WORDS) for name in ("en", "zh")}
    return next((name for name, share in shares.items() if share is not None and share >= MIN_SHARE), "mixed")


def test_the_thresholds_are_those_that_runs_use() -> None:
    assert (Keep().min_language_share, CONFIDENCE) == (MIN_SHARE, 0.8)


def test_at_least_95_percent_of_the_texts_are_told_right() -> None:
    rows = [json.loads(line) for line in TEXTS.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len({row["text"] for row in rows}) == 200
    assert min(Counter(row["language"] for row in rows).values()) >= 50
    wrong = [f"{row['language']} taken for {said}: {row['text']}" for row in rows if (said := verdict(row["text"])) != row["language"]]
    assert len(wrong) <= 10, "\n".join(wrong)
