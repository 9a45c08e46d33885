"""What will the sources of a recipe give? As far as can be told without a model, a network, or running anybody's code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from grpo.config import DataSource, Recipe, imitated_sources
from grpo.data.golds import GoldReader
from grpo.data.held_out import held_out_sources
from grpo.data.sources import Sources
from grpo.errors import DataError
from rewards.canary import MAX_GOLDS_READ

LARGEST_FILE_BYTES = 2**28
LOCAL = ("jsonl", "json", "csv", "parquet", "folder", "general")


@dataclass(frozen=True)
class Preview:
    """``rows`` None: not known before the run. ``note``: what the numbers leave out."""

    source: str
    kind: str
    rows: int | None
    dropped: Mapping[str, int]
    is_held_out: bool
    note: str = ""

    @property
    def left_out(self) -> str:
        return ", ".join(f"{number} {reason}" for reason, number in self.dropped.items())


def previews(recipe: Recipe, base: Path) -> list[Preview]:
    """One for each source, in the recipe's order. Reads local files; raises DataError with all that is wrong in any of them."""
    held_out = held_out_sources(recipe)
    reader = GoldReader(recipe, base, MAX_GOLDS_READ)
    readable = [name for name in held_out if _is_readable(recipe, name)]
    sources = Sources(recipe.data, base, recipe.tags, readable, unreadable=reader, imitated=imitated_sources(recipe))
    found: list[Preview] = []
    wrong: dict[str, None] = {}
    for name, source in recipe.data.items():
        (kind,) = source.given
        is_held_out = name in held_out
        if kind == "reasoning_gym":
            found.append(Preview(name, kind, source.rows or 1000, {}, is_held_out, "drawn when the run begins"))
        elif kind not in LOCAL:
            found.append(Preview(name, kind, None, {}, is_held_out, "read when the run begins"))
        elif size_gib := _too_large(source, base):
            found.append(Preview(name, kind, None, {}, is_held_out, f"not looked at, with {size_gib:.1f} GiB"))
        elif source.measured_in is not None:
            found.append(Preview(name, kind, None, {}, is_held_out, f"known once stage {source.measured_in} has run"))
        elif unread := [other for other in sources.disjoint_from(name) if not _is_readable(recipe, other)]:
            found.append(Preview(name, kind, None, {}, is_held_out, f"known once {', '.join(unread)} is read"))
        else:
            try:
                loaded = sources.load(name)
            except DataError as error:  # its own, or that of a source it is disjoint from, which is said once
                wrong[str(error)] = None
            else:
                note = "; ".join(filter(None, [_left_to_the_run(recipe, name, held_out, reader.num_unread.get(name, 0)), *loaded.notes]))
                found.append(Preview(name, kind, len(loaded.rows), loaded.dropped, is_held_out, note))
    if wrong:
        raise DataError("\n".join(wrong))
    return found


def is_looked_at(recipe: Recipe, name: str, base: Path) -> bool:
    """Are a source's rows told before a run begins, all of them or as many as one likes?"""
    source = recipe.data[name]
    return _is_readable(recipe, name) and not _too_large(source, base)


def _too_large(source: DataSource, base: Path) -> float:
    """GiB of a file that takes longer to read than a plan should; 0 of another."""
    ((_, value),) = source.given.items()
    file = base / str(value)
    size = file.stat().st_size if file.is_file() else 0
    return size / 2**30 if size > LARGEST_FILE_BYTES else 0.0


def _is_readable(recipe: Recipe, name: str) -> bool:
    """Can all of its rows be told now? Tasks can be drawn; hub data sets and generators cannot, nor what waits for them."""
    source = recipe.data[name]
    is_here = source.measured_in is None and all(kind in (*LOCAL, "reasoning_gym") for kind in source.given)
    return is_here and all(_is_readable(recipe, other) for other in source.disjoint_from)


def _left_to_the_run(recipe: Recipe, name: str, held_out: list[str], num_unread: int) -> str:
    filters = recipe.data[name].filters
    waiting = [other for other in held_out if other != name and not _is_readable(recipe, other)]
    notes = ["before filters by length, which need the model's tokenizer"] if filters.min_prompt_tokens or filters.max_prompt_tokens else []
    notes += [f"before {num_unread} gold answers are read"] if num_unread else []
    return "; ".join([*notes, *(f"before what {other} holds is left out" for other in waiting)])
