"""Which of a source's rows does a run use? Those that no filter has anything against; the others are counted by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from grpo.config import Filters
from grpo.data.difficulty import difficulty_of
from grpo.data.held_out import SharedWords, prompt_key, prompt_text
from grpo.data.near_duplicates import NearDuplicates
from rewards.rules.language import language_share

HELD_OUT, TOO_SHORT, TOO_LONG, LANGUAGE, UNMEASURED, TOO_HARD, TOO_EASY, CONTAMINATED, DUPLICATE, NEAR = (
    "held_out",
    "too_short",
    "too_long",
    "other_language",
    "not_measured",
    "too_hard",
    "too_easy",
    "contaminated",
    "duplicate",
    "near_duplicate",
)
UNREADABLE = "unreadable_gold"
"""Counted where rows are loaded: only the rewards of a source's samples can tell."""

CountTokens = Callable[[Any], int]


class Sieve:
    """Looks at the rows of one source, in order, each once. ``dropped`` counts what it kept out.

    held_out      keys (prompt_key) of prompts that must not occur
    shared        finds prompts that share words in a row with held-out ones; None switches it off
    count_tokens  of a prompt as the model receives it; None where no model is known yet, and then no length is looked at
    """

    def __init__(
        self, filters: Filters, held_out: Collection[str], shared: SharedWords | None = None, count_tokens: CountTokens | None = None
    ):
        self.filters, self.held_out, self.shared, self.count_tokens = filters, held_out, shared, count_tokens
        self.dropped: Counter[str] = Counter()
        self._seen: set[str] = set()
        self._near = NearDuplicates(filters.similarity)

    def passes(self, row: dict[str, Any]) -> bool:
        reason = self._reason(row)
        if reason is not None:
            self.dropped[reason] += 1
        return reason is None

    def _reason(self, row: dict[str, Any]) -> str | None:
        prompt = row["prompt"]
        if prompt_key(prompt) in self.held_out:
            return HELD_OUT
        return (
            self._length(prompt)
            or self._language(prompt)
            or self._pass_rate(row)
            or (CONTAMINATED if self.shared is not None and self.shared.found_in(prompt) else None)
            or self._repetition(prompt)  # last: only what passes everything else is remembered
        )

    def _length(self, prompt: Any) -> str | None:
        least, most = self.filters.min_prompt_tokens, self.filters.max_prompt_tokens
        if (least is None and most is None) or self.count_tokens is None:
            return None
        tokens = self.count_tokens(prompt)
        if least is not None and tokens < least:
            return TOO_SHORT
        return TOO_LONG if most is not None and tokens > most else None

    def _language(self, prompt: Any) -> str | None:
        if self.filters.language is None:
            return None
        share = language_share(prompt_text(prompt), self.filters.language)
        return LANGUAGE if share is not None and share < self.filters.min_language_share else None

    def _pass_rate(self, row: dict[str, Any]) -> str | None:
        least, most = self.filters.min_pass_rate, self.filters.max_pass_rate
        if least is None and most is None:
            return None
        if row.get("pass_rate") is None:
            return UNMEASURED
        rate = difficulty_of(row, "pass_rate", repr(prompt_text(row["prompt"])[:60]))
        if least is not None and rate < least:
            return TOO_HARD
        return TOO_EASY if most is not None and rate > most else None

    def _repetition(self, prompt: Any) -> str | None:
        if self.filters.duplicates is None:
            return None
        key = prompt_key(prompt)
        if key in self._seen:
            return DUPLICATE
        self._seen.add(key)
        return NEAR if self.filters.duplicates == "near" and self._near.repeats(prompt) else None
