"""What is there to read in a run's folder, finished or not? Pieces that are missing, torn or of another shape are left out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from grpo.report.jsonl_index import Lines, Row
from grpo.report.samples import LARGEST, Numbers, SamplesShown, numbers_of, read_samples

NUM_HELD_OUT, MAX_ALARMS = 4, 100
RENAMED_METRICS = {"reward/equal_groups_frac": "reward/zero_variance_groups_frac"}  # of runs of earlier versions


@dataclass(frozen=True)
class StageContents:
    """A stage as far as it got. ``status``: complete, failed, unfinished (begun) or pending; ``before`` and ``after``: its two models' scores.

    ``heldout``: the data these were measured on; ``evaluated``: the model of ``before``. ``missing``: what of its files is not there or torn.
    """

    number: int
    name: str
    kind: str
    status: str
    start: str
    seconds: float | None
    output: str | None
    metrics: Numbers
    before: Numbers
    after: Numbers
    steps: list[Numbers]
    num_steps_planned: int | None
    heldout: str
    evaluated: str
    samples: SamplesShown
    alarms: Sequence[Row]
    lineage: Row
    missing: Sequence[str]

    @property
    def makes_model(self) -> bool:
        return self.kind in ("sft", "rl", "distill")


@dataclass(frozen=True)
class RunContents:
    folder: Path
    name: str
    description: str
    status: str
    error: str
    recipe_yaml: str
    recipe: Row = field(repr=False)
    stages: list[StageContents]
    held_out: Sequence[HeldOut]
    starts: Sequence[Row]
    last_written: float | None
    missing: Sequence[str]


@dataclass(frozen=True)
class HeldOut:
    """A problem of the held-out set, and what each model said: (model, item)."""

    question: str
    answer: str | None
    said: Sequence[tuple[str, Row]] = field(repr=False)


def read_run(folder: Path) -> RunContents:
    summary = _mapping(_json(folder / "summary.json"))
    recipe_yaml = _text(folder / "recipe.yaml")
    recipe = _mapping(_yaml(recipe_yaml))
    planned = _list(recipe.get("stages"))
    summaries = [_mapping(stage) for stage in _list(summary.get("stages"))]
    found = {path.name: path for path in sorted(folder.glob("[0-9][0-9]-*")) if path.is_dir()}
    numbers = sorted({*range(1, max(len(planned), len(summaries)) + 1), *(int(name[:2]) for name in found)})
    stages = [_read_stage(folder, found, recipe, number, _at(summaries, number)) for number in numbers]
    name = summary.get("recipe") or recipe.get("name") or folder.resolve().name
    return RunContents(
        folder=folder,
        name=str(name),
        description=str(recipe.get("description") or ""),
        status=str(summary.get("status") or "unfinished"),
        error=_why(summary),
        recipe_yaml=recipe_yaml,
        recipe=recipe,
        stages=stages,
        held_out=_held_out(folder, stages),
        starts=[_mapping(start) for start in _list(_mapping(_json(folder / "lineage.json")).get("starts"))],
        last_written=max((file.stat().st_mtime for file in folder.glob("*/metrics.jsonl")), default=None),
        missing=_missing(folder, summary, recipe),
    )


def _status(record: Row, known: Row, is_begun: bool) -> str:
    if record or known.get("status") == "complete":
        return "complete"
    return "failed" if known.get("status") == "failed" else "unfinished" if is_begun else "pending"


def _why(summary: Row) -> str:
    """Why a run failed, and in which stage; "" where it did not, or before that was kept."""
    error = _mapping(summary.get("error"))
    if not error:
        return ""
    stages = [str(stage.get("name")) for stage in map(_mapping, _list(summary.get("stages"))) if stage.get("status") == "failed"]
    return f"{f'stage {stages[0]}: ' if stages else ''}{error.get('kind', '?')}: {error.get('message', '')}"


def _missing(folder: Path, summary: Row, recipe: Row) -> list[str]:
    """What a run writes and this folder does not hold, or not whole."""
    missing = []
    for file, found, otherwise in (
        ("recipe.yaml", recipe, "names and kinds of stages are taken from what they wrote"),
        ("summary.json", summary, "no stage has ended yet, or it was lost"),
    ):
        if not found:
            missing.append(f"{file} {'is not there' if not (folder / file).exists() else 'cannot be read'}: {otherwise}")
    return missing


def _missing_of_stage(own: Path, kind: str, metrics: Lines, samples: SamplesShown, record: Row) -> list[str]:
    missing = []
    if (own / "stage.json").exists() and not record:
        missing.append("stage.json cannot be read")
    if kind in ("sft", "rl", "distill") and not metrics.path.exists():
        missing.append("there is no metrics.jsonl, so there are no curves")
    if metrics.num_unread:
        missing.append(f"metrics.jsonl: {_lines_left_out(metrics.num_unread)}")
    if (kind == "rl" or (kind == "reject" and record)) and not (own / "samples.jsonl").exists():
        missing.append("there is no samples.jsonl, so no completions can be shown")
    if samples.num_unread:
        missing.append(f"samples.jsonl: {_lines_left_out(samples.num_unread)}")
    if samples.is_sampled:
        missing.append("samples.jsonl is long: pieces of it were read, at equal distances from its beginning to its end")
    return missing


def _lines_left_out(number: int) -> str:
    return f"{number} line{'s' if number > 1 else ''} torn or no JSON object, left out"


def _held_out(folder: Path, stages: Sequence[StageContents]) -> list[HeldOut]:
    """The first problems of the held-out set, with the first answer of every model that was measured on it, in the order they were made."""
    names = dict.fromkeys(name for stage in stages for name in (stage.evaluated, stage.name) if re.fullmatch(r"\w+", name))
    said: dict[str, dict[str, Row]] = {}
    for name in names:
        for item in islice(Lines(folder / "evals" / f"{name}.items.jsonl"), 64 * NUM_HELD_OUT):
            said.setdefault(str(item.get("prompt_id")), {}).setdefault(name, item)
    complete = [by_model for by_model in said.values() if len(by_model) == max(map(len, said.values()))]
    return [_one_held_out(by_model) for by_model in complete[:NUM_HELD_OUT] if len(by_model) > 1]


def _one_held_out(by_model: Mapping[str, Row]) -> HeldOut:
    first = next(iter(by_model.values()))
    answer = first.get("answer")
    return HeldOut(str(first.get("question", "?")), None if answer is None else str(answer), list(by_model.items()))


def _read_stage(folder: Path, found: Mapping[str, Path], recipe: Row, number: int, summary: Row) -> StageContents:
    planned = _at([_mapping(stage) for stage in _list(recipe.get("stages"))], number)
    prefix = f"{number:02d}-"
    unplanned = next((name.removeprefix(prefix) for name in found if name.startswith(prefix)), number)
    name = str(planned.get("name") or summary.get("name") or unplanned)
    own = found.get(prefix + name)  # only what is there: a name is no path
    record = _mapping(_json(own / "stage.json")) if own else {}
    known = {**summary, **record}
    start = planned.get("from") or known.get("from") or "?"
    evaluated = f"{name}_student" if isinstance(start, dict) else str(start)
    metrics = numbers_of(known.get("metrics"))
    lines = Lines((own or folder / "nowhere") / "metrics.jsonl")
    steps = {row["step"]: row for row in map(_step_metrics, lines) if abs(row.get("step", LARGEST)) < 1e12}
    total = planned.get("steps")
    kind = str(planned.get("kind") or known.get("kind") or "?")
    samples = read_samples(own / "samples.jsonl") if own else SamplesShown()
    return StageContents(
        number=number,
        name=name,
        kind=kind,
        status=_status(record, known, is_begun=own is not None),
        start=str(known.get("from") or (start.get("make") or start.get("path") if isinstance(start, dict) else start)),
        seconds=numbers_of(known).get("seconds"),
        output=str(known["output"]) if known.get("output") else None,
        metrics=metrics,
        before=_scores(folder, evaluated, metrics, "_before"),
        after=_scores(folder, name, metrics, "_after"),
        steps=[steps[step] for step in sorted(steps)],
        num_steps_planned=total if isinstance(total, int) else None,
        heldout=_held_out_set(planned, recipe),
        evaluated=evaluated,
        samples=samples,
        alarms=list(islice(Lines(own / "alarms.jsonl"), MAX_ALARMS)) if own else [],
        lineage=_lineage(own, record) if own else {},
        missing=_missing_of_stage(own, kind, lines, samples, record) if own else [],
    )


def _step_metrics(line: Any) -> Numbers:
    return {RENAMED_METRICS.get(name, name): value for name, value in numbers_of(line).items()}


def _lineage(own: Path, record: Row) -> Row:
    known = _mapping(_json(own / "lineage.json"))
    return {**known, "fingerprint": record["fingerprint"]} if record.get("fingerprint") else known


def _held_out_set(planned: Row, recipe: Row) -> str:
    """The name of the data that a stage's model is measured on."""
    names = (_mapping(evaluation).get("prompts") for evaluation in (planned.get("evaluation"), recipe.get("evaluation")))
    return next((" + ".join(map(str, name)) if isinstance(name, list) else str(name) for name in names if name), "held-out")


def _scores(folder: Path, model: str, metrics: Numbers, suffix: str) -> Numbers:
    """accuracy, lenient and their standard errors: from the model's evaluation, or where that is gone from what the stage reported."""
    reported = {name: metrics[f"eval/{name}{suffix}"] for name in ("accuracy", "lenient") if f"eval/{name}{suffix}" in metrics}
    if suffix == "_after":
        reported |= {name: metrics[f"eval/{name}"] for name in ("accuracy_se", "lenient_se") if f"eval/{name}" in metrics}
    evaluated = numbers_of(_json(folder / "evals" / f"{model}.json")) if re.fullmatch(r"\w+", model) else {}
    return {**evaluated, **reported}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path) or "null")
    except (ValueError, RecursionError):
        return None


def _yaml(text: str) -> Any:
    try:
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # the C one is ten times as fast, where it was built
    except yaml.YAMLError:
        return None


def _mapping(value: Any) -> Row:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _at(stages: list[Row], number: int) -> Row:
    return stages[number - 1] if 1 <= number <= len(stages) else {}
