"""Which prompts are too long, and what does one look like? Looks at what is here, fetches nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from grpo.config import Recipe, imitated_sources
from grpo.data.conversations import beyond_positions, imitated, mended_in_words
from grpo.data.files import Row
from grpo.data.preview import Preview
from grpo.data.sources import Sources
from grpo.data.templates import Template
from grpo.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_TOKENISED = 2000


@dataclass(frozen=True)
class RenderedPrompt:
    """The first prompt of a source as the model gets it, control characters shown. ``num_tokens`` is None without a tokenizer."""

    source: str
    text: str
    num_tokens: int | None


@dataclass(frozen=True)
class Limit:
    """The most tokens of a source's prompts, or where it is ``imitated`` of prompt and completion; ``name`` is how a recipe calls it.

    ``positions``: of the model that imitates, for which rows within the limit must not be too long.
    """

    name: str
    tokens: int
    stage: str
    tokenizer: PreTrainedTokenizerBase
    imitated: bool = False
    positions: int | None = None


def over_limits(found: Preview, recipe: Recipe, base: Path, limits: Sequence[Limit]) -> Preview:
    """Without the rows over a limit, which a run leaves out. Generated sources are looked at by a sample.

    Raises DataError where none is left, one does not fit the template, or one is longer than the model's positions.
    """
    rows = first_rows(found.source, recipe, base, MOST_TOKENISED)
    if found.rows is None or not rows:
        return found
    template = Template.of(recipe, base)
    looked_at = "" if len(rows) == found.rows else f" (of {len(rows):,} looked at)"
    dropped, notes, least = dict(found.dropped), [found.note] if found.note else [], found.rows
    for limit in limits:
        mended: Counter[str] = Counter()
        lengths = []
        for row in rows:
            if limit.imitated:
                learned = imitated(row, template, limit.tokenizer)
                mended.update(learned.mended)
                lengths.append(learned.num_tokens)
            else:
                lengths.append(len(template.prompt(row, "", limit.tokenizer).tokens))
        num_long = sum(length > limit.tokens for length in lengths)
        if num_long == len(rows) == found.rows:
            what = "rows" if limit.imitated else "prompts"
            raise DataError(
                f"data source {found.source!r}: none of {len(rows):,} {what} fits {limit.name} = {limit.tokens:,} "
                f"of stage {limit.stage!r}\n"
                f"  they have {min(lengths):,} to {max(lengths):,} tokens; raise it"
            )
        if beyond := beyond_positions([length for length in lengths if length <= limit.tokens], limit.positions):
            raise DataError(f"data source {found.source!r}, stage {limit.stage!r}: {beyond}")
        notes += [line for line in mended_in_words(mended) if line not in notes]
        if num_long:
            dropped[f"over {limit.name} {limit.tokens:,}{looked_at}"] = num_long
            least = min(least, found.rows - num_long) if not looked_at else least
    return replace(found, rows=least, dropped=dropped, note="; ".join(notes))


def first_rows(name: str, recipe: Recipe, base: Path, number: int) -> list[Row]:
    """A few rows of a source that can be looked at, and [] of another."""
    source = recipe.data[name]
    if source.hub or source.generator or source.measured_in:
        return []
    few = source.model_copy(update={"rows": number, "disjoint_from": []}) if source.reasoning_gym else source
    try:
        return Sources({**recipe.data, name: few}, base, recipe.tags, imitated=imitated_sources(recipe)).load(name).rows[:number]
    except DataError:
        return []  # a task with so few problems that match; the run draws on


def rendered(name: str, recipe: Recipe, base: Path, tokenizer: PreTrainedTokenizerBase | None) -> RenderedPrompt | None:
    """None where no row is at hand, or the template is the tokenizer's own and that is elsewhere."""
    rows = first_rows(name, recipe, base, 1)
    template = Template.of(recipe, base)
    needs_tokenizer = recipe.template == "chat" or recipe.template.endswith(".jinja")
    if not rows or (tokenizer is None and needs_tokenizer):
        return None
    if tokenizer is None:
        return RenderedPrompt(name, visible(template.text(rows[0]["prompt"], None)), None)  # type: ignore[arg-type]  # plain text needs none
    tokens = template.prompt(rows[0], "", tokenizer).tokens
    return RenderedPrompt(name, visible(tokenizer.decode(tokens)), len(tokens))


def visible(text: str) -> str:
    """On one line, with line breaks and control characters as one writes them in a string."""
    return json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', '"')
