"""What does a person want to see of a run? One HTML file that works offline: numbers, curves, and what the policy wrote first and last.

The charts are SVG of our own (grpo/run/charts.py); a chart library would put 4.5 MB of script into every report.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from grpo.run.charts import Bar, Series, bar_chart, line_chart, number, stacked_chart
from grpo.run.contents import Asked, Numbers, RunContents, StageContents, first_prompts, last_prompts, numbers_of, read_run

NUM_PROMPTS, MAX_CHARS, MAX_RECIPE_CHARS = 4, 4000, 40_000
STRICT, LENIENT = 0, 1  # colours, the same in every chart
NOT_PARTS = ("reward/total", "reward/total_std", "reward/unjudged", "reward/equal_groups_frac")
SIGNS = {"\n": "↵\n", "\t": "⇥\t"}
CLOCKS = ("rollout", "reward", "update", "sync", "eval")
FAILURES = ("_error", "_timeout", "_undecidable", "_abstained")


@dataclass(frozen=True)
class SampleView:
    title: str
    parts: list[tuple[str, str]]
    facts: str
    text: str


@dataclass(frozen=True)
class PromptView:
    prompt: str
    answer: str | None
    summary: str
    samples: list[SampleView]


@dataclass(frozen=True)
class StepView:
    step: str
    prompts: list[PromptView]


@dataclass(frozen=True)
class StageView:
    """A stage's section of the page."""

    stage: StageContents
    progress: str
    result: str
    charts: list[Markup]
    counts: list[tuple[str, str, str]]
    reported: list[tuple[str, str]]
    numbers: list[list[str]]
    steps: list[StepView]


def write_report(folder: Path) -> None:
    """Write ``folder``/report.html from whatever the folder holds so far; a reader never sees half of it."""
    folder = Path(folder)
    run = read_run(folder)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": visible, "duration": duration, "number": number, "score": score}
    page = environment.get_template("report.html.jinja").render(
        run=run,
        seconds=sum(stage.seconds or 0.0 for stage in run.stages),
        accuracy_charts=_accuracy_charts(run),
        views=[_view(stage) for stage in run.stages if stage.status != "pending"],
        recipe_yaml="\n".join(map(visible, shortened(run.recipe_yaml, MAX_RECIPE_CHARS).split("\n"))),
    )
    temporary = folder / "report.html.writing"
    temporary.write_text(page, encoding="utf-8", errors="replace")
    temporary.replace(folder / "report.html")


def visible(text: Any) -> str:
    """The text with line ends, control characters and direction-changing characters shown as signs; to escape it is the template's part."""
    return re.sub(r"[^\x20-\x7e]", lambda match: _sign(match[0]), str(text))


def _sign(character: str) -> str:
    if character in SIGNS or character.isprintable():
        return SIGNS.get(character, character)
    return f"⟨U+{ord(character):04X}⟩"


def shortened(text: str, limit: int = MAX_CHARS) -> str:
    """Its beginning and its end, where the answer stands."""
    if len(text) <= limit:
        return text
    return f"{text[: limit * 3 // 5]}\n[... {len(text) - limit:,} characters left out ...]\n{text[-(limit * 2 // 5) :]}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"


def score(scores: Numbers, name: str) -> str:
    """ "0.412 ± 0.015", or "–" where it was not measured."""
    if name not in scores:
        return "–"
    error = scores.get(f"{name}_se")
    return f"{scores[name]:.3f}" + (f" ± {error:.3f}" if error is not None else "")


def _accuracy_charts(run: RunContents) -> list[Markup]:
    """Before and after of every stage that makes a model: right and well-formed, and right in whatever form; on one scale."""
    stages = [stage for stage in run.stages if stage.makes_model and (stage.before or stage.after)]
    measured = [
        scores[name] + scores.get(f"{name}_se", 0.0)
        for stage in stages
        for scores in (stage.before, stage.after)
        for name in ("accuracy", "lenient")
        if name in scores
    ]
    highest = min(1.0, max([*measured, 0.01]) * 1.05)
    charts = []
    kinds = (("Strict: right and well-formed", "accuracy", STRICT), ("Lenient: right, whatever the form", "lenient", LENIENT))
    for title, name, colour in kinds:
        groups = {
            f"{stage.number} {stage.name}": [
                Bar(end, scores[name], scores.get(f"{name}_se"), is_faint=end == "before")
                for end, scores in (("before", stage.before), ("after", stage.after))
                if name in scores
            ]
            for stage in stages
        }
        charts.append(bar_chart(title, "held-out accuracy (fraction of problems)", groups, highest, colour))
    return _drawn(charts)


def _view(stage: StageContents) -> StageView:
    samples = []
    if stage.kind == "rl" and stage.samples is not None:
        samples = [first_prompts(stage.samples, NUM_PROMPTS), last_prompts(stage.samples, NUM_PROMPTS)]
    charts = _rl_charts(stage, samples[0][0].rows if samples and samples[0] else []) if stage.kind == "rl" else _supervised_charts(stage)
    steps = [StepView(number(asked[0].step), [_prompt_view(one) for one in asked]) for asked in samples if asked]
    if len(steps) == 2 and steps[0].step == steps[1].step:
        steps.pop()
    counts = _reject_counts(stage.metrics)
    hidden = ("last/", "reject/")
    reported = [(name, number(value)) for name, value in sorted(stage.metrics.items()) if not name.startswith(hidden)]
    return StageView(stage, _progress(stage), _result(stage), _drawn(charts), counts, reported, _numbers_table(stage.steps), steps)


def _progress(stage: StageContents) -> str:
    """How far, and how long it took."""
    done = f"{len(stage.steps)}" + (f" of {stage.num_steps_planned}" if stage.num_steps_planned and stage.status != "complete" else "")
    unit = "steps" if stage.kind == "rl" else "updates"
    return ", ".join([*([f"{done} {unit}"] if stage.steps else []), *([duration(stage.seconds)] if stage.seconds is not None else [])])


def _result(stage: StageContents) -> str:
    if "accuracy" in stage.before and "accuracy" in stage.after:
        return f"held-out accuracy {stage.before['accuracy']:.3f} → {score(stage.after, 'accuracy')}"
    if "eval/accuracy" in stage.metrics:
        return f"accuracy {stage.metrics['eval/accuracy']:.3f} ± {stage.metrics.get('eval/accuracy_se', 0.0):.3f}"
    if "reject/kept" in stage.metrics and "reject/samples" in stage.metrics:
        return f"kept {stage.metrics['reject/kept']:.0f} of {stage.metrics['reject/samples']:.0f} completions"
    return ""


def _rl_charts(stage: StageContents, rows: Sequence[Any]) -> list[Markup | None]:
    steps = stage.steps

    def curve(metric: str, name: str, colour: int = 0) -> Series:
        return Series(name, _points(steps, metric), colour=colour)

    def chart(title: str, y_name: str, *series: Series, note: str = "") -> Markup | None:
        return line_chart(title, y_name, series, note=note)

    parts = [curve(f"reward/{name}", name, 1 + i) for i, name in enumerate(_reward_parts(steps, rows))]
    form = [curve("rollout/well_formed_frac", "well-formed", 2), curve("rollout/truncated_frac", "truncated at the limit", 3)]
    equal = curve("reward/equal_groups_frac", "all samples equally good")
    return [
        chart("Reward", "reward, mean over samples", curve("reward/total", "total"), *parts, note="parts are before weighting"),
        chart("Held-out accuracy", "fraction of problems", *_accuracy_series(stage), note="± standard error; squares: before and after"),
        chart("Completion length", "tokens, mean over samples", curve("rollout/completion_tokens", "completion tokens")),
        chart("Form", "fraction of completions", *form),
        chart("Groups without a lesson", "fraction of groups", equal, note="all samples equally good: advantages are 0"),
        chart("Entropy of the policy", "nats per token", curve("policy/entropy", "entropy")),
        chart("KL to the reference", "nats per token", curve("loss/kl", "KL")),
        chart("Engine against trainer", "mean |log-prob difference| per token", curve("rollout/logprob_gap", "gap")),
        _time_chart(steps),
    ]


def _accuracy_series(stage: StageContents) -> list[Series]:
    """At the steps where it was measured, and of the models before the first and after the last step."""
    last = stage.steps[-1]["step"] if stage.steps else 1.0
    series = []
    for name, label, colour in (("accuracy", "strict", STRICT), ("lenient", "lenient", LENIENT)):
        measured = [(row["step"], row[f"eval/{name}"], row.get(f"eval/{name}_se")) for row in stage.steps if f"eval/{name}" in row]
        ends = [(x, scores[name], scores.get(f"{name}_se")) for x, scores in ((0.0, stage.before), (last, stage.after)) if name in scores]
        joined = [*[end for end in ends if end[0] == 0.0], *measured] if measured else []
        series.append(Series(label, *_with_errors(joined), colour, "marked"))
        series.append(Series(f"{label}, before and after", *_with_errors(ends), colour, "single"))
    return series


def _with_errors(measured: Sequence[tuple[float, float, float | None]]) -> tuple[list[tuple[float, float]], list[float]]:
    """Points and their errors; no errors where one is not known, lest it look like certainty."""
    errors = [error for _, _, error in measured if error is not None]
    return [(x, y) for x, y, _ in measured], errors if len(errors) == len(measured) else []


def _time_chart(steps: Sequence[Numbers]) -> Markup | None:
    """What a step's seconds go into; what no clock names is "other"."""
    timed = [row for row in steps if "time/step_s" in row]
    names = dict.fromkeys(name for row in timed for name in row if name.startswith("time/") and name != "time/step_s")
    in_order = sorted(names, key=lambda name: (CLOCKS.index(_clock(name)) if _clock(name) in CLOCKS else len(CLOCKS), name))
    parts = {_clock(name): [row.get(name, 0.0) for row in timed] for name in in_order}
    if parts:
        parts["other"] = [max(0.0, row["time/step_s"] - sum(row.get(name, 0.0) for name in names)) for row in timed]
    return stacked_chart("Where the time goes", "seconds per step", [row["step"] for row in timed], parts)


def _clock(name: str) -> str:
    return name.removeprefix("time/").removesuffix("_s")


def _supervised_charts(stage: StageContents) -> list[Markup | None]:
    loss = Series("loss", _points(stage.steps, "loss/total"))
    return [line_chart("Loss", "cross-entropy, nats per completion token", [loss], x_name="update")]


def _reward_parts(steps: Sequence[Numbers], rows: Sequence[Any]) -> list[str]:
    """Names of the rewards: those the samples carry, or without samples whatever in reward/ is not a statistic or a count of failures."""
    if rows and isinstance(parts := rows[0].get("parts"), dict):
        return list(parts)
    names = dict.fromkeys(name for row in steps for name in row if name.startswith("reward/"))
    return [name.removeprefix("reward/") for name in names if name not in NOT_PARTS and not name.endswith(FAILURES)]


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


def _prompt_view(asked: Asked) -> PromptView:
    """The best, the middle and the worst sample by reward, so that neither end is hidden, and one that nobody could judge."""
    judged = sorted((row for row in asked.rows if "reward" in numbers_of(row)), key=lambda row: -row["reward"])
    unjudged = [row for row in asked.rows if "reward" not in numbers_of(row)]
    places = {0: "best", len(judged) // 2: "median", len(judged) - 1: "worst"} if len(judged) > 2 else {0: "best", 1: "worst"}
    shown = [(judged[place], label) for place, label in places.items() if place < len(judged)]
    shown += [(row, "one of those that nobody could judge") for row in unjudged[:1]]
    counts = f"{len(asked.rows)} sample{'s' if len(asked.rows) > 1 else ''}"
    first = asked.rows[0]
    answer = first.get("answer")
    return PromptView(
        prompt=shortened(_readable(first.get("prompt", "?")), 1500),
        answer=None if answer is None else shortened(_readable(answer), 300),
        summary=f"mean reward {sum(row['reward'] for row in judged) / len(judged):.2f}, {counts}" if judged else f"not judged, {counts}",
        samples=[_sample_view(row, label) for row, label in shown],
    )


def _sample_view(row: dict[str, Any], label: str) -> SampleView:
    known = numbers_of(row)
    parts = row.get("parts")
    facts = [f"advantage {known['advantage']:+.2f}"] if "advantage" in known else []
    facts += [f"version {number(known['version'])}"] if "version" in known else []
    facts += [f"{number(known['completion_tokens'])} tokens"] if "completion_tokens" in known else []
    facts += [f"ended by {row['finish']}"] if row.get("finish") else []
    return SampleView(
        title=f"{label}: reward {number(known['reward'])}" if "reward" in known else label,
        parts=[(name, number(numbers_of(parts).get(name))) for name in parts] if isinstance(parts, dict) else [],
        facts=", ".join(facts),
        text=shortened(_readable(row.get("text", ""))),
    )


def _readable(value: Any) -> str:
    """A prompt is a string or a list of messages."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _points(steps: Sequence[Numbers], metric: str) -> list[tuple[float, float]]:
    return [(row["step"], row[metric]) for row in steps if metric in row]


def _drawn(charts: Iterable[Markup | None]) -> list[Markup]:
    return [chart for chart in charts if chart is not None]
