"""Which stage starts from what, which are done already, and does what is done still fit the recipe?"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo.config import FILE_KEYS, AnyStage, DistillStage, Recipe, RejectStage, RlStage, SftStage, kept_alive, source_names
from grpo.config.foreign_keys import RENAMED
from grpo.config.load import LoadedRecipe
from grpo.data.files import data_files
from grpo.errors import RecipeError
from grpo.run.folder import RunFolder
from grpo.run.origins import changed_since, model_folder
from grpo.util.storage import file_digest

SHARED = ("seed", "model", "template", "template_options", "tags", "data", "evaluation", "reward_deadline_s")  # what every stage depends on
HARMLESS = ("checkpoint_every", "keep_checkpoints", "eval_every")
MAY_GROW = ("stage.steps", "stage.epochs")  # of a stage that was begun: what is done of it stays as it is


@dataclass(frozen=True)
class PlannedStage:
    """A stage and where it stands. ``identity``: every setting that its result follows from, by dotted key."""

    number: int
    stage: AnyStage
    start: str
    inputs: tuple[str, ...]
    makes: str
    identity: Mapping[str, Any]
    fingerprint: str
    is_done: bool

    @property
    def sizes(self) -> str:
        """Its size in the user's units."""
        stage = self.stage
        if isinstance(stage, RlStage):
            samples = stage.prompts_per_step * stage.samples_per_prompt
            per_update = samples // stage.updates_per_rollout
            updates = f"{stage.updates_per_rollout} updates of {per_update:,}" if stage.updates_per_rollout > 1 else "1 update"
            drawn = f"{stage.prompts_per_step:,} prompts x {stage.samples_per_prompt} samples = {samples:,} sequences"
            return f"{stage.steps:,} step{'s' if stage.steps > 1 else ''} of {drawn} = {updates}"
        if isinstance(stage, RejectStage):
            return f"{stage.samples_per_prompt} samples a prompt, at most {stage.keep.per_prompt} kept"
        if isinstance(stage, SftStage | DistillStage) and stage.curriculum is not None:
            phases = stage.curriculum.phases
            sizes = [f"{phase.updates} of {phase.batch_size or stage.batch_size}" for phase in phases]
            return f"{len(phases)} phase{'s' if len(phases) > 1 else ''}, in updates of so many sequences: {', '.join(sizes)}"
        if isinstance(stage, SftStage | DistillStage):
            return f"{stage.epochs} epoch{'s' if stage.epochs > 1 else ''} in updates of {stage.batch_size} sequences"
        return "measured"


def make_plan(loaded: LoadedRecipe, run: RunFolder, redo: str | None = None) -> list[PlannedStage]:
    """The stages in order. Raises RecipeError where a finished stage was made by other settings, naming them.

    ``redo`` names a stage that will be made again, with all after it: whatever was made of these does not matter.
    A stage is done when its record and its output are there and every stage that it uses is done.
    """
    recipe = loaded.recipe
    common = recipe.model_dump(mode="json", by_alias=True, include=set(SHARED))
    common["rollout"] = recipe.rollout.model_dump(mode="json", include={"engine", "dtype", "script", "max_staleness", "weight_change"})
    common["trainer"] = recipe.trainer.model_dump(mode="json", exclude={"offload_optimizer"})
    planned: list[PlannedStage] = []
    fingerprints: dict[str, str] = {}
    problems: list[str] = []
    done: set[str] = set()
    redoing = False
    base = model_folder(recipe.model, loaded.base)
    made: dict[str, Path] = {} if base is None else {"base": base}
    for number, stage in enumerate(recipe.stages, start=1):
        used = [*inputs_of(stage), *_kept_alive(recipe, stage)]
        inputs = tuple(dict.fromkeys([*used, *_measured_in(recipe, used)]))
        settings = stage.model_dump(mode="json", by_alias=True, exclude=set(HARMLESS))
        identity = dict(_flat({**common, "stage": settings, "files": _files(loaded, stage)}))
        fingerprint = _hash([identity, [fingerprints.get(name, name) for name in inputs]])
        fingerprints[stage.name] = fingerprint
        redoing = redoing or stage.name == redo
        record = None if redoing else run.record(number, stage.name)
        begun = record or (None if redoing else run.start(number, stage.name))
        if begun is not None and begun["fingerprint"] != fingerprint and not problems:
            before, absent = begun["identity"], object()  # a key that only one version has may be null there
            changed = {key for key in identity.keys() | before.keys() if identity.get(key, absent) != before.get(key, absent)}
            grown = {key for key in changed & set(MAY_GROW) & identity.keys() & before.keys() if identity[key] > before[key]}
            if record is not None or not changed or changed - grown:
                what = _what_changed(changed) if changed else "a stage before it was changed"
                problems.append(
                    f"stage {stage.name!r} in {run.path} is {'finished' if record else 'half done'}, but the recipe is another now ({what}); "
                    f"undo the change, choose another --out, or make it again with --redo {stage.name}"
                )
        if begun is not None and not problems and (files := changed_since(begun.get("origins", {}), stage, recipe, loaded.base, made)):
            shown = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
            problems.append(
                f"stage {stage.name!r} in {run.path} is {'finished' if record else 'half done'}, but what it was made from changed since: {shown}; "
                f"undo the change, choose another --out, or make it again with --redo {stage.name}"
            )
        if begun is not None and record is None and begun["places"] != places(recipe):
            problems.append(
                f"stage {stage.name!r} in {run.path} is half done, with {_told(begun['places'])}, and the recipe says {_told(places(recipe))} now, "
                f"so it could not go on bit for bit; undo the change, choose another --out, or make it again with --redo {stage.name}"
            )
        has_output = record is not None and (record["output"] is None or (run.path / record["output"]).exists())
        is_done = has_output and {name for name in inputs if name in fingerprints} <= done
        if is_done:
            done.add(stage.name)
            if record is not None and record["output"] is not None:
                made[stage.name] = run.path / record["output"]
        planned.append(PlannedStage(number, stage, start_of(stage), inputs, makes(stage), identity, fingerprint, is_done))
    if problems:
        raise RecipeError(problems)
    return planned


def places(recipe: Recipe) -> dict[str, Any]:
    """On what a half-done stage's batches, and so its bits, depend besides its identity. A finished stage does not care."""
    return {"rollout.workers": recipe.rollout.workers, "deterministic": recipe.deterministic}


def _what_changed(changed: set[str]) -> str:
    """The changed keys, those that earlier versions called otherwise with their names of today."""
    renamed = {key: key.removesuffix(old) + new for key in changed for old, new in RENAMED.items() if key.rpartition(".")[2] == old}
    others = sorted(changed - {*renamed, *renamed.values()})
    said = [f"changed since: {', '.join(others)}"] if others or not renamed else []
    if renamed:
        said.append(f"renamed in this version: {', '.join(f'{old} to {new}' for old, new in sorted(renamed.items()))}")
    return "; ".join(said)


def _told(places: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in places.items())


def start_of(stage: AnyStage) -> str:
    """The model that a stage starts from, as a person would say it."""
    if isinstance(stage.from_, str):
        return stage.from_
    return stage.from_.make if hasattr(stage.from_, "make") else stage.from_.path


def makes(stage: AnyStage) -> str:
    return {"sft": "model", "rl": "model", "distill": "model", "reject": "dataset", "eval": "scores"}[stage.kind]


def inputs_of(stage: AnyStage) -> Iterator[str]:
    """Names of models, datasets and data sources that a stage uses."""
    if isinstance(stage.from_, str):
        yield stage.from_
    for key in ("data", "prompts", "teacher"):
        yield from source_names(getattr(stage, key, None))
    for mix in getattr(stage, "mix", []):
        yield mix.use


def _measured_in(recipe: Recipe, names: Iterable[str]) -> list[str]:
    """The stages that measured the rows of these sources."""
    sources = [recipe.data[name] for name in names if name in recipe.data]
    return [source.measured_in for source in sources if source.measured_in is not None]


def _kept_alive(recipe: Recipe, stage: AnyStage) -> list[str]:
    """The data of earlier stages that a stage replays or holds its weights for."""
    kept = kept_alive(recipe, stage) if isinstance(stage, SftStage | DistillStage) else []
    return [name for other in kept for name in source_names(other.data)]


def _files(loaded: LoadedRecipe, stage: AnyStage) -> dict[str, str]:
    """Hashes of the user's own files that a result follows from: rewards, algorithms, generators, scripts, templates, data."""
    recipe = loaded.recipe
    uses = [use.use for use in getattr(stage, "rewards", [])]
    for evaluation in (recipe.evaluation, getattr(stage, "evaluation", None)):
        if evaluation is not None:
            graders = (evaluation.accuracy, evaluation.lenient, evaluation.well_formed)
            uses += [use.use for use in graders if use is not None]
    refs = [
        *uses,
        getattr(stage, "algorithm", ""),
        recipe.rollout.script or "",
        *(source.generator or "" for source in recipe.data.values()),
    ]
    names = [ref.rpartition(":")[0] for ref in refs if ".py:" in ref] + [recipe.template]
    for source in recipe.data.values():
        given = {**source.given, "measured": source.measured}
        names += [given[key] for key in FILE_KEYS if given.get(key)]
    paths = {name: loaded.base / name for name in names}
    for folder in [name for name, path in paths.items() if path.is_dir()]:
        paths |= {file.relative_to(loaded.base / folder).as_posix(): file for file in data_files(loaded.base / folder)}
    return {name: file_digest(path) for name, path in paths.items() if path.is_file()}


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _hash(value: Any) -> str:
    import xxhash

    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True, default=str).encode())
