"""How does a recipe differ from the shipped one that it came from?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from grpo.config.load import LoadedRecipe, find_recipe, load_recipe
from grpo.util.shipped_recipes import shipped_recipes

ABSENT = "nothing"


@dataclass(frozen=True)
class Changes:
    """``of``: the recipe that was started from. ``settings``: dotted key, what it says there, and what holds now; defaults filled in."""

    of: str
    settings: tuple[tuple[str, Any, Any], ...]


def changes_of(loaded: LoadedRecipe) -> Changes | None:
    """Against the nearest shipped recipe that it extends, or is; else against its own file. None where nothing differs."""
    ancestor = _shipped_ancestor(loaded.path) or loaded.path
    before = load_recipe(str(ancestor), check_inputs=False)
    theirs, ours = (_by_name(recipe.resolved) for recipe in (before, loaded))
    was, now = dict(_flat(_taken_away_whole(theirs, ours))), dict(_flat(ours))
    keys = [*was, *(key for key in now if key not in was)]
    settings = tuple(
        (key, was.get(key, ABSENT), now.get(key, ABSENT))
        for key in keys
        if key not in was or key not in now or not _is_same(was[key], now[key], before.base, loaded.base)
    )
    name = next((name for name, path in shipped_recipes().items() if path == ancestor), str(ancestor))
    return Changes(name, settings) if settings else None


def _shipped_ancestor(path: Path) -> Path | None:
    shipped = set(shipped_recipes().values())
    while path not in shipped:
        extends = yaml.safe_load(path.read_text(encoding="utf-8-sig")).get("extends")
        if extends is None:
            return None
        path = find_recipe(extends, path.parent)
    return path


def _by_name(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """With stages by name, so that one that was taken away does not shift those after it."""
    return {**resolved, "stages": {stage["name"]: stage for stage in resolved["stages"]}}


def _taken_away_whole(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """A stage or a source that is gone is one difference, not one for each of its keys."""
    shown = {
        section: {name: entry if name in ours[section] else entry.get("kind", "a source") for name, entry in theirs[section].items()}
        for section in ("stages", "data")
    }
    return {**theirs, **shown}


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _is_same(was: Any, now: Any, base_was: Path, base_now: Path) -> bool:
    """Equal, or two ways to write the same file from two folders."""
    if was == now or not (isinstance(was, str) and isinstance(now, str)):
        return bool(was == now)
    return was.startswith(".") and now.startswith(".") and (base_was / was).resolve() == (base_now / now).resolve()
