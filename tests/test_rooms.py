"""Do imports point one way? scripts, examples, tests -> grpo -> {rewards, rollout}, and downwards only inside grpo."""

from __future__ import annotations

import ast
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A module may import its own room and any lower row, never its own row's neighbours.
ROWS_OF_GRPO: list[set[str]] = [
    {"cli"},
    {"commands"},
    {"pipeline"},
    {"stages"},
    {"rl"},
    {"evaluation"},
    {"plan"},
    {"resources"},
    {"run"},
    {"trainer", "report", "data"},
    {"config"},
    {"algorithm"},
    {"util"},
    {"types", "errors"},
]
ROW_OF = {room: number for number, row in enumerate(ROWS_OF_GRPO) for room in row}
ALGORITHM_MAY_IMPORT = {"algorithm", "util", "types", "errors"}
MODULES_AT_THE_ROOT = 6


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports_of(source: str, package: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import in ``source``, lazy and type-only ones too. ``from a import b`` gives a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def imports_of_room(folder: str) -> Iterator[tuple[str, str, str]]:
    """(room of grpo or "", file:line, dotted name) of every import in a top-level folder."""
    for path in python_files(folder):
        relative = path.relative_to(ROOT)
        room = Path(*relative.parts[1:2]).stem if folder == "grpo" else ""
        for line, name in imports_of(path.read_text(encoding="utf-8"), ".".join(relative.parent.parts)):
            yield room, f"{relative}:{line}", name


def offenders(folder: str, forbidden: set[str]) -> list[str]:
    return [f"{where} imports {name}" for _, where, name in imports_of_room(folder) if name.split(".")[0] in forbidden]


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("rewards", {"torch", "grpo", "rollout", "scripts", "examples", "tests"}),
        ("rollout", {"grpo", "rewards", "scripts", "examples", "tests"}),
        ("grpo", {"scripts", "examples", "tests"}),
    ],
)
def test_a_room_imports_nothing_above_it(folder: str, forbidden: set[str]) -> None:
    assert python_files(folder), f"{folder}/ is empty"
    assert offenders(folder, forbidden) == []


def test_every_module_of_grpo_has_its_row() -> None:
    found = {path.stem for path in (ROOT / "grpo").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()} - {"__init__"}
    assert sorted(found - ROW_OF.keys()) == [], "say in ROWS_OF_GRPO where these belong"


def test_few_modules_are_at_the_root_of_grpo() -> None:
    assert len(list((ROOT / "grpo").glob("*.py"))) <= MODULES_AT_THE_ROOT


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in all_python_files()}
    del modules["grpo"]  # the front door offers run_recipe, and is imported by all
    imports = {
        name: {
            module
            for _, found in imports_of(path.read_text(encoding="utf-8"), name)
            if (module := nearest(found, modules)) not in (name, "")
        }
        for name, path in modules.items()
    }
    assert list(circles(imports)) == []


def all_python_files() -> list[Path]:
    return [path for folder in ("grpo", "rewards", "rollout") for path in python_files(folder)]


def nearest(name: str, modules: Container[str]) -> str:
    """The module that holds ``name``, a module's name or one in it; "" where it is none of ours."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def circles(imports: Mapping[str, set[str]]) -> Iterator[list[str]]:
    """What is left of the modules once those that import nothing left are taken away, again and again."""
    left = {name: set(targets) for name, targets in imports.items()}
    while done := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in done:
            del left[name]
    if left:
        yield sorted(left)


def test_inside_grpo_imports_point_downwards() -> None:
    wrong = []
    for room, where, name in imports_of_room("grpo"):
        target = name.split(".")[1] if name.startswith("grpo.") else ""
        if target not in ROW_OF or room not in ROW_OF or target == room:  # __init__ is the front door, and `from grpo import __version__`
            continue
        if ROW_OF[target] <= ROW_OF[room]:
            wrong.append(f"{where}: grpo.{room} imports {name}")
    assert wrong == []


def test_the_algorithm_is_pure_mathematics() -> None:
    """No configuration, no logging, no printing: what it needs comes as arguments, what it finds goes back as values."""
    wrong = []
    for room, where, name in imports_of_room("grpo"):
        top, _, rest = name.partition(".")
        if room == "algorithm" and (
            top in {"logging", "ray", "vllm"} or (top == "grpo" and rest.split(".")[0] not in ALGORITHM_MAY_IMPORT)
        ):
            wrong.append(f"{where} imports {name}")
    for path in python_files("grpo/algorithm"):
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        wrong += [f"{path.name}:{node.lineno} prints" for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]
    assert wrong == []


def test_imports_are_found_wherever_they_stand() -> None:
    """The rules above are only as good as this: inside functions, under TYPE_CHECKING, relative, and renamed."""
    source = """
import torch.nn as nn
from . import table
from ..config import Recipe as R
def late():
    from rollout import types
if TYPE_CHECKING:
    import ray
"""
    found = {name for _, name in imports_of(source, "grpo.algorithm")}
    assert found == {"torch.nn", "grpo.algorithm.table", "grpo.config.Recipe", "rollout.types", "ray"}
