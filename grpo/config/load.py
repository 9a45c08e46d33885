"""Loads a recipe from a YAML file, the files it extends, and overrides on the command line.

The layers are merged in order: the recipe that is extended, the recipe itself, then each override.

- Mappings merge key by key. Lists are replaced, except ``stages``, which merge by stage name: in the base's order, with new stages at the end.
- ``null`` over a value removes it, so that the default applies again. If null is a valid value (keep.language: it switches the filter off),
  it is that value. ``{name: harvest, kind: null}`` removes a stage, and ``data: {sums: null}`` removes a data source.
- A layer that chooses another kind of stage, another model key (make, path), or another source of data replaces the whole entry, because the
  keys of the old one would not fit.
- A relative path refers to the folder of the file that it is written in, or on the command line to the current folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from grpo.config import FILE_KEYS, SOURCE_KEYS, Recipe
from grpo.config.check_inputs import input_findings
from grpo.config.check_references import reference_findings
from grpo.config.check_schema import admits_null, schema_at, validated
from grpo.config.check_settings import contradictions
from grpo.config.problems import Finding, Keys, Problem, SourceLocation, dotted, in_reading_order
from grpo.config.yaml_positions import Node, locate, read_yaml, write_yaml
from grpo.errors import RecipeError
from grpo.util.shipped_recipes import shipped_recipes
from grpo.util.text import found, listed, suggestion

NOTHING: Mapping[str, int] = MappingProxyType({})
MODEL_KEYS = ("make", "path")


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe with its sources. ``tree`` has the location of every value that was written."""

    recipe: Recipe
    path: Path
    tree: Node

    @property
    def base(self) -> Path:
        """Return the folder that the recipe's relative paths refer to."""
        return self.path.parent

    @cached_property
    def resolved(self) -> dict[str, Any]:
        """The recipe as plain data with all defaults filled in."""
        return self.recipe.model_dump(mode="json", by_alias=True)

    def source_of(self, *keys: str | int) -> str:
        """Return where a value was written ("recipes/x.yaml:12"), or its nearest parent that was: source_of("stages", 0, "steps")."""
        return str(self.tree.nearest(keys).location)


def load_recipe(ref: str, overrides: Sequence[str] = (), *, check_inputs: bool = True) -> LoadedRecipe:
    """Read and check a whole recipe, by its path or the name of a shipped recipe. ``overrides`` are key.key=value, with stages by name.

    check_inputs    False tolerates files, models and packages that are missing so far
    Raises RecipeError with all problems at once, in the order of their lines.
    """
    path = find_recipe(ref, Path.cwd())
    problems: list[Problem] = []
    tree = _read_layer(path, path.parent, (), problems)
    if tree is None:
        raise RecipeError([str(problem) for problem in problems])
    for override in overrides:
        tree = _overridden(tree, override, path.parent, problems)
    refused = {problem.location for problem in problems}
    result = validated(_without_removed(tree))
    problems += [problem for problem in result.problems if problem.location not in refused]
    if result.recipe:
        data = result.tree.plain()
        findings = _findings(result.recipe, path.parent, check_inputs)
        problems += [locate(finding, result.tree, data) for finding in findings if finding.holds_without(result.damaged)]
    if problems:
        raise RecipeError(in_reading_order(problems, _shown(path)))
    assert result.recipe is not None
    return LoadedRecipe(result.recipe, path, result.tree)


def _findings(recipe: Recipe, base: Path, check_inputs: bool) -> list[Finding]:
    """Return everything in a well-formed recipe that cannot work. ``base`` is the folder that relative paths refer to."""
    inputs = input_findings(recipe, base) if check_inputs else ()
    return list(dict.fromkeys([*reference_findings(recipe), *contradictions(recipe), *inputs]))


def resolved_yaml(loaded: LoadedRecipe, resolved_tokens: Mapping[str, int] = NOTHING) -> str:
    """Return the recipe as YAML with all defaults filled in, which loads to an equal recipe.

    ``resolved_tokens``: for each stage whose recipe leaves max_tokens_per_micro_batch open, the value for this machine.
    """
    stages = [
        {**stage, "max_tokens_per_micro_batch": resolved_tokens[stage["name"]]} if stage["name"] in resolved_tokens else stage
        for stage in loaded.resolved["stages"]
    ]
    return write_yaml({**loaded.resolved, "stages": stages})


def find_recipe(ref: str, folder: Path) -> Path:
    """Return the file that ``ref`` means, seen from ``folder``. Raises RecipeError with what was looked for."""
    shipped = shipped_recipes()
    if ref in shipped:
        return shipped[ref]
    path = Path(os.path.abspath(folder / Path(ref).expanduser()))
    if os.path.isfile(path):
        return path
    what = "is a folder" if path.is_dir() else "does not exist"
    names = listed(shipped) if shipped else "none"
    raise RecipeError(f"recipe {ref!r}: {path} {what}, and shipped recipes are {names}{suggestion(Path(ref).stem, shipped)}")


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


# --- Files ----------------------------------------------------------------------------------------


def _read_layer(path: Path, base: Path, chain: tuple[Path, ...], problems: list[Problem]) -> Node | None:
    """Return the tree of a file merged over those it extends, or None if one cannot be read. ``chain``: the files that extend this one."""
    start = SourceLocation(_shown(path), 1)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        problems.append(Problem(SourceLocation(_shown(path)), f"cannot be read: {error.strerror}"))
        return None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        problems.append(Problem(SourceLocation(start.file, line), "not UTF-8 text; save it as UTF-8"))
        return None
    tree, wrong = read_yaml(text, start)
    problems += wrong
    if tree is None:
        if not wrong:
            problems.append(Problem(start, "the file is empty; a recipe has at least name, model and stages"))
        return None
    if not isinstance(tree.value, dict):
        text = f"a recipe is a mapping of keys (name: ..., model: ..., stages: ...), found {found(tree.plain())}"
        problems.append(Problem(tree.location, text))
        return None
    extends = tree.get("extends")
    if extends is None:
        return _anchored(tree, path.parent, base)
    below = _extended(extends, path, base, chain, problems)
    return merged(below, _anchored(tree.put(("extends",), None), path.parent, base)) if below else None


def _extended(extends: Node, path: Path, base: Path, chain: tuple[Path, ...], problems: list[Problem]) -> Node | None:
    """Return the tree of the file that ``extends`` names."""
    if not isinstance(extends.value, str):
        problems.append(
            Problem(extends.location, f"extends: expected a file or the name of a shipped recipe, found {found(extends.plain())}")
        )
        return None
    try:
        target = find_recipe(extends.value, path.parent)
    except RecipeError as error:
        problems.append(Problem(extends.location, f"extends: {error}"))
        return None
    chain = (*chain, path)
    if target in chain:
        circle = " -> ".join(_shown(file) for file in (*chain[chain.index(target) :], target))
        problems.append(Problem(extends.location, f"circular extends: {circle}"))
        return None
    return _read_layer(target, base, chain, problems)


def _anchored(node: Node, folder: Path, base: Path, key: str | int = "") -> Node:
    """Return a node of a file in ``folder`` with its relative paths (./ or ../ in front, and data files) made relative to ``base``."""
    if folder == base:
        return node
    if isinstance(node.value, dict):
        return Node({name: _anchored(item, folder, base, name) for name, item in node.value.items()}, node.location)
    if isinstance(node.value, list):
        return Node([_anchored(item, folder, base) for item in node.value], node.location)
    text = node.value
    if not isinstance(text, str) or not (text.startswith(("./", "../")) or (key in FILE_KEYS and not os.path.isabs(text))):
        return node
    moved = os.path.relpath(folder / text, base)
    return Node(moved if moved.startswith("..") else f"./{moved}", node.location)


# --- Layers ---------------------------------------------------------------------------------------


def merged(old: Node, new: Node, keys: Keys = ()) -> Node:
    """Return ``new`` merged over ``old``, both of which are at ``keys``."""
    if new.value is None:
        return Node(None, new.location, removes=True)
    if keys == ("stages",) and isinstance(old.value, list) and isinstance(new.value, list):
        return Node(_merged_stages(old.value, new.value), new.location)
    if not isinstance(old.value, dict) or not isinstance(new.value, dict) or _chooses_anew(old, new, keys):
        return new
    both = {key: merged(old.value[key], node, (*keys, key)) if key in old.value else node for key, node in new.value.items()}
    return Node({**old.value, **both}, new.location if new.location.line else old.location)


def _merged_stages(old: list[Node], new: list[Node]) -> list[Node]:
    stages = list(old)
    position = {name: index for index, stage in reversed(list(enumerate(old))) if (name := _name(stage)) is not None}
    for stage in new:
        index = position.get(_name(stage))
        if index is None:
            stages.append(stage)
        else:
            stages[index] = merged(stages[index], stage, ("stages", index))
    return stages


def _name(stage: Node) -> Any:
    name = stage.get("name")
    return name.value if name and isinstance(name.value, str) else None


def _chooses_anew(old: Node, new: Node, keys: Keys) -> bool:
    """Return whether ``new`` chooses another kind of stage, model or source, so that the old one's keys would not fit."""
    if keys[:1] == ("stages",) and len(keys) == 2:
        kinds = [node.value for node in (old.get("kind"), new.get("kind")) if node and node.value is not None]
        return len(set(map(str, kinds))) == 2
    if keys == ("model",) or (keys[:1] == ("stages",) and keys[2:] == ("from",)):
        choices: Sequence[str] = MODEL_KEYS
    elif keys[:1] == ("data",) and len(keys) == 2:
        choices = SOURCE_KEYS
    else:
        return False
    before, after = ({key for key in choices if (node := tree.get(key)) and node.value} for tree in (old, new))
    return bool(before and after and before != after)


def _without_removed(tree: Node) -> Node:
    """Return the tree without what a later layer's null removes."""
    data = tree.plain()
    removed = [keys for keys, node in tree.walk() if node.removes]
    stages = {keys[:2] for keys in removed if keys[:1] == ("stages",) and keys[2:] in ((), ("kind",))}
    values = [keys for keys in removed if keys[:2] not in stages and not admits_null(schema_at(data, keys).annotation)]
    for keys in [*reversed(values), *sorted(stages, reverse=True)]:  # from the end of a list, so that the other items keep their index
        tree = tree.put(keys, None)
    return tree


# --- The command line -----------------------------------------------------------------------------


def _overridden(tree: Node, override: str, base: Path, problems: list[Problem]) -> Node:
    """Return the tree with one ``key.key=value`` merged over it."""
    location = SourceLocation(f"command line: {override}")
    path, equals, text = override.partition("=")
    is_torn = any(override.count(opening) != override.count(closing) for opening, closing in ("[]", "{}"))
    if not equals or not path.strip():
        hint = "; the shell seems to have split it: put all of it in single quotes" if is_torn else ""
        problems.append(Problem(location, f"expected key=value, such as stages.reason.steps=12{hint}"))
        return tree
    value, wrong = read_yaml(text, location)
    if wrong:
        hint = "to make it text, write quotes that the shell keeps: 'key=\"...\"'"
        if is_torn:
            hint = "a bracket is not closed; the shell splits a value with spaces: put all of it in single quotes, 'key=[...]'"
        problems += [Problem(location, f"{problem.text}; {hint}") for problem in wrong]
        return tree
    try:
        keys = _override_keys(tree, path.strip().split("."))
    except RecipeError as error:
        problems.append(Problem(location, str(error)))
        return tree
    node = _anchored(value or Node(None, location), Path.cwd(), base, keys[-1])
    depth = next((depth for depth in range(len(keys)) if tree.nearest(keys[:depth]).get(keys[depth]) is None), len(keys))
    for key in reversed(keys[depth:]):
        node = Node({str(key): node}, location)
    here = keys[:depth]
    return tree.put(here, merged(tree.nearest(here), node, here)) if here else merged(tree, node)


def _override_keys(tree: Node, words: list[str]) -> Keys:
    """Return the words of an override as keys: stages by name, list items by number."""
    keys: Keys = ()
    node: Node | None = tree
    for depth, word in enumerate(words):
        key: str | int = word
        if not word:
            raise RecipeError("a key is empty; write key.key=value, such as stages.reason.steps=12")
        if node and isinstance(node.value, list):
            key = _item(node.value, word, keys, tree)
        elif node and not isinstance(node.value, dict) and node.value is not None:
            raise RecipeError(f"{dotted(keys, tree.plain())} is {found(node.value)}, which has no key {word!r}")
        elif keys == ("data",) and node and node.get(word) is None and depth < len(words) - 1:
            raise RecipeError(f"no data source {word!r}; sources are {listed(node.plain() or ())}{suggestion(word, node.plain() or ())}")
        keys = (*keys, key)
        node = node.get(key) if node else None
    return keys


def _item(items: list[Node], word: str, keys: Keys, tree: Node) -> int:
    names = [_name(item) for item in items] if keys == ("stages",) else []
    if word in names:
        return names.index(word)
    if word.isdigit() and int(word) < len(items):
        return int(word)
    if keys == ("stages",):
        known = [name for name in names if name]
        raise RecipeError(f"no stage {word!r}; stages are {listed(known)}{suggestion(word, known)}")
    raise RecipeError(f"no item {word!r}: {dotted(keys, tree.plain())} has {len(items)}, counted from 0")


def key_value_pairs(pairs: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return key=value pairs with the values that YAML reads, and what is wrong with them."""
    import yaml

    values, problems = {}, []
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            problems.append(f"{pair!r} is not KEY=VALUE")
            continue
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            problems.append(f"{pair!r}: the value is not YAML; put it in quotes")
    return values, problems
