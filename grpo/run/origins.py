"""Is what a stage was made from still what it was: the model it starts from, what earlier stages made, and what its rewards import and read?

Settings, data and reward files are part of a stage's fingerprint, which is known before anything runs. A model may be downloaded by the run, and
weights take time to read, so their digests stand beside the fingerprint: written when the stage begins, and compared by size, times and inode
first. What is not on this machine any more is not compared, nor what an earlier version of the toolkit made without such a record.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import sysconfig
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from grpo.config import AnyStage, DistillStage, PretrainedModel, Recipe, source_names
from grpo.util.model_folder import hub_copy, local_folder
from grpo.util.storage import file_digest

READ_OF_A_FOLDER = (
    ".safetensors",
    ".json",
    ".jinja",
    ".txt",
    ".model",
    ".jsonl",
    ".parquet",
)  # as much of a model as is fetched from the hub
Origins = dict[str, dict[str, dict[str, Any]]]  # where -> file -> its digest, size, times and inode


def origins_of(stage: AnyStage, recipe: Recipe, base: Path, made: Mapping[str, Path], known: Origins | None = None) -> Origins:
    """``made``: the folders of the base model, and of the models and data sets of earlier stages, by the names that stages use.

    ``known``: what an earlier start of the stage found; a file that looks untouched is not read again.
    """
    found: Origins = {}
    for where, name, path in _files_of(stage, recipe, base, made):
        stat, before = _stat(path), (known or {}).get(where, {}).get(name, {})
        is_untouched = all(before.get(key) == value for key, value in stat.items())
        found.setdefault(where, {})[name] = before if is_untouched else {**stat, "xxh3_128": _digest(path, *stat.values())}
    return found


def changed_since(known: Origins, stage: AnyStage, recipe: Recipe, base: Path, made: Mapping[str, Path]) -> list[str]:
    """Files that are others now than ``known``, were added, or are gone from a folder that is still there."""
    here: dict[str, dict[str, Path]] = {}
    for where, name, path in _files_of(stage, recipe, base, made):
        here.setdefault(where, {})[name] = path
    changed = []
    for where in known.keys() & here.keys():
        before, now = known[where], here[where]
        changed += [(where, name) for name in before.keys() ^ now.keys()]
        changed += [(where, name) for name in before.keys() & now.keys() if not _is_same(now[name], before[name])]
    return [f"{name} ({where})" for where, name in sorted(changed)]


def model_folder(model: object, base: Path) -> Path | None:
    """Where a pretrained model is on this machine: its folder, or the hub's local copy; None for one that is elsewhere or made by the run."""
    ref = model.path if isinstance(model, PretrainedModel) else model
    if not isinstance(ref, str):
        return None
    return local_folder(ref, base) or hub_copy(ref)


def _files_of(stage: AnyStage, recipe: Recipe, base: Path, made: Mapping[str, Path]) -> Iterator[tuple[str, str, Path]]:
    names = [stage.from_, getattr(stage, "teacher", None), *_made_data(stage, made)]
    for name in dict.fromkeys(name for name in names if isinstance(name, str) and name in made):
        ref = (recipe.model.path if isinstance(recipe.model, PretrainedModel) else recipe.model) if name == "base" else name
        if isinstance(ref, str):
            yield from _of_folder(ref, made[name])
    if isinstance(stage, DistillStage) and isinstance(stage.from_, PretrainedModel) and (student := model_folder(stage.from_, base)):
        yield from _of_folder(stage.from_.path, student)
    for use in _rewards(stage, recipe):
        yield from _of_code(use.use, base)
        for value in (use.model_extra or {}).values():
            path = _path_of(value, base)
            if path is not None and path.is_dir():
                yield from _of_folder(value, path)
            elif path is not None:
                yield str(Path(value).parent), path.name, path


def _path_of(setting: object, base: Path) -> Path | None:
    """The file or folder that a reward's setting names; None for any other setting, such as a judge's long prompt."""
    if not isinstance(setting, str) or not setting:
        return None
    path = os.path.join(base, os.path.expanduser(setting))
    return Path(path) if os.path.exists(path) else None  # unlike pathlib, both take every text


def _made_data(stage: AnyStage, made: Mapping[str, Path]) -> Iterator[str]:
    for key in ("data", "prompts"):
        yield from (name for name in source_names(getattr(stage, key, None)) if name in made)


def _of_folder(where: str, folder: Path) -> Iterator[tuple[str, str, Path]]:
    for path in sorted(folder.iterdir()):
        if path.suffix in READ_OF_A_FOLDER and path.is_file():
            yield where, path.name, path


def _rewards(stage: AnyStage, recipe: Recipe) -> Iterator[Any]:
    yield from getattr(stage, "rewards", [])
    for evaluation in (recipe.evaluation, getattr(stage, "evaluation", None)):
        if evaluation is not None:
            yield from (use for use in (evaluation.accuracy, evaluation.lenient, evaluation.well_formed) if use is not None)


def _of_code(ref: str, base: Path) -> Iterator[tuple[str, str, Path]]:
    """The local modules that a reward of the user's own imports, and its own where it is named by module: nothing that is installed."""
    where, colon, _ = ref.rpartition(":")
    if not colon:
        return
    if where.endswith(".py") or "/" in where:
        start = (base / Path(where).expanduser()).resolve()
        found = set(_imported(start, start.parent)) - {start}
        root = start.parent
    else:
        top = where.partition(".")[0]
        spec = importlib.util.find_spec(top)
        if spec is None or spec.origin is None or spec.origin.startswith((sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"))):
            return
        root = Path(spec.origin).parent.parent if spec.submodule_search_locations else Path(spec.origin).parent
        found = {file for module in _module_files(root, where) for file in _imported(module, root)}
    for file in sorted(found):
        yield f"imported by {where}", file.relative_to(root).as_posix(), file


def _imported(file: Path, root: Path, seen: set[Path] | None = None) -> set[Path]:
    """``file`` and what it imports from ``root``, directly or not."""
    seen = set() if seen is None else seen
    if file in seen or not file.is_file() or not file.is_relative_to(root):
        return seen
    seen.add(file)
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except (SyntaxError, ValueError):
        return seen
    for node in nodes:
        names: list[str] = []
        where = root
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            where = file.parents[min(node.level, len(file.parents)) - 1] if node.level else root
            names = [".".join(filter(None, [node.module, alias.name])) for alias in node.names]
        for name in names:
            for module in _module_files(where, name):
                _imported(module, root, seen)
    return seen


def _module_files(root: Path, name: str) -> Iterator[Path]:
    """The files that importing a dotted name runs, as far as they are below ``root``."""
    folder = root
    for part in name.split("."):
        yield from (path for path in (folder / part / "__init__.py", folder / f"{part}.py") if path.is_file())
        folder = folder / part


def _stat(path: Path) -> dict[str, int]:
    stat = path.stat()
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns, "inode": stat.st_ino}


def _is_same(path: Path, known: Mapping[str, Any]) -> bool:
    now = _stat(path)
    if now["bytes"] != known.get("bytes"):
        return False
    return all(known.get(key) == value for key, value in now.items()) or _digest(path, *now.values()) == known.get("xxh3_128")


@lru_cache(maxsize=4096)
def _digest(path: Path, *stat: int) -> str:
    """Kept for this process: several stages may start from the same model."""
    return file_digest(path)
