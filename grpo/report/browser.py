"""How are completions laid out to be looked through? By step, by prompt, by what became of them; and which filters a page offers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo.report.charts import number
from grpo.report.run_reader import HeldOut, StageContents
from grpo.report.samples import Asked, Numbers, Shown, numbers_of, shortened

MAX_STAGE_CHARS, MIN_CHARS = 300_000, 400
MAX_FILTERED_PARTS = 6


@dataclass(frozen=True)
class Filter:
    """A choice of samples: those of class ``key``."""

    key: str
    label: str


@dataclass(frozen=True)
class SampleView:
    title: str
    parts: Sequence[tuple[str, str]]
    facts: str
    text: str
    keys: str = ""


@dataclass(frozen=True)
class PromptView:
    title: str
    prompt: str
    answer: str | None
    summary: str
    samples: Sequence[SampleView]


@dataclass(frozen=True)
class MomentView:
    step: str
    prompts: Sequence[PromptView]


@dataclass(frozen=True)
class BrowserView:
    """``moments`` by step, ``repeated`` prompts across steps, ``fates`` of a stage that filters."""

    moments: Sequence[MomentView]
    filters: Sequence[Filter]
    repeated: Sequence[PromptView]
    fates: Sequence[PromptView]


def browser(stage: StageContents) -> BrowserView:
    """Of as many characters as a page can bear: more samples, shorter texts."""
    samples = stage.samples
    filters = {name: f"p{i}" for i, name in enumerate(list(samples.highest)[:MAX_FILTERED_PARTS])}
    num_texts = sum(len(asked.shown) for group in (*samples.moments, *samples.repeated) for asked in group)
    page = _Page(filters, samples.highest, max(MIN_CHARS, MAX_STAGE_CHARS // max(1, num_texts)))
    moments = [MomentView(number(moment[0].step), [page.prompt(asked) for asked in moment]) for moment in samples.moments if moment]
    shown = [sample.keys for moment in moments for prompt in moment.prompts for sample in prompt.samples]
    present = set(" ".join(shown).split())
    return BrowserView(
        moments=moments,
        filters=[one for one in _filters(filters) if one.key in present],
        repeated=[page.visits(visits) for visits in samples.repeated],
        fates=[page.fate(name, rows) for name, rows in samples.fates.items()] if not moments else [],
    )


def held_out_views(problems: Sequence[HeldOut]) -> list[PromptView]:
    views = []
    for problem in problems:
        right = sum(numbers_of(item).get("accuracy", 0.0) == 1.0 for _, item in problem.said)
        samples = [_held_out_sample(model, item) for model, item in problem.said]
        summary = f"right: {right} of {len(samples)} models"
        views.append(PromptView(_title(problem.question), shortened(problem.question, 1500), problem.answer, summary, samples))
    return views


@dataclass(frozen=True)
class _Page:
    filters: Mapping[str, str]
    highest: Numbers
    max_chars: int

    def prompt(self, asked: Asked) -> PromptView:
        row = asked.shown[0].row if asked.shown else {}
        mean = "not judged" if asked.mean_reward is None else f"mean reward {asked.mean_reward:.2f}"
        summary = f"{mean}, {asked.num_samples} sample{'s' if asked.num_samples > 1 else ''}"
        return self._view(row, summary, [self.sample(one) for one in asked.shown])

    def visits(self, visits: Sequence[Asked]) -> PromptView:
        """One prompt at several steps: each time its best sample and, where it differs, its worst."""
        samples = []
        for asked in visits:
            mean = "" if asked.mean_reward is None else f" (mean {asked.mean_reward:.2f} of {asked.num_samples})"
            for one in (one for one in asked.shown if one.why in ("best", "worst")):
                samples.append(self.sample(one, f"step {number(asked.step)}{mean}, "))
        steps = ", ".join(number(asked.step) for asked in visits)
        row = visits[0].shown[0].row if visits[0].shown else {}
        return self._view(row, f"steps {steps}", samples)

    def fate(self, name: str, rows: Sequence[Mapping[str, Any]]) -> PromptView:
        samples = [
            SampleView(shortened(_readable(row.get("prompt", "?")), 300), self._parts(row), "", self._text(row), self._keys(row))
            for row in rows
        ]
        title = "kept" if name == "kept" else f"dropped: {name.replace('_', ' ')}"
        return PromptView(title, "", None, f"{len(rows)} of them", samples)

    def sample(self, shown: Shown, when: str = "") -> SampleView:
        row = shown.row
        known = numbers_of(row)
        facts = [f"advantage {known['advantage']:+.2f}"] if "advantage" in known else []
        facts += [f"version {number(known['version'])}"] if "version" in known else []
        facts += [f"{number(known['completion_tokens'])} tokens"] if "completion_tokens" in known else []
        facts += [f"ended by {row['finish']}"] if row.get("finish") else []
        reward = f": reward {number(known['reward'])}" if "reward" in known else ""
        return SampleView(f"{when}{shown.why}{reward}", self._parts(row), ", ".join(facts), self._text(row), self._keys(row))

    def _view(self, row: Mapping[str, Any], summary: str, samples: Sequence[SampleView]) -> PromptView:
        prompt, answer = _readable(row.get("prompt", "?")), row.get("answer")
        return PromptView(
            _title(prompt), shortened(prompt, 1500), None if answer is None else shortened(_readable(answer), 300), summary, samples
        )

    def _parts(self, row: Mapping[str, Any]) -> list[tuple[str, str]]:
        parts = row.get("parts")
        return [(str(name), number(numbers_of(parts).get(str(name)))) for name in parts] if isinstance(parts, dict) else []

    def _text(self, row: Mapping[str, Any]) -> str:
        return shortened(_readable(row.get("text", row.get("completion", ""))), self.max_chars)

    def _keys(self, row: Mapping[str, Any]) -> str:
        """Classes of our own making: of each reward part whether it is at its highest, lower, or was not judged."""
        parts = numbers_of(row.get("parts"))
        keys = [f"{key}-{_level(parts.get(name), self.highest[name])}" for name, key in self.filters.items()]
        return " ".join([*keys, *(["cut"] if row.get("finish") == "length" else [])])


def _filters(parts: Mapping[str, str]) -> list[Filter]:
    words = {"high": "at its highest", "low": "lower", "none": "not judged"}
    by_part = [Filter(f"{key}-{level}", f"{name} {word}") for name, key in parts.items() for level, word in words.items()]
    return [*by_part, Filter("cut", "truncated")]


def _level(value: float | None, highest: float) -> str:
    if value is None:
        return "none"
    return "high" if value >= highest else "low"


def _held_out_sample(model: str, item: Mapping[str, Any]) -> SampleView:
    known = numbers_of(item)
    verdict = {1.0: "right", 0.0: "wrong"}.get(known.get("accuracy", -1.0), "not judged")
    if verdict == "wrong" and known.get("lenient") == 1.0:
        verdict = "right, but not in the form asked for"
    facts = f"{number(known['completion_tokens'])} tokens" if "completion_tokens" in known else ""
    return SampleView(f"{model}: {verdict}", [], facts, shortened(_readable(item.get("text", "")), 2000))


def _title(prompt: str) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= 90 else f"{line[:87]}..."


def _readable(value: Any) -> str:
    """A prompt is a string or a list of messages."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
