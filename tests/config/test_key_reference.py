"""The schema for editors judges a recipe as loading does, and every key is described in it and on the pages of keys."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from grpo.config import Recipe
from grpo.config.key_reference import recipe_json_schema
from grpo.config.load import load_recipe
from grpo.config.problems import SourceLocation
from grpo.config.yaml_positions import read_yaml
from grpo.util.shipped_recipes import shipped_recipes
from scripts.write_recipe_keys import DOCS, PAGES, Section, example_of, own_keys, pages

SCHEMA = recipe_json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
SOUND = "{name: a, model: org/base, data: {s: {general: true}}, stages: [{name: b, kind: sft, data: s}]}"


def mistakes(text: str) -> list[str]:
    """The places that the schema complains about, in the text as the toolkit reads it."""
    tree, problems = read_yaml(text, SourceLocation("r.yaml", 1))
    assert tree and not problems
    return [error.json_path for error in VALIDATOR.iter_errors(tree.plain())]


def test_it_is_a_json_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA


@pytest.mark.parametrize("path", shipped_recipes().values(), ids=lambda path: path.stem)
def test_every_shipped_recipe_fits(path: Path) -> None:
    assert mistakes(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "places"),
    [
        (SOUND, []),
        (SOUND.replace("name: a", "nam: a"), ["$", "$"]),  # one key too many, one missing
        (SOUND.replace("general: true", "general: 1"), ["$.data.s.general"]),
        (SOUND.replace("data: s}", "data: s, epochs: 0}"), ["$.stages[0]"]),  # of the union of kinds, so no deeper
        (SOUND.replace("kind: sft", "kind: stf"), ["$.stages[0]"]),
        ("{extends: r1_tiny}", []),
        ("{extends: r1_tiny, name: mine, stages: [{name: student, teacher: base}, {name: sft, kind: null}]}", []),
        ("{extends: r1_tiny, data: {sums: null}, evaluation: {rows: 20}, rollout: {workers: null}}", []),
        ("{extends: r1_tiny, stagez: []}", ["$"]),
        ("{extends: r1_tiny, stages: [{name: student, steps: 12, stepz: 3}]}", ["$.stages[0]"]),
        ("{extends: r1_tiny, stages: [{kind: rl}]}", ["$.stages[0]"]),  # which stage?
    ],
)
def test_a_mistake_is_found_where_it_is(text: str, places: list[str]) -> None:
    assert mistakes(text) == places


def test_every_key_is_described_in_a_sentence() -> None:
    odd = [
        f"{name}.{key}: {item['description']}"
        for name, definition in SCHEMA["$defs"].items()
        for key, item in definition.get("properties", {}).items()
        if not re.fullmatch(r"[A-Z].*[.]'?", item["description"])
    ]
    assert odd == []


def test_the_pages_of_keys_are_up_to_date() -> None:
    written = {path.name: path.read_text(encoding="utf-8") for path in DOCS.glob("recipe-*.md")}
    assert written == pages(), "run python scripts/write_recipe_keys.py"


def test_every_section_of_the_schema_has_a_table() -> None:
    tabled = {section.model.__name__: section.model for page in PAGES for section in page.sections}
    assert SCHEMA["$defs"].keys() - tabled.keys() == {name for name in SCHEMA["$defs"] if name.endswith("Change")}
    for model in tabled.values():
        shown = {key for base in model.__mro__ if base in tabled.values() for key, _ in own_keys(base)}
        assert shown >= {field.alias or name for name, field in model.model_fields.items()}, model


@pytest.mark.parametrize("section", [section for page in PAGES for section in page.sections], ids=lambda section: section.heading)
def test_the_example_of_a_section_is_a_valid_recipe(section: Section, write: Callable[..., str]) -> None:
    sources = "{sums: {general: true}, gsm8k: {general: true}, heldout: {general: true}, mine: {general: true}}"
    write("base.yaml", f"{{name: a, model: org/base, data: {sources}, stages: [{{name: other, kind: sft, data: sums}}]}}")
    recipe = write("r.yaml", example_of(section) if section.model is Recipe else f"extends: base.yaml\n{example_of(section)}")
    load_recipe(recipe, check_inputs=False)


def test_the_command_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    from grpo.cli import app

    with pytest.raises(SystemExit) as end:
        app(["schema"])
    assert end.value.code == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert printed == SCHEMA
