"""What users rely on stays as it is: commands, exit codes, JSON keys, recipe keys and defaults, files of a run, and the Python API.

Everything is compared with public_surface.json beside this file. Run this file as a program to write it anew after a change that is meant,
and put a line about the change into the changelog.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.conftest import Grpo, grpo, small_rl  # noqa: F401 - fixtures

GOLDEN = Path(__file__).with_name("public_surface.json")


def surface() -> dict[str, Any]:
    return {
        "commands": commands(),
        "exit_codes": exit_codes(),
        "python": python_api(),
        "rewards": shipped_rewards(),
        "recipe": recipe_keys(),
    }


def commands() -> dict[str, dict[str, Any]]:
    """Each command's arguments and options with their defaults."""
    import typer

    from grpo.cli import app

    def below(command: Any, name: str) -> dict[str, dict[str, Any]]:
        if hasattr(command, "commands"):
            return {key: value for child, sub in command.commands.items() for key, value in below(sub, f"{name} {child}".strip()).items()}
        return {name: {"/".join(param.opts): repr(param.default) for param in command.params if param.name != "help"}}

    return below(typer.main.get_command(app), "")


def exit_codes() -> str:
    from grpo.cli import app

    return str(app.info.epilog)


def python_api() -> dict[str, Any]:
    import grpo  # noqa: F811
    import rewards
    import rollout

    functions = {"grpo.run_recipe": grpo.run_recipe, "rewards.load_reward": rewards.load_reward, "rewards.reward": rewards.reward}
    return {
        "signatures": {name: str(inspect.signature(function)) for name, function in functions.items()},
        "exports": {package.__name__: sorted(package.__all__) for package in (grpo, rewards, rollout)},
        "reserved": sorted(rewards.RESERVED),
    }


def shipped_rewards() -> dict[str, Any]:
    from grpo.commands.reward import list_rewards

    return {row["name"]: {"columns": row["columns"], "settings": row["settings"]} for row in list_rewards() if row["from"] == "shipped"}


def recipe_keys() -> dict[str, dict[str, Any]]:
    """By section, every key with its default, or "required"; the texts of descriptions may change."""
    from grpo.config.key_reference import recipe_json_schema

    schema = recipe_json_schema()
    return {
        name: {key: item.get("default", "none") for key, item in definition.get("properties", {}).items()}
        for name, definition in schema["$defs"].items()
    }


def test_nothing_that_users_rely_on_changed() -> None:
    pinned = json.loads(GOLDEN.read_text(encoding="utf-8"))
    found = json.loads(json.dumps(surface()))
    for part in found:
        assert found[part] == pinned[part], f"{part} changed; if that is meant, run this file as a program and tell it in the changelog"


@pytest.mark.integration
def test_a_run_leaves_the_files_and_keys_that_it_always_left(grpo: Grpo, small_rl: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "run"
    result = grpo("run", small_rl, "rollout.engine=hf", "--out", out, "--json")
    assert result.returncode == 0, result.stderr
    pinned = json.loads(GOLDEN.read_text(encoding="utf-8"))["run"]
    assert left_by(out, json.loads(result.stdout)) == pinned


def left_by(out: Path, summary: dict[str, Any]) -> dict[str, Any]:
    (stage,) = summary["stages"]
    steps = [json.loads(line) for line in (out / "01-reason" / "metrics.jsonl").read_text().splitlines()]
    samples = [json.loads(line) for line in (out / "01-reason" / "samples.jsonl").read_text().splitlines()]
    return {
        "files": sorted({re.sub(r"[0-9a-f]{8,}", "HASH", path.relative_to(out).as_posix()) for path in out.rglob("*") if path.is_file()}),
        "summary": sorted(summary),
        "stage": sorted(stage),
        "stage_metrics": sorted(stage["metrics"]),
        "step_metrics": sorted(steps[-1]),
        "sample": sorted(samples[-1]),
    }


def write(run: Path | None) -> None:
    """Write the golden file; ``run`` is the folder of a finished run of the small recipe, or its part stays as it was."""
    kept = json.loads(GOLDEN.read_text(encoding="utf-8"))["run"] if GOLDEN.exists() else {}
    left = left_by(run, json.loads((run / "summary.json").read_text())) if run else kept
    GOLDEN.write_text(json.dumps({**surface(), "run": left}, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    import sys

    write(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
