"""What does a person want to see of a run? One HTML file that works offline: numbers, curves, what the policy wrote, what made what.

The charts are SVG of our own (grpo/report/charts.py); a chart library would put 4.5 MB of script into every report. The page has no script at
all, so that nothing a model wrote can run; its filters are radio buttons and CSS.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import jinja2

from grpo.errors import DataError
from grpo.report.browser import BrowserView, browser, held_out_views
from grpo.report.charts import Chart, chart_style, number
from grpo.report.comparison import compare
from grpo.report.curves import accuracy_charts, stage_charts
from grpo.report.formatting import duration, score, size, tagged, visible
from grpo.report.jsonl_index import Row
from grpo.report.run_reader import RunContents, StageContents, read_run
from grpo.report.samples import Numbers, numbers_of, shortened
from grpo.util.text import printable_lines

MAX_RECIPE_CHARS, MAX_FILES = 40_000, 40
REFRESH_S, MAX_SHARE = 20.0, 0.02
RECENT_STEPS = 20


@dataclass(frozen=True)
class StageView:
    """A stage's section of the page."""

    stage: StageContents
    progress: str
    result: str
    charts: list[Chart]
    counts: list[tuple[str, str, str]]
    reported: list[tuple[str, str]]
    numbers: list[list[str]]
    browser: BrowserView


@dataclass(frozen=True)
class AlarmView:
    name: str
    step: str
    text: str
    evidence: str


class ReportRefresh:
    """Keeps the report of a running run fresh. It takes no more than MAX_SHARE of the time, and whatever goes wrong is said, never raised."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._next_at = time.monotonic() + REFRESH_S
        self._said: set[str] = set()

    def if_due(self) -> None:
        if time.monotonic() >= self._next_at:
            self.now()

    def now(self) -> None:
        began = time.monotonic()
        try:
            write_report(self.folder)
        except Exception as error:  # a page that cannot be drawn must neither end a run nor hide why one ended
            if str(error) not in self._said:
                self._said.add(str(error))
                print(printable_lines(f"grpo: the report was not written: {type(error).__name__}: {error}"), file=sys.stderr)
        self._next_at = time.monotonic() + max(REFRESH_S, (time.monotonic() - began) / MAX_SHARE)


def report_run(folder: Path, against: Path | None = None, out: Path | None = None, pictures: Path | None = None) -> list[Path]:
    """Write a run's report anew, or its comparison with another; returns the files. Raises DataError where no run has written."""
    for one in (folder, *([against] if against else [])):
        _check_is_run(one)
    try:
        if against is None:
            written = [write_report(folder, out)]
        else:
            written = [_write(_comparison_page(folder, against), out or folder / "comparison.html")]
        return [*written, *(write_pictures(folder, pictures) if pictures is not None else [])]
    except OSError as error:
        raise DataError(
            f"the report cannot be written: {error.filename}: {error.strerror}; choose another place with --out FILE"
        ) from error


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write ``folder``/report.html, or ``out``, from whatever the folder holds so far; a reader never sees half of it."""
    folder = Path(folder)
    return _write(_page(read_run(folder)), out or folder / "report.html")


def write_pictures(folder: Path, pictures: Path) -> list[Path]:
    """Every chart of a run as an SVG file of its own: accuracy-strict.svg, reason-completion-length.svg, ..."""
    run = read_run(folder)
    named = [(f"accuracy {re.sub(':[^(]*', ' ', chart.title)}", chart) for chart in accuracy_charts(run)]
    named += [(f"{stage.name} {chart.title}", chart) for stage in run.stages for chart in stage_charts(stage)]
    return [_write(chart.picture(), pictures / f"{_file_name(name)}.svg") for name, chart in named]


def _check_is_run(folder: Path) -> None:
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; name the folder of a run, such as runs/r1-tiny")
    if not any((folder / name).exists() for name in ("summary.json", "recipe.yaml")) and not list(folder.glob("[0-9][0-9]-*")):
        raise DataError(
            f"{folder} holds no run: neither summary.json nor recipe.yaml nor the folder of a stage, such as 01-reason; name the folder that "
            "grpo run wrote to (--out, or runs/<name>)"
        )


def _page(run: RunContents) -> str:
    return _render(
        "report.html.jinja",
        run=run,
        seconds=sum(stage.seconds or 0.0 for stage in run.stages),
        last_written=_moment(run.last_written) if run.status != "complete" else None,
        accuracy_charts=accuracy_charts(run),
        held_out=held_out_views(run.held_out),
        views=[_view(stage) for stage in run.stages if stage.status != "pending"],
        alarms=[(stage, _alarm(row)) for stage in run.stages for row in stage.alarms],
        starts=[(str(start.get("at", "?")), _facts(start)) for start in run.starts],
        made=[_made(stage) for stage in run.stages if stage.lineage],
        recipe_yaml="\n".join(map(visible, shortened(run.recipe_yaml, MAX_RECIPE_CHARS).split("\n"))),
    )


def _comparison_page(folder: Path, against: Path) -> str:
    labels = (folder.resolve().name, against.resolve().name)
    if labels[0] == labels[1]:
        labels = (str(folder), str(against))
    return _render("comparison.html.jinja", comparison=compare(read_run(folder), read_run(against), labels))


def _render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(chart_style=chart_style(), **values)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": visible, "tagged": tagged, "duration": duration, "number": number, "score": score, "size": size}
    return environment


def _write(text: str, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.writing-{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8", errors="replace")
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    return file


def _view(stage: StageContents) -> StageView:
    hidden = ("last/", "reject/")
    reported = [(name, number(value)) for name, value in sorted(stage.metrics.items()) if not name.startswith(hidden)]
    return StageView(
        stage=stage,
        progress=_progress(stage),
        result=_result(stage),
        charts=stage_charts(stage),
        counts=_reject_counts(stage.metrics),
        reported=reported,
        numbers=_numbers_table(stage.steps),
        browser=browser(stage),
    )


def _progress(stage: StageContents) -> str:
    """How far, how long it took, and how long it will take."""
    planned = stage.num_steps_planned if stage.status != "complete" else None
    unit = "steps" if stage.kind == "rl" else "updates"
    said = [f"{len(stage.steps)}{f' of {planned}' if planned else ''} {unit}"] if stage.steps else []
    said += [duration(stage.seconds)] if stage.seconds is not None else []
    recent = [row["time/step_s"] for row in stage.steps[-RECENT_STEPS:] if "time/step_s" in row]
    if planned and recent and len(stage.steps) < planned:
        said.append(f"about {duration(median(recent) * (planned - len(stage.steps)))} left")
    return ", ".join(said)


def _result(stage: StageContents) -> str:
    if "accuracy" in stage.before and "accuracy" in stage.after:
        return f"held-out accuracy {stage.before['accuracy']:.3f} → {score(stage.after, 'accuracy')}"
    if "eval/accuracy" in stage.metrics:
        return f"accuracy {stage.metrics['eval/accuracy']:.3f} ± {stage.metrics.get('eval/accuracy_se', 0.0):.3f}"
    if "reject/kept" in stage.metrics and "reject/samples" in stage.metrics:
        return f"kept {stage.metrics['reject/kept']:.0f} of {stage.metrics['reject/samples']:.0f} completions"
    return ""


def _reject_counts(metrics: Numbers) -> list[tuple[str, str, str]]:
    """(what, how many, share of the samples), most frequent reason first."""
    samples = metrics.get("reject/samples", 0.0)
    if not samples:
        return []
    named = {"reject/samples": "sampled", "reject/kept": "kept"}
    reasons = {n: v for n, v in metrics.items() if n.startswith("reject/") and n not in (*named, "reject/prompts_kept")}
    rows = [(named[name], metrics[name]) for name in named if name in metrics]
    for name in sorted(reasons, key=lambda name: -reasons[name]):
        rows.append((f"dropped: {name.removeprefix('reject/').replace('_', ' ')}", reasons[name]))
    table = [(what, f"{count:,.0f}", f"{count / samples:.1%}") for what, count in rows]
    if "reject/prompts_kept" in metrics:
        table.append(("prompts with a kept completion", f"{metrics['reject/prompts_kept']:,.0f}", ""))
    return table


def _numbers_table(steps: Sequence[Numbers]) -> list[list[str]]:
    """Every metric at about six steps from the first to the last; the first row is the header."""
    if not steps:
        return []
    chosen = [steps[i] for i in sorted({round(k * (len(steps) - 1) / 5) for k in range(6)})]
    names = sorted({name for row in steps for name in row} - {"step"})
    return [["metric", *(number(row["step"]) for row in chosen)], *([name, *(number(row.get(name)) for row in chosen)] for name in names)]


def _made(stage: StageContents) -> tuple[StageContents, str, str, list[tuple[str, str, str]]]:
    """(stage, what it used, its fingerprint, (file, size, SHA-256) of what it made, the large ones first)."""
    inputs, files = (value if isinstance(value := stage.lineage.get(name), list) else [] for name in ("inputs", "files"))
    known = [file for file in files if isinstance(file, dict) and isinstance(file.get("bytes"), int)]
    known.sort(key=lambda file: -file["bytes"])
    rows = [(str(file.get("file", "?")), size(file["bytes"]), str(file.get("sha256", "?"))) for file in known[:MAX_FILES]]
    return stage, ", ".join(dict.fromkeys(map(str, inputs))) or stage.start, str(stage.lineage.get("fingerprint") or ""), rows


def _facts(start: Row) -> list[tuple[str, str]]:
    """What was noted when a run was started, in a person's words; what is not there, or of another shape, is left out."""

    def mapping(name: str) -> Row:
        value = start.get(name)
        return value if isinstance(value, dict) else {}

    command, hardware, git = start.get("command"), mapping("hardware"), mapping("git")
    gpus = hardware.get("gpus")
    machine = [hardware.get("processor"), f"{hardware['cores']} cores" if "cores" in hardware else None]
    machine += [f"{hardware['memory_gib']} GiB of memory" if "memory_gib" in hardware else None, hardware.get("system")]
    changed = git.get("num_changed")
    facts = {
        "command": " ".join(map(str, command)) if isinstance(command, list) else "",
        "machine": ", ".join(str(fact) for fact in machine if fact),
        "GPUs": ("; ".join(map(str, gpus)) or "none") if isinstance(gpus, list) else "",
        "versions": ", ".join(f"{name} {value}" for name, value in mapping("versions").items()),
        "git": f"{git.get('commit')} on {git.get('branch')}, {changed or 'no'} file(s) changed since"
        if git
        else "the recipe's folder is not under git",
        "changed": ", ".join(map(str, git["changed"])) if isinstance(git.get("changed"), list) else "",
    }
    return [(name, value) for name, value in facts.items() if value]


def _alarm(row: Row) -> AlarmView:
    evidence = row.get("evidence")
    text = evidence if isinstance(evidence, str) else json.dumps(evidence, ensure_ascii=False, indent=1)
    step = numbers_of(row).get("step")
    return AlarmView(str(row.get("alarm") or "alarm"), "" if step is None else number(step), str(row.get("text") or ""), shortened(text))


def _moment(timestamp: float | None) -> str | None:
    return None if timestamp is None else datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _file_name(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "chart"
