"""In what do two runs differ? Their recipes key by key, their scores with the error of the difference, and their curves in one frame."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grpo.report.charts import Chart, Series, line_chart
from grpo.report.curves import curve
from grpo.report.formatting import duration, score, visible
from grpo.report.jsonl_index import Lines
from grpo.report.run_reader import RunContents, StageContents
from grpo.report.samples import Numbers, numbers_of

CURVES = (
    ("Reward", "reward, mean over samples", "reward/total"),
    ("Completion length", "tokens, mean over samples", "rollout/completion_tokens"),
    ("Well-formed", "fraction of completions", "rollout/well_formed_frac"),
    ("Truncated", "fraction of completions", "rollout/truncated_frac"),
    ("Groups without a lesson", "fraction of groups", "reward/zero_variance_groups_frac"),
    ("Entropy of the policy", "nats per token", "policy/entropy"),
    ("KL to the reference", "nats per token", "loss/kl"),
    ("Clipping", "fraction of tokens", "loss/clipped_frac"),
    ("Engine against trainer", "mean |log-prob difference| per token", "rollout/logprob_gap"),
    ("Throughput", "completion tokens per second of rollout", "rollout/tokens_per_s"),
    ("Seconds per step", "seconds", "time/step_s"),
    ("Loss", "as the stage minimises it", "loss/total"),
)
MAX_KEYS, MAX_VALUE_CHARS = 200, 300


@dataclass(frozen=True)
class ScoreRow:
    """A score of a stage's model in both runs. ``difference``: second minus first; ``how`` says how its error was found."""

    stage: str
    measure: str
    first: str
    second: str
    difference: str
    how: str = ""


@dataclass(frozen=True)
class StageComparison:
    title: str
    charts: list[Chart]


@dataclass(frozen=True)
class Comparison:
    first: RunContents
    second: RunContents
    labels: tuple[str, str]
    scores: list[ScoreRow]
    keys: list[tuple[str, str, str]]
    num_more_keys: int
    stages: list[StageComparison]
    unmatched: list[str]


def compare(first: RunContents, second: RunContents, labels: tuple[str, str]) -> Comparison:
    """Stages are matched by name and kind. ``labels`` are what the page calls the two."""
    others = {(stage.name, stage.kind): stage for stage in second.stages}
    pairs = [(stage, others[stage.name, stage.kind]) for stage in first.stages if (stage.name, stage.kind) in others]
    matched = {(stage.name, stage.kind) for stage, _ in pairs}
    alone = [(label, stage) for label, run in zip(labels, (first, second), strict=True) for stage in run.stages]
    keys = list(_differences(first.recipe, second.recipe))
    stages = [StageComparison(f"{a.name} ({a.kind})", charts) for a, b in pairs if (charts := list(_charts(a, b, labels)))]
    return Comparison(
        first=first,
        second=second,
        labels=labels,
        scores=[row for a, b in pairs for row in _scores(a, b, (first.folder, second.folder))],
        keys=keys[:MAX_KEYS],
        num_more_keys=max(0, len(keys) - MAX_KEYS),
        stages=stages,
        unmatched=[f"{stage.name} ({stage.kind}), only in {label}" for label, stage in alone if (stage.name, stage.kind) not in matched],
    )


def _charts(a: StageContents, b: StageContents, labels: tuple[str, str]) -> Iterator[Chart]:
    unit = "step" if a.kind == "rl" else "update"
    for title, y_name, metric in CURVES:
        series = [curve(stage, metric, visible(label), colour) for colour, (stage, label) in enumerate(zip((a, b), labels, strict=True))]
        if any(one.points for one in series) and (chart := line_chart(title, y_name, series, x_name=unit)):
            yield chart
    accuracy = [_accuracy(stage, visible(label), colour) for colour, (stage, label) in enumerate(zip((a, b), labels, strict=True))]
    if chart := line_chart("Held-out accuracy", "fraction of problems", accuracy, x_name=unit, note="strict, ± standard error"):
        yield chart


def _accuracy(stage: StageContents, label: str, colour: int) -> Series:
    """Where it was measured, the models before and after included."""
    last = stage.steps[-1]["step"] if stage.steps else 1.0
    by_step: dict[float, tuple[float, float | None]] = {}
    for x, scores in ((0.0, stage.before), (last, stage.after)):
        if "accuracy" in scores:
            by_step[x] = (scores["accuracy"], scores.get("accuracy_se"))
    for row in stage.steps:
        if "eval/accuracy" in row and row["step"] not in by_step:
            by_step[row["step"]] = (row["eval/accuracy"], row.get("eval/accuracy_se"))
    known = [error for _, (_, error) in sorted(by_step.items()) if error is not None]
    points = [(x, value) for x, (value, _) in sorted(by_step.items())]
    return Series(label, points, errors=known if len(known) == len(points) else (), colour=colour, style="marked")


def _scores(a: StageContents, b: StageContents, folders: tuple[Path, Path]) -> Iterator[ScoreRow]:
    problems = [scores_by_problem(folder, a.name) for folder in folders]
    for name, measure in (("accuracy", "accuracy, strict"), ("lenient", "accuracy, lenient")):
        if name in a.after or name in b.after:
            paired = paired_difference(*({key: scores[name] for key, scores in of.items() if name in scores} for of in problems))
            how = "problem by problem" if paired else "as of two separate sets" if name in a.after and name in b.after else ""
            shown = f"{paired[0]:+.3f} ± {paired[1]:.3f}" if paired else difference(a.after, b.after, name)
            yield ScoreRow(a.name, measure, score(a.after, name), score(b.after, name), shown, how)
    if a.seconds is not None and b.seconds is not None:
        yield ScoreRow(a.name, "time", duration(a.seconds), duration(b.seconds), f"{b.seconds / a.seconds:.2f} times" if a.seconds else "–")


Problem = tuple[str, str]


def scores_by_problem(folder: Path, model: str) -> dict[Problem, dict[str, float]]:
    """The mean of each score over a problem's samples, by (id, question), of a run's model; empty where no items were kept."""
    items = Lines(folder / "evals" / f"{model}.items.jsonl") if re.fullmatch(r"\w+", model) else ()
    values: dict[Problem, dict[str, list[float]]] = {}
    for item in items:
        known = numbers_of(item)
        if "accuracy" in known and "lenient" in known:  # what nobody could judge counts in neither
            of_problem = values.setdefault((str(item.get("prompt_id")), str(item.get("question"))), {})
            for name in ("accuracy", "lenient"):
                of_problem.setdefault(name, []).append(known[name])
    return {problem: {name: sum(drawn) / len(drawn) for name, drawn in scores.items()} for problem, scores in values.items()}


def paired_difference(a: Mapping[Problem, float], b: Mapping[Problem, float]) -> tuple[float, float] | None:
    """(mean of b - a over problems, its standard error s / sqrt(n)), s with n - 1; None where these are not the same two problems or more."""
    if a.keys() != b.keys() or len(a) < 2:
        return None
    differences = np.array([b[problem] - a[problem] for problem in a])
    return float(differences.mean()), float(differences.std(ddof=1) / math.sqrt(len(differences)))


def difference(a: Numbers, b: Numbers, name: str) -> str:
    """ "+0.031 ± 0.018": the errors' root of squares, as of two independent means."""
    if name not in a or name not in b:
        return "–"
    errors = (a.get(f"{name}_se"), b.get(f"{name}_se"))
    known = [error for error in errors if error is not None]
    return f"{b[name] - a[name]:+.3f}" + (f" ± {math.hypot(*known):.3f}" if len(known) == 2 else "")


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(dotted key, value there, value here) of every setting that is not the same; stages and rewards go by name, not by place."""
    flat_a, flat_b = dict(_flat(a)), dict(_flat(b))
    for key in dict.fromkeys([*flat_a, *flat_b]):
        if flat_a.get(key) != flat_b.get(key):
            yield key, str(flat_a.get(key, "–"))[:MAX_VALUE_CHARS], str(flat_b.get(key, "–"))[:MAX_VALUE_CHARS]


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, list) and value and all(isinstance(item, dict) and isinstance(item.get("name"), str) for item in value):
        value = {item["name"]: item for item in value}
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
