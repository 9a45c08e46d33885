"""Which sampled completions are fit to train on? R1's filters after rejection: right, in one language, not repetitive, not over-long, no doubles."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from grpo.config import Keep, Tags
from grpo.types import Group, Sample
from rewards.rules.extract import think_text
from rewards.rules.language import language_share
from rewards.rules.repetition import looped_share, repeated_ngram_share

UNJUDGED, EMPTY, TRUNCATED, BELOW, TOO_LONG, CODE, LANGUAGE, REPETITIVE, DUPLICATE, ENOUGH = (
    "unjudged",
    "empty",
    "truncated",
    "below_min_reward",
    "too_long",
    "code_block",
    "mixed_language",
    "repetitive",
    "duplicate",
    "enough_of_this_prompt",
)


def reason_to_drop(sample: Sample, prefill: str, keep: Keep, tags: Tags) -> str | None:
    """Why this completion is not kept, judged by itself; None where it is."""
    text = sample.completion.text
    if sample.reward is None:
        return UNJUDGED
    if not text.strip():
        return EMPTY
    if sample.completion.finish != "stop":
        return TRUNCATED
    if any((value := sample.parts[name]) is None or value < least for name, least in keep.min_reward.items()):
        return BELOW
    if keep.max_completion_tokens is not None and sample.completion.num_tokens > keep.max_completion_tokens:
        return TOO_LONG
    if not keep.code_blocks and "```" in text:
        return CODE
    if keep.language is not None:
        share = language_share(think_text(text, prefill, tags.think) or text, keep.language)
        if share is not None and share < keep.min_language_share:
            return LANGUAGE
    if max(repeated_ngram_share(text.split(), 4), looped_share(text)) > keep.max_repetition:
        return REPETITIVE
    return None


@dataclass(frozen=True)
class Judged:
    """A sample of a group, and why it is dropped; None where it is kept."""

    group: Group
    sample: Sample
    dropped: str | None


def judge(groups: Iterable[Group], keep: Keep, tags: Tags) -> list[Judged]:
    """Every sample in the order drawn: of each group, up to keep.per_prompt are kept."""
    judged: list[Judged] = []
    for group in groups:
        texts: set[str] = set()
        taken = 0
        for sample in group.samples:
            reason = reason_to_drop(sample, group.prompt.prefill, keep, tags)
            if reason is None and not keep.duplicates and sample.completion.text.strip() in texts:
                reason = DUPLICATE
            if reason is None and taken == keep.per_prompt:
                reason = ENOUGH
            if reason is None:
                texts.add(sample.completion.text.strip())
                taken += 1
            judged.append(Judged(group, sample, reason))
    return judged


def row_of(group: Group, sample: Sample, source: str) -> dict[str, Any]:
    """A kept completion as a training row that says where it comes from."""
    return {
        "prompt": group.prompt.columns["prompt"],
        "completion": sample.completion.text,
        "answer": group.prompt.columns.get("answer"),
        "source": source,
        "prompt_id": group.prompt.id,
        "parts": dict(sample.parts),
        **({"notes": dict(sample.notes)} if sample.notes else {}),
    }
