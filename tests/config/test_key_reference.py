"""Does the schema for editors judge a recipe as loading does, and does every key say what it means?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from grpo.config.key_reference import keys_page, recipe_json_schema
from grpo.config.problems import Place
from grpo.config.yaml_positions import read_yaml
from grpo.util.shipped_recipes import shipped_recipes
from scripts.write_recipe_keys import PAGE

SCHEMA = recipe_json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
SOUND = "{name: a, model: org/base, data: {s: {general: true}}, stages: [{name: b, kind: sft, data: s}]}"


def mistakes(text: str) -> list[str]:
    """The places that the schema complains about, in the text as the toolkit reads it."""
    tree, problems = read_yaml(text, Place("r.yaml", 1))
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


def test_every_key_says_what_it_means() -> None:
    """In config.py as Field(description=...) where the words also belong at the end of an error message, else in keys.MEANINGS."""
    silent = [
        f"{name}.{key}"
        for name, definition in SCHEMA["$defs"].items()
        for key, item in definition.get("properties", {}).items()
        if not item["description"]
    ]
    assert silent == []


def test_the_page_of_keys_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == keys_page(), "run python scripts/write_recipe_keys.py"


def test_the_command_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    from grpo.cli import app

    with pytest.raises(SystemExit) as end:
        app(["schema"])
    assert end.value.code == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert printed == SCHEMA
