"""`grpo export`: a model of a run, whole and by itself, as a folder to hand on, with a card that says where it comes from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from grpo import __version__
from grpo.errors import CheckpointError
from grpo.plan.models import model_problems
from grpo.report.run_reader import RunContents, StageContents, read_run
from grpo.util.model_folder import ADAPTER, CONFIG
from grpo.util.text import listed, suggestion

CARD = "README.md"
# What belongs to a model and can hold no code: weights as safetensors, settings, the tokenizer's files. Never a pickle.
PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")


@dataclass(frozen=True)
class Exported:
    """Where the model is now, and what was done: "copied" or "merged" (an adapter folded into its base)."""

    path: Path
    source: Path
    how: str
    num_bytes: int


def export_model(ref: str, to: str, stage: str | None = None) -> Exported:
    """Copy the model that ``ref`` means to the new folder ``to``; an adapter is folded into its base.

    ref    a run's folder (its last model, or that of ``stage``), a stage's folder, a model's folder, or an adapter's
    Raises CheckpointError where there is no such model, it is damaged, or ``to`` is there already.
    """
    source = find_model(Path(ref), stage)
    target = Path(to)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"--to {to} is there already; name a folder that is not, or remove it")
    building = target.absolute().with_name(target.absolute().name + ".exporting")
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir(parents=True)
        how = "merged" if (source / ADAPTER).exists() else "copied"
        (_merge if how == "merged" else _copy)(source, building)
        (building / CARD).write_text(card(source), encoding="utf-8")
        if target.is_dir():
            target.rmdir()  # empty, as was looked at above
        building.rename(target)
    except OSError as error:
        raise CheckpointError(f"cannot write {to}: {error.strerror or error}; choose another folder, or make room") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return Exported(target, source, how, sum(file.stat().st_size for file in target.iterdir()))


def find_model(path: Path, stage: str | None = None) -> Path:
    """The folder of the model that ``path`` means. Raises CheckpointError with what is there instead."""
    if not path.is_dir():
        raise CheckpointError(f"{path} is no folder; name a run's folder, a stage's, a model's or an adapter's")
    if (path / "summary.json").exists():
        return _model_of_run(path, stage)
    if stage is not None:
        raise CheckpointError(f"--stage {stage} is for a run's folder, and {path} has no summary.json")
    for candidate in (path, path / "model"):
        if (candidate / CONFIG).exists() or (candidate / ADAPTER).exists():
            return candidate
    there = listed(sorted(item.name for item in path.iterdir())[:10])
    raise CheckpointError(f"{path} holds no model (no {CONFIG}, no {ADAPTER}); found {there}")


def _model_of_run(run: Path, wanted: str | None) -> Path:
    stages = read_run(run).stages
    made = {stage.name: run / stage.output for stage in stages if stage.makes_model and stage.output and (run / stage.output).is_dir()}
    if wanted is None and made:
        return list(made.values())[-1]
    if wanted in made:
        return made[wanted]
    if not made:
        raise CheckpointError(f"{run}: no stage has made a model yet; its stages are {listed(stage.name for stage in stages)}")
    raise CheckpointError(f"--stage {wanted}: no such model in {run}; there are {listed(made)}{suggestion(wanted, made)}")


def _copy(source: Path, target: Path) -> None:
    _check(source)
    for file in sorted({file for pattern in PATTERNS for file in source.glob(pattern) if file.is_file()}):
        shutil.copyfile(file, target / file.name)


def _check(folder: Path) -> None:
    if problems := model_problems(folder, str(folder)):
        raise CheckpointError("\n".join(problems))


def _merge(adapter: Path, target: Path) -> None:
    import torch
    from huggingface_hub import snapshot_download
    from peft import PeftModel

    from grpo.errors import TrainingError
    from grpo.trainer.export import checkpoint_weights, write_folder
    from grpo.trainer.loading import loaded

    named = json.loads((adapter / ADAPTER).read_text(encoding="utf-8")).get("base_model_name_or_path")
    try:
        base = Path(named) if Path(named).is_dir() else Path(snapshot_download(named, allow_patterns=list(PATTERNS)))
        _check(base)
        model = loaded(base, dtype=torch.float32)
        PeftModel.from_pretrained(model, adapter)
    except (OSError, ValueError, TypeError, RuntimeError, TrainingError) as error:
        if isinstance(error, CheckpointError):
            raise
        first = next(iter(str(error).splitlines()), "")
        raise CheckpointError(f"{adapter} cannot be folded into its base {named!r}: {first}; is the base still there?") from error
    write_folder(checkpoint_weights(model), model, base, target)


# --- The card -------------------------------------------------------------------------------------


def card(source: Path) -> str:
    """The model card: what the run's own records say of the model, and what its author has to add."""
    run = next((parent for parent in source.absolute().parents if (parent / "summary.json").exists()), None)
    if run is None:
        return "\n".join([_front_matter(None), f"# {source.absolute().name}", "", _made_by(), "", TO_ADD])
    contents = read_run(run)
    recipe = yaml.safe_load(contents.recipe_yaml) if contents.recipe_yaml else {}
    stage = next(
        (stage for stage in contents.stages if stage.output and (run / stage.output).resolve().parent == source.resolve().parent), None
    )
    lines = [_front_matter(recipe.get("model")), f"# {contents.name}{f', stage {stage.name}' if stage else ''}", "", _made_by()]
    if contents.description:
        lines += ["", _plain(contents.description)]
    lines += ["", *_lineage(contents, recipe, stage), "", TO_ADD]
    return "\n".join(lines)


TO_ADD = """\
## To be added by its author

- What it is for, and what it is not for
- The licence, which the base model's and the data's allow
- What it was found to do wrong
"""


def _made_by() -> str:
    return f"Made with grpo-toolkit {__version__}."


def _front_matter(model: Any) -> str:
    path = model if isinstance(model, str) else model.get("path") if isinstance(model, Mapping) else None
    is_hub_id = isinstance(path, str) and path.count("/") == 1 and not Path(path).exists() and not path.startswith(("/", "."))
    about = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["grpo-toolkit", "reinforcement-learning"]}
    return f"---\n{yaml.safe_dump({**({'base_model': path} if is_hub_id else {}), **about}, sort_keys=False)}---\n"


def _lineage(contents: RunContents, recipe: Mapping[str, Any], last: StageContents | None) -> Iterator[str]:
    """The stages that the model comes from, in order, with what each reported on the held-out set."""
    used = _ancestors(recipe, last.name) if last else {stage.name for stage in contents.stages}
    yield "## Lineage"
    yield ""
    yield "| stage | kind | from | data | held-out accuracy, before → after |"
    yield "|---|---|---|---|---|"
    for stage in contents.stages:
        if stage.name in used:
            planned = next((item for item in recipe.get("stages", []) if item["name"] == stage.name), {})
            cells = [stage.name, stage.kind, stage.start, ", ".join(_data(planned)), _accuracy(stage)]
            yield f"| {' | '.join(map(_plain, cells))} |"
    yield ""
    base, sources = json.dumps(recipe.get("model"), ensure_ascii=False), ", ".join(recipe.get("data") or {})
    yield f"The base model: {_plain(base)}. Data sources: {_plain(sources)}."


def _ancestors(recipe: Mapping[str, Any], name: str) -> set[str]:
    """The stage and all stages whose models or datasets it follows from."""
    stages = {stage["name"]: stage for stage in recipe.get("stages", [])}
    found: set[str] = set()
    waiting = [name]
    while waiting:
        if (current := waiting.pop()) in stages and current not in found:
            found.add(current)
            stage = stages[current]
            waiting += [item for item in (stage.get("from"), stage.get("teacher"), *_data(stage)) if isinstance(item, str)]
    return found


def _data(stage: Mapping[str, Any]) -> list[str]:
    named = [stage.get("data"), stage.get("prompts")]
    return [name for item in named for name in ([item] if isinstance(item, str) else item or [])]


def _accuracy(stage: StageContents) -> str:
    before, after = stage.before.get("accuracy"), stage.after.get("accuracy")
    if after is None:
        return "not measured"
    error = stage.after.get("accuracy_se")
    return f"{f'{before:.3f} → ' if before is not None else ''}{after:.3f}{f' ± {error:.3f}' if error is not None else ''}"


def _plain(text: str) -> str:
    """Text that neither ends a cell nor becomes markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
