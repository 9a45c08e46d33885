"""The JSON schema of a recipe, with which editors complete and check keys. docs/recipe-keys.md shows the same keys to people."""

from __future__ import annotations

from typing import Any

from grpo.config import Recipe

JsonSchema = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"
STAGES = ("SftStage", "RlStage", "RejectStage", "DistillStage", "EvalStage")
CHANGE = "Change"  # the suffix of definitions that only change the recipe that is extended
NULL: JsonSchema = {"type": "null"}
EXTENDS: JsonSchema = {
    "type": "string",
    "description": "Recipe that this one changes: a file, or the name of a shipped recipe. A null in this recipe removes a key of that one.",
}


def recipe_json_schema() -> JsonSchema:
    """Return the JSON schema of a recipe file, every key with its description.

    A file that extends another only needs the keys that it changes, and null removes a key.
    """
    recipe = Recipe.model_json_schema(by_alias=True)
    definitions: JsonSchema = {**recipe.pop("$defs"), "Recipe": recipe}
    for definition in definitions.values():
        definition.pop("title", None)
        for item in definition.get("properties", {}).values():
            item.pop("title", None)
    changes = {name + CHANGE: _change(definition) for name, definition in definitions.items() if name not in STAGES}
    stage = _change({"type": "object", "properties": _any_of_the_kinds(definitions), "additionalProperties": False})
    changes["Stage" + CHANGE] = {**stage, "required": ["name"]}
    extending = changes["Recipe" + CHANGE]
    extending["properties"] = {
        "extends": EXTENDS,
        **extending["properties"],
        "stages": {"type": "array", "items": _ref("Stage" + CHANGE), "description": recipe["properties"]["stages"]["description"]},
    }
    return {
        "$schema": DIALECT,
        "title": "grpo-toolkit recipe",
        "type": "object",
        "if": {"required": ["extends"]},
        "then": _ref("Recipe" + CHANGE),
        "else": _ref("Recipe"),
        "$defs": {**definitions, **changes},
    }


def _any_of_the_kinds(definitions: JsonSchema) -> JsonSchema:
    """Return every key that any kind of stage has, with the schema of one kind, or any of the schemas of several."""
    said: dict[str, list[JsonSchema]] = {}
    for stage in STAGES:
        for key, item in definitions[stage]["properties"].items():
            if item not in said.setdefault(key, []):
                said[key].append(item)
    return {key: items[0] if len(items) == 1 else {"anyOf": items, "description": items[0]["description"]} for key, items in said.items()}


def _change(schema: JsonSchema) -> JsonSchema:
    """Return the schema with no key required, and null allowed for every key."""
    changed = _of_changes({key: value for key, value in schema.items() if key != "required"})
    if "properties" in changed:
        changed["properties"] = {
            key: {"anyOf": [item, NULL], "description": item["description"]} for key, item in changed["properties"].items()
        }
    return changed


def _of_changes(value: Any) -> Any:
    if isinstance(value, dict):
        renamed = {key: f"{item}{CHANGE}" if key == "$ref" else _of_changes(item) for key, item in value.items()}
        named = renamed.get("additionalProperties")  # the values under names that the author chooses
        return {**renamed, "additionalProperties": {"anyOf": [named, NULL]}} if isinstance(named, dict) else renamed
    return [_of_changes(item) for item in value] if isinstance(value, list) else value


def _ref(name: str) -> JsonSchema:
    return {"$ref": f"#/$defs/{name}"}
