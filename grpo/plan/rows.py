"""How many rows does each source give, why are others left out, and what does a prompt look like? Looks at what is here, fetches nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo.config import Recipe
from grpo.data.sources import Row, load_source
from grpo.data.templates import Template
from grpo.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LARGEST_FILE_BYTES = 2**28  # larger ones take longer than a plan should
MOST_TOKENISED = 2000


@dataclass(frozen=True)
class SourceRows:
    """``kept`` is None where nobody looked, and ``why_not`` says why. ``dropped``: reason, number of rows."""

    name: str
    kept: int | None
    dropped: Mapping[str, int] = field(default_factory=dict)
    why_not: str = ""


@dataclass(frozen=True)
class RenderedPrompt:
    """The first prompt of a source as the model gets it, control characters shown. ``num_tokens`` is None without a tokenizer."""

    source: str
    text: str
    num_tokens: int | None


def rows_of(name: str, recipe: Recipe, base: Path) -> SourceRows:
    """Of a data source: generated ones are taken at their word, files are read, the rest is not looked at."""
    source = recipe.data[name]
    if source.reasoning_gym:
        return SourceRows(name, source.rows or 1000)
    if source.hub:
        return SourceRows(name, None, why_not=f"{source.hub} is on the Hugging Face hub")
    if source.generator:
        return SourceRows(name, None, why_not=f"{source.generator} is run by the run only")
    file = source.jsonl or source.csv or source.parquet
    if file and (size := (base / file).stat().st_size) > LARGEST_FILE_BYTES:
        return SourceRows(name, None, why_not=f"{file} has {size / 2**30:.1f} GiB")
    return _counted(name, recipe, base)


def _counted(name: str, recipe: Recipe, base: Path) -> SourceRows:
    """Loaded with ever fewer restrictions: what each of them costs is the difference."""
    restrictions: dict[str, dict[str, Any]] = {
        "beyond rows": {"rows": None},
        "also in disjoint_from": {"disjoint_from": []},
        "not matching only": {"only": None},
    }
    source, counts = recipe.data[name], [len(load_source(name, recipe.data, base, recipe.tags))]
    dropped = {}
    for reason, freed in restrictions.items():
        if source.general and reason == "beyond rows":
            continue
        source = source.model_copy(update=freed)
        counts.append(len(load_source(name, {**recipe.data, name: source}, base, recipe.tags)))
        if counts[-1] > counts[-2]:
            dropped[reason] = counts[-1] - counts[-2]
    return SourceRows(name, counts[0], dropped)


def over_limit(found: SourceRows, recipe: Recipe, base: Path, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> SourceRows:
    """Without the rows whose prompt has more than ``max_tokens``, which a run leaves out. Generated sources are looked at by a sample."""
    rows = first_rows(found.name, recipe, base, MOST_TOKENISED)
    if found.kept is None or not rows:
        return found
    template = Template(recipe.template, recipe.tags, base)
    num_long = sum(len(template.prompt(row, "", tokenizer).tokens) > max_tokens for row in rows)
    if not num_long:
        return found
    looked_at = "" if len(rows) == found.kept else f" (of {len(rows):,} looked at)"
    kept = found.kept - num_long if not looked_at else found.kept
    return replace(found, kept=kept, dropped={**found.dropped, f"over max_prompt_tokens {max_tokens:,}{looked_at}": num_long})


def first_rows(name: str, recipe: Recipe, base: Path, number: int) -> list[Row]:
    """A few rows of a source that can be looked at, and [] of another."""
    source = recipe.data[name]
    if source.hub or source.generator:
        return []
    few = source.model_copy(update={"rows": number, "disjoint_from": []}) if source.reasoning_gym else source
    try:
        return load_source(name, {**recipe.data, name: few}, base, recipe.tags)[:number]
    except DataError:
        return []  # a task with so few problems that match; the run draws on


def rendered(name: str, recipe: Recipe, base: Path, tokenizer: PreTrainedTokenizerBase | None) -> RenderedPrompt | None:
    """None where no row is at hand, or the template is the tokenizer's own and that is elsewhere."""
    rows = first_rows(name, recipe, base, 1)
    template = Template(recipe.template, recipe.tags, base)
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
