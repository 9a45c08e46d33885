"""Checks a recipe against the schema and reports each mistake in one line.

pydantic validates; this module turns its errors into findings: one for each mistake, however many members of a union refused a value.
So that one mistake does not hide the next, ``validated`` replaces each mistaken value with a harmless one and validates again.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, lru_cache, reduce
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from grpo.config import Hint, Recipe
from grpo.config.foreign_keys import FOREIGN_KEYS, FOREIGN_KINDS, RENAMED
from grpo.config.problems import Finding, Keys, Problem
from grpo.config.yaml_positions import Node, locate, node_of
from grpo.util.text import did_you_mean, found, listed, resembles_closely, suggestion

VALUE_FOR = {"yes": "true", "on": "true", "no": "false", "off": "false"}
ROUNDS = 4  # a misspelt kind hides a misspelt key, which hides a wrong value; deeper mistakes are reported on the next run


class SchemaNode(NamedTuple):
    """What the schema expects at some keys: a type, and a hint for error messages. The annotation Any accepts everything."""

    annotation: Any
    hint: str | None = None

    @property
    def about(self) -> str:
        """The end of an error message: the hint in brackets, or nothing."""
        return f" ({self.hint})" if self.hint else ""


class Validated(NamedTuple):
    """The result of validation.

    ``recipe`` is None if it stayed invalid after every mistake was replaced. ``damaged`` are the keys at which ``tree`` was replaced.
    """

    recipe: Recipe | None
    tree: Node
    problems: list[Problem]
    damaged: list[Keys]


def validated(tree: Node) -> Validated:
    """Return the recipe that the tree describes, with everything in it that violates the schema."""
    problems: list[Problem] = []
    damaged: list[Keys] = []
    for _ in range(ROUNDS):
        data = tree.plain()
        try:
            return Validated(Recipe.model_validate(data, strict=True), tree, problems, damaged)
        except ValidationError as error:
            mistakes = _mistakes(error, data)
        problems += [locate(mistake.finding, tree, data) for mistake in mistakes if mistake.finding.holds_without(damaged)]
        for mistake in mistakes:
            tree, touched = mistake.mended(tree)
            damaged += touched
    return Validated(None, tree, problems, damaged)


def schema_at(data: Any, keys: Iterable[str | int]) -> SchemaNode:
    """Return what the schema expects at ``keys``. ``data`` decides between the members of unions."""
    node = SchemaNode(Recipe)
    for key in keys:
        node = _below(node.annotation, data, key)
        data = _step(data, key)
    return node


def admits_null(annotation: Any) -> bool:
    """Return whether null is a value here. Under free-form settings, which accept everything, it means "not written"."""
    return annotation is not Any and any(_bare(member) is NoneType for member in _members(annotation))


class _Mistake(NamedTuple):
    """A finding and how to continue after it: with another name for its key, or another value (None: the default)."""

    finding: Finding
    keys: Keys
    rename: str | None = None
    value: Any = None
    is_certain: bool = False  # the corrected text is what was meant, so mistakes in it are worth reporting

    def mended(self, tree: Node) -> tuple[Node, list[Keys]]:
        if self.rename:
            return tree.renamed(self.keys, self.rename), []
        location = tree.nearest(self.keys).location
        return tree.put(self.keys, None if self.value is None else node_of(self.value, location)), [] if self.is_certain else [self.keys]


def _mistakes(error: ValidationError, data: Any) -> list[_Mistake]:
    """Return one mistake for each thing that is wrong in the recipe."""
    errors = {keys: item for item in error.errors(include_url=False) if (keys := _keys(item["loc"], item["type"], data)) is not None}
    # The members of a union complain about one value at several depths: the deepest complaint is about the member that was meant.
    deepest = {keys: item for keys, item in errors.items() if not any(keys == other[: len(keys)] for other in errors if other != keys)}
    listing: dict[Keys, str] = {}
    unknown = {keys: _unknown_key(keys, data, listing) for keys, item in deepest.items() if item["type"] == "extra_forbidden"}
    provided = {(*keys[:-1], mistake.rename) for keys, mistake in unknown.items()}
    mistakes = dict(unknown)
    for keys, item in deepest.items():
        if keys in unknown or keys in provided:
            continue
        match item["type"]:
            case "literal_error" if item["loc"][-1] == "[key]":
                mistakes[keys] = _wrong_key(keys, data)
            case "missing":
                mistakes[keys] = _missing_key(keys, data)
            case "union_tag_invalid" | "union_tag_not_found":
                mistakes[keys] = _wrong_kind(keys, data)
            case "value_error" | "assertion_error":
                text = item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
                mistakes[keys] = _Mistake(Finding(keys, text), keys, value=_stand_in(keys, data))
            case _:
                mistakes[keys] = _wrong_value(keys, data)
    return list(mistakes.values())


def _keys(loc: tuple[str | int, ...], kind: str, data: Any) -> Keys | None:
    """Return the keys in pydantic's location, without the names of union members, or None if the error concerns another member."""
    keys: Keys = ()
    node = SchemaNode(Recipe)
    for depth, part in enumerate(loc):
        is_new_key = depth == len(loc) - 1 and kind in ("missing", "extra_forbidden")
        if (isinstance(data, dict) and (part in data or is_new_key)) or (isinstance(data, list) and isinstance(part, int)):
            node, data, keys = _below(node.annotation, data, part), _step(data, part), (*keys, part)
        elif isinstance(data, dict) and _is_another_member(part, node.annotation, data):
            return None
    return keys


def _unknown_key(keys: Keys, data: Any, listing: dict[Keys, str]) -> _Mistake:
    """Report an unknown key. ``listing``: for each mapping, the unknown key whose message lists the known ones; the others refer to it."""
    *parent_keys, key = keys
    parent = _value_at(data, parent_keys)
    annotation = schema_at(data, parent_keys).annotation
    model = _meant(annotation, parent)
    fields = _fields(model)
    ours = RENAMED.get(str(key)) or FOREIGN_KEYS.get(str(key))
    close = ours if ours in fields else did_you_mean(key, fields)
    kind = _kind(model)
    owners = [_kind(member) for member in map(_bare, _members(annotation)) if member is not model and key in _fields(member)]
    text = f"unknown key {key!r}"
    if kind and owners:
        text += f" in a stage of kind {kind}; it belongs to kind {' or '.join(map(str, owners))}"
    elif ours and ours != close:
        text += f" of another toolkit; {_instead(ours)}"
        close = None
    elif str(key) in RENAMED and close == ours and close not in parent:
        text += f", now called {close!r}"
    elif close:
        text += f"; did you mean {close!r}, which is there already?" if close in parent else f"; did you mean {close!r}?"
    elif (first := listing.setdefault(keys[:-1], str(key))) == key:
        text += f"; known keys are {listed(sorted(fields))}"
    else:
        text += f"; the known keys are listed at {first!r}"
    is_rename = bool(close) and not owners and close not in parent
    if is_rename and not ours and not resembles_closely(key, str(close)):
        return _Mistake(Finding(keys, text), keys)  # the value may belong to another key
    return _Mistake(Finding(keys, text), keys, rename=close if is_rename else None, is_certain=True)


def _instead(ours: str) -> str:
    reason = ours.removeprefix("nothing: ")
    return f"write {ours}" if reason == ours else f"delete it: {reason}"


def _wrong_key(keys: Keys, data: Any) -> _Mistake:
    """Report a key of a mapping that accepts only some keys."""
    *parent_keys, key = keys
    mapping = _meant(schema_at(data, parent_keys).annotation, {})
    choices = get_args(_bare(get_args(mapping)[0]))
    return _Mistake(Finding(keys, f"unknown key {key!r}; known keys are {listed(choices)}{suggestion(key, choices)}"), keys)


def _missing_key(keys: Keys, data: Any) -> _Mistake:
    node = schema_at(data, keys)
    text = f"key {keys[-1]!r} is missing; write {describe(node.annotation)}{node.about}"
    return _Mistake(Finding(keys, text), keys, value=_placeholder(node.annotation))


def _wrong_kind(keys: Keys, data: Any) -> _Mistake:
    stage = _value_at(data, keys)
    kinds = [kind for member in map(_bare, _members(schema_at(data, keys).annotation)) if (kind := _kind(member)) is not None]
    if "kind" not in stage:
        close = next((key for key in stage if did_you_mean(key, ["kind"]) and stage[key] in kinds), None)
        if close:
            return _Mistake(Finding((*keys, close), f"unknown key {close!r}; did you mean 'kind'?"), (*keys, close), rename="kind")
        text = f"key 'kind' is missing; write one of {listed(kinds)}"
    elif stage["kind"] is None:
        text = "kind: null removes a stage of the recipe that this one extends, and there is none of this name"
    else:
        close = FOREIGN_KINDS.get(str(stage["kind"])) or did_you_mean(stage["kind"], kinds)
        text = f"no kind of stage is called {found(stage['kind'])}; kinds are {listed(kinds)}"
        text += f"; did you mean {close!r}?" if close else ""
        if close:
            return _Mistake(Finding((*keys, "kind"), text), (*keys, "kind"), value=close, is_certain=True)
    name = stage.get("name") if isinstance(stage.get("name"), str) else "unnamed"
    return _Mistake(Finding((*keys, "kind"), text), keys, value={"name": name, "kind": "eval"})


def _wrong_value(keys: Keys, data: Any) -> _Mistake:
    value = _value_at(data, keys)
    node = schema_at(data, keys)
    text = f"expected {describe(node.annotation)}, found {found(value)}{_remedy(node.annotation, value)}{node.about}"
    return _Mistake(Finding(keys, text), keys, value=_stand_in(keys, data))


def _remedy(annotation: Any, value: Any) -> str:
    """Return what to write instead, if that is known."""
    bare = [_bare(member) for member in _members(annotation)]
    choices = [choice for member in bare if get_origin(member) is Literal for choice in get_args(member)]
    if isinstance(value, float) and int in bare and value.is_integer():
        return f"; write {int(value)}"
    if isinstance(value, str) and bool in bare:
        return f"; write {VALUE_FOR[value.lower()]}" if value.lower() in VALUE_FOR else suggestion(value, ["true", "false"])
    if isinstance(value, str) and {int, float} & set(bare) and value.replace(".", "", 1).replace("_", "").isdigit():
        return "; remove the quotes"
    if isinstance(value, int | float) and str in bare and not isinstance(value, bool):
        return f"; write '{value}', in quotes"
    return suggestion(value, choices) if isinstance(value, str) else ""


def _stand_in(keys: Keys, data: Any) -> Any:
    """Return a value to continue with: None, which means the default, if the key has one."""
    *parent_keys, key = keys
    field = _fields(_meant(schema_at(data, parent_keys).annotation, _value_at(data, parent_keys))).get(str(key))
    return None if field and not field.is_required() else _placeholder(schema_at(data, keys).annotation)


def _placeholder(annotation: Any) -> Any:
    """Return the smallest valid value of a required key."""
    bare = _bare(_members(annotation)[0])
    if _is_model(bare):
        return {key: _placeholder(_fields(bare)[key].annotation) for key in _required(bare)}
    if get_origin(bare) is Literal:
        return get_args(bare)[0]
    if get_origin(bare) is list:
        return [_placeholder(get_args(bare)[0])]
    return {str: "unnamed", int: 1, float: 1.0, bool: False}.get(bare, {})


# --- Walking the schema ---------------------------------------------------------------------------


def _is_another_member(name: str | int, annotation: Any, data: Any) -> bool:
    """Return whether ``name`` is pydantic's name for a member of a union that ``data`` does not belong to."""
    named = [member for member in map(_bare, _members(annotation)) if getattr(member, "__name__", "") == name]
    return bool(named) and _meant(annotation, data) not in named


def _below(annotation: Any, data: Any, key: str | int) -> SchemaNode:
    """Return what the schema expects one key further down."""
    meant = _meant(annotation, data)
    if _is_model(meant):
        field = _fields(meant).get(str(key))
        if not field:
            return SchemaNode(Any)
        hint = next((item.text for item in field.metadata if isinstance(item, Hint)), None)
        return SchemaNode(Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation, hint)
    arguments = get_args(meant)
    if get_origin(meant) is tuple and isinstance(key, int):
        return SchemaNode(arguments[min(key, len(arguments) - 1)])
    return SchemaNode(arguments[-1]) if get_origin(meant) in (list, dict) else SchemaNode(Any)


def _step(data: Any, key: str | int) -> Any:
    if isinstance(data, dict):
        return data.get(key)
    return data[key] if isinstance(data, list) and isinstance(key, int) and key < len(data) else None


def _value_at(data: Any, keys: Iterable[str | int]) -> Any:
    return reduce(_step, keys, data)


def _bare(annotation: Any) -> Any:
    return _bare(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation


def _limits(annotation: Any) -> list[Any]:
    """Return the metadata beside the type in Annotated: Gt(0), Le(1), a pattern."""
    if get_origin(annotation) is not Annotated:
        return []
    inner, *beside = get_args(annotation)
    return _limits(inner) + [limit for item in beside for limit in (item.metadata if isinstance(item, FieldInfo) else [item])]


def _members(annotation: Any) -> list[Any]:
    """Return the members of a union, or the annotation alone. Each may still be Annotated."""
    bare = _bare(annotation)
    if get_origin(bare) not in (Union, UnionType):
        return [annotation]
    return [member for argument in get_args(bare) for member in _members(argument)]


def _meant(annotation: Any, data: Any) -> Any:
    """Return the member of a union that ``data`` is most likely meant to be."""
    members = [_bare(member) for member in _members(annotation)]
    if isinstance(data, dict):
        models = [member for member in members if _is_model(member)]
        mappings = [member for member in members if get_origin(member) is dict]
        return max(models, key=lambda model: _likeness(model, data)) if models else [*mappings, *members][0]
    if isinstance(data, list):
        return next((member for member in members if get_origin(member) in (list, tuple)), members[0])
    return members[0]


def _likeness(model: type[BaseModel], data: dict[str, Any]) -> tuple[bool, int]:
    return _kind(model) is not None and _kind(model) == data.get("kind"), _num_known(model, tuple(data))


@lru_cache(maxsize=1024)  # every unknown key asks this about the whole mapping that it stands in
def _num_known(model: type[BaseModel], keys: tuple[str, ...]) -> int:
    """Return how many of the keys are, or resemble, keys of the model."""
    fields = _fields(model)
    return sum(did_you_mean(key, fields) is not None for key in keys)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


@cache
def _fields(model: Any) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()} if _is_model(model) else {}


def _kind(model: Any) -> str | None:
    """Return the kind of stage that a model describes, or None if it describes no stage."""
    field = _fields(model).get("kind")
    return str(get_args(field.annotation)[0]) if field else None


def describe(annotation: Any) -> str:
    """Return the annotation in words: "a whole number above 0 or null"."""
    members = _members(annotation)
    required = [_required(_bare(member)) for member in members]
    if len(members) > 1 and set.intersection(*map(set, required)):  # the kinds of stages
        return _mapping(key for key in required[0] if all(key in others for others in required))
    return " or ".join(dict.fromkeys(map(_describe_member, members)))


def _required(model: Any) -> list[str]:
    return [key for key, field in _fields(model).items() if field.is_required()]


def _mapping(keys: Iterable[str]) -> str:
    inside = ", ".join(f"{key}: ..." for key in keys)
    return f"a mapping {{{inside}}}" if inside else "a mapping"


def _describe_member(annotation: Any) -> str:
    bare, limits = _bare(annotation), _limits(annotation)
    names = ("gt", "ge", "lt", "le", "min_length", "max_length", "pattern")
    limit = {name: value for item in limits for name in names if (value := getattr(item, name, None)) is not None}
    if _is_model(bare):
        return _mapping(_required(bare))
    if get_origin(bare) is Literal:
        return f"one of {listed(get_args(bare))}"
    if get_origin(bare) is list:
        few = f" ({limit['min_length']} or more)" if limit.get("min_length") else ""
        return f"a list{few} of {describe(get_args(bare)[0])}"
    if get_origin(bare) is tuple:
        return listed(map(describe, get_args(bare)))
    if bare is str:
        pattern = f" that matches {limit['pattern']}" if "pattern" in limit else ""
        length = f", at most {limit['max_length']} characters" if "max_length" in limit else ""
        return f"text{pattern}{length}"
    words = {bool: "true or false", int: "a whole number", float: "a number", NoneType: "null"}.get(bare, "a mapping")
    if "ge" in limit and "le" in limit:
        return f"{words} from {limit['ge']} to {limit['le']}"
    phrases = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}
    return " ".join([words, *(f"{phrase} {limit[name]}" for name, phrase in phrases.items() if name in limit)])
