"""Which prompts are too long, and what does one look like? Looks at what is here, fetches nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from grpo.config import Recipe
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


def over_limit(found: Preview, recipe: Recipe, base: Path, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Preview:
    """Without the rows whose prompt has more than ``max_tokens``, which a run leaves out. Generated sources are looked at by a sample."""
    rows = first_rows(found.source, recipe, base, MOST_TOKENISED)
    if found.rows is None or not rows:
        return found
    template = Template.of(recipe, base)
    num_long = sum(len(template.prompt(row, "", tokenizer).tokens) > max_tokens for row in rows)
    if not num_long:
        return found
    looked_at = "" if len(rows) == found.rows else f" (of {len(rows):,} looked at)"
    left = found.rows - num_long if not looked_at else found.rows
    return replace(found, rows=left, dropped={**found.dropped, f"over max_prompt_tokens {max_tokens:,}{looked_at}": num_long})


def first_rows(name: str, recipe: Recipe, base: Path, number: int) -> list[Row]:
    """A few rows of a source that can be looked at, and [] of another."""
    source = recipe.data[name]
    if source.hub or source.generator or source.measured_in:
        return []
    few = source.model_copy(update={"rows": number, "disjoint_from": []}) if source.reasoning_gym else source
    try:
        return Sources({**recipe.data, name: few}, base, recipe.tags).load(name).rows[:number]
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
