"""Which charts show how a stage went? Rewards, lengths, distances, rates and seconds by step; and every model's held-out accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from grpo.report.charts import Bar, Chart, Series, bar_chart, line_chart, stacked_chart
from grpo.report.formatting import visible
from grpo.report.run_reader import RunContents, StageContents
from grpo.report.samples import HIGH, LOW, Numbers

STRICT, LENIENT = 0, 1  # colours, the same in every chart
NOT_PARTS = ("reward/total", "reward/total_std", "reward/unjudged", "reward/zero_variance_groups_frac")
ABOUT_A_PART = ("_error", "_timeout", "_undecidable", "_abstained", "_weight", "_s")  # failures, schedules, latencies
CLOCKS = ("rollout", "checkpoint", "reward", "update", "sync", "eval")
MAX_PARTS = 5
KINDS = (("Strict: right and well-formed", "accuracy", STRICT), ("Lenient: right, whatever the form", "lenient", LENIENT))


def accuracy_charts(run: RunContents) -> list[Chart]:
    """Before and after of every stage that makes a model, and what eval stages measured; for each held-out set, on one scale."""
    measured = [stage for stage in run.stages if stage.before or stage.after or (stage.kind == "eval" and "eval/accuracy" in stage.metrics)]
    sets = list(dict.fromkeys(stage.heldout for stage in measured))
    charts = []
    for name in sets:
        stages = [stage for stage in measured if stage.heldout == name]
        ends = [bar.value + (bar.error or 0.0) for stage in stages for _, score, _ in KINDS for bar in _bars(stage, score)]
        highest = min(1.0, max([*ends, 0.01]) * 1.05)
        for title, score, colour in KINDS:
            groups = {visible(f"{stage.number} {stage.name}"): bars for stage in stages if (bars := _bars(stage, score))}
            title = f"{title} ({visible(name)})" if len(sets) > 1 else title
            charts.append(bar_chart(title, "held-out accuracy (fraction of problems)", groups, highest, colour))
    return _drawn(charts)


def stage_charts(stage: StageContents) -> list[Chart]:
    return _drawn(_rl_charts(stage)) if stage.kind == "rl" else _drawn(_supervised_charts(stage))


def reward_parts(stage: StageContents) -> list[str]:
    """Names of the rewards: those that any sample carries, or without samples whatever in reward/ is no statistic."""
    rows = [shown.row for moment in stage.samples.moments for asked in moment for shown in asked.shown]
    carried = dict.fromkeys(str(name) for row in rows if isinstance(parts := row.get("parts"), dict) for name in parts)
    if carried:
        return list(carried)
    names = dict.fromkeys(name for row in stage.steps for name in row if name.startswith("reward/"))
    return [name.removeprefix("reward/") for name in names if name not in NOT_PARTS and not name.endswith(ABOUT_A_PART)]


def curve(stage: StageContents, metric: str, name: str, colour: int = 0, has_band: bool = True) -> Series:
    points = [(row["step"], row[metric]) for row in stage.steps if metric in row]
    return Series(name, points, colour=colour, has_band=has_band)


def _bars(stage: StageContents, name: str) -> list[Bar]:
    if stage.kind == "eval":
        found = {"measured": {key.removeprefix("eval/"): value for key, value in stage.metrics.items()}}
    else:
        found = {"before": dict(stage.before), "after": dict(stage.after)} if stage.makes_model else {}
    return [Bar(end, scores[name], scores.get(f"{name}_se"), is_faint=end == "before") for end, scores in found.items() if name in scores]


def _rl_charts(stage: StageContents) -> list[Chart | None]:
    def chart(title: str, y_name: str, *curves: tuple[str, str, int], note: str = "") -> Chart | None:
        series = [curve(stage, metric, name, colour) for metric, name, colour in curves]
        return line_chart(title, y_name, series, note=note)

    gib = sorted({name for row in stage.steps for name in row if name.startswith("memory/")})
    return [
        line_chart("Reward", "reward, mean over samples", _rewards(stage), note="parts are before weighting"),
        line_chart(
            "Held-out accuracy", "fraction of problems", _accuracy_series(stage), note="± standard error; squares: before and after"
        ),
        line_chart("Completion length", "tokens", [_lengths(stage)], note=_length_note(stage)),
        chart(
            "Form",
            "fraction of completions",
            ("rollout/well_formed_frac", "well-formed", 2),
            ("rollout/truncated_frac", "truncated at the limit", 3),
        ),
        chart("Spread of the reward", "standard deviation over samples", ("reward/total_std", "spread", 0)),
        chart(
            "Groups without a lesson",
            "fraction of groups",
            ("reward/zero_variance_groups_frac", "equal", 0),
            note="all samples equally good",
        ),
        chart("Entropy of the policy", "nats per token", ("policy/entropy", "entropy", 0)),
        chart("KL to the reference", "nats per token", ("loss/kl", "KL", 0)),
        chart("Clipping", "fraction of tokens", ("loss/clipped_frac", "clipped", 0)),
        chart("Engine against trainer", "mean |log-prob difference| per token", ("rollout/logprob_gap", "gap", 0)),
        chart("Gradient", "norm, before it is clipped", ("train/grad_norm", "norm", 0)),
        chart("Throughput", "completion tokens per second of rollout", ("rollout/tokens_per_s", "tokens per second", 0)),
        _time_chart(stage.steps),
        chart(
            "Memory", "GiB", *[(name, visible(name.rpartition("/")[2].removesuffix("_gib")), i) for i, name in enumerate(gib[:MAX_PARTS])]
        ),
    ]


def _supervised_charts(stage: StageContents) -> list[Chart | None]:
    series = [curve(stage, "loss/total", "loss"), curve(stage, "validation/loss", "on held-back rows", 1)]
    norm = [curve(stage, "train/grad_norm", "norm")]
    return [
        line_chart("Loss", "cross-entropy, nats per completion token", series, x_name="update"),
        line_chart("Gradient", "norm, before it is clipped", norm, x_name="update"),
    ]


def _rewards(stage: StageContents) -> list[Series]:
    """The total and its parts; a part that is the total itself is named with it, and not drawn over it."""
    total = curve(stage, "reward/total", "total")
    names = reward_parts(stage)[:MAX_PARTS]
    parts = [curve(stage, f"reward/{name}", visible(name), 1 + i) for i, name in enumerate(names)]
    same = [part.name for part in parts if part.points == total.points]
    return [replace(total, name=", ".join(["total", *same])), *(part for part in parts if part.name not in same)]


def _lengths(stage: StageContents) -> Series:
    """Mean completion tokens by step, between the percentiles of the step's samples where these are known at every step."""
    series = curve(stage, "rollout/completion_tokens", "completion tokens")
    spread = stage.samples.token_spread
    return replace(series, spread=[spread[step] for step, _ in series.points]) if _knows_lengths(stage) else series


def _length_note(stage: StageContents) -> str:
    return f"mean; band: {LOW} to {HIGH}% of samples" if _knows_lengths(stage) else "mean over samples"


def _knows_lengths(stage: StageContents) -> bool:
    return all(row["step"] in stage.samples.token_spread for row in stage.steps)


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


def _time_chart(steps: Sequence[Numbers]) -> Chart | None:
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


def _drawn(charts: Iterable[Chart | None]) -> list[Chart]:
    return [chart for chart in charts if chart is not None]
