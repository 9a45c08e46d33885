"""Is the policy learning to please its rewards rather than to be right? Watches a stage's metrics, and says in words what looks like it.

Six signs, each a pattern over steps and not one bad number:

    rewards_diverge     a model's reward and a rule's go opposite ways
    length_pays         completions grow (or repetition_pays: repeat themselves), the total rises, and being right does not
    held_out_falls      held-out accuracy falls while the training reward rises
    held_out_lost       held-out accuracy is below what the stage began with
    kl_jumps            the divergence from the reference leaves its running median
    entropy_collapses   the policy loses its entropy and gains nothing for it

A rise or fall is the Mann-Kendall test (Mann 1945; Kendall 1975): the sign of every pair of points, so that one outlier cannot make it
and no scale is assumed. It is taken over 20 points, each a step, and again over 20 points that are medians of 5 steps: the first sees a
policy run away, the second one that drifts. Thresholds are below, with why; tests/run/test_monitor.py bounds how often noise alone sets
them off. An alarm is no verdict: it says where to look.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from statistics import median
from typing import Any, NamedTuple

NUM_POINTS = 20
"""Enough for a test of rank to be sharp (z reaches 6), few enough to speak before a small run is over."""
STEPS_PER_POINT = (1, 5)
CLEAR = 3.3
"""z of a rise: noise reaches it in one of 4,000 windows, and in one of 90 where neighbouring steps correlate by 0.5 (simulated; real steps
do by -0.4 to 0.3, having other prompts). Overlapping windows make that more, so every alarm asks for a second sign, or for size."""
FLAT = 1.0
"""z up to which "does not rise" is said."""
MIN_CHANGE = 0.05
"""A rise or fall of less than 5% is none, however clear: steps of many samples make specks significant."""
HELD_OUT_ERRORS = 3.0
"""Standard errors of a difference, between the worse of two evaluations running and the better of the last two: the best single one of
twenty lies two errors too high by luck alone."""
KL_FACTOR, KL_DEVIATIONS, KL_FLOOR = 5.0, 10.0, 0.01
"""A jump, two steps running: five medians, ten robust deviations, and a hundredth nat a token. A divergence that grows as the square of the
steps, as after a refreshed reference, is at four medians."""
COLLAPSE = 3.0
"""Entropy at a third within one window. Healthy runs do that too, while their reward rises."""
LENGTH, REPETITION, TOTAL = "rollout/completion_tokens", "rollout/repeated_4gram_frac", "reward/total"


@dataclass(frozen=True)
class Alarm:
    """``evidence`` holds for each metric what it was and what it became, and how many steps were looked at."""

    step: int
    alarm: str
    text: str
    evidence: Mapping[str, Any]


class Measured(NamedTuple):
    """An evaluation on held-out problems; they compare by accuracy."""

    accuracy: float
    error: float
    step: int


class Trend(NamedTuple):
    """Where a metric went: medians of the first and the last third of its points, and the z of the Mann-Kendall test."""

    before: float
    after: float
    z: float

    @property
    def rises(self) -> bool:
        return self.z >= CLEAR and self.is_material

    @property
    def falls(self) -> bool:
        return self.z <= -CLEAR and self.is_material

    @property
    def is_material(self) -> bool:
        return abs(self.after - self.before) >= MIN_CHANGE * max(abs(self.before), abs(self.after))

    def __str__(self) -> str:
        return f"{self.before:.3g} to {self.after:.3g}"


@dataclass
class Watch:
    """Fed with each step's metrics in turn. The same metrics give the same alarms: to resume, feed it what metrics.jsonl holds.

    rules      names of the rewards that follow rules
    models     names of those that a model gives
    accuracy   the rule that says whether an answer is right, if there is one
    began      held-out accuracy before the first step, where it was measured
    """

    rules: Sequence[str]
    models: Sequence[str] = ()
    accuracy: str | None = None
    began: Measured | None = None
    _steps: deque[Mapping[str, float]] = field(default_factory=lambda: deque(maxlen=NUM_POINTS * max(STEPS_PER_POINT)))
    _held_out: list[Measured] = field(default_factory=list)
    _last_seen: dict[str, int] = field(default_factory=dict)
    _num_seen: int = 0

    def step(self, step: int, metrics: Mapping[str, Any]) -> list[Alarm]:
        """What is new to say after this step. A sign that stays is said once, and again only after a window without it."""
        self._steps.append({name: value for name, value in metrics.items() if isinstance(value, int | float) and math.isfinite(value)})
        self._num_seen += 1
        alarms = []
        for key, text, evidence in self._signs(step):
            if step - self._last_seen.get(key, -NUM_POINTS - 1) > NUM_POINTS:
                alarms.append(Alarm(step, key.partition(":")[0], text, evidence))
            self._last_seen[key] = step
        return alarms

    def catch_up(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Know what an earlier process knew: its steps' metrics as they were written down, whose alarms have been raised."""
        for row in rows:
            self.step(row["step"], row)

    def _signs(self, step: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """(key, text, evidence) of every sign that is there now."""
        for width in STEPS_PER_POINT:
            if len(self._steps) >= NUM_POINTS * width and self._num_seen % width == 0:
                yield from self._diverging(width)
                yield from self._paid_for_length(width)
                yield from self._collapsing(width)
        yield from self._jumping()
        yield from self._held_out_falling(step)

    def _diverging(self, width: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for model in self.models:
            for rule in self.rules:
                one, other = self._trend(f"reward/{model}", width), self._trend(f"reward/{rule}", width)
                if one is None or other is None or not ((one.rises and other.falls) or (one.falls and other.rises)):
                    continue
                ways = ("rises", "falls") if one.rises else ("falls", "rises")
                text = (
                    f"rewards diverge: {model!r} {ways[0]} ({one}) while {rule!r} {ways[1]} ({other}) over {NUM_POINTS * width} steps; "
                    "read samples that one of them likes and the other does not"
                )
                yield f"rewards_diverge:{model}:{rule}", text, _evidence(width, {f"reward/{model}": one, f"reward/{rule}": other})

    def _paid_for_length(self, width: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
        right, total = self._trend(f"reward/{self.accuracy}", width), self._trend(TOTAL, width)
        if right is None or total is None or right.z > FLAT or not total.rises:
            return
        for key, name, words in (
            ("length_pays", LENGTH, "completions grow"),
            ("repetition_pays", REPETITION, "completions repeat themselves"),
        ):
            trend = self._trend(name, width)
            if trend is not None and trend.rises:
                text = (
                    f"{words} ({trend}) and the reward rises with them ({total}), but {self.accuracy!r} does not ({right}) over "
                    f"{NUM_POINTS * width} steps; something other than right answers is paid for: read the best-paid samples"
                )
                yield key, text, _evidence(width, {name: trend, TOTAL: total, f"reward/{self.accuracy}": right})

    def _collapsing(self, width: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
        entropy, total = self._trend("policy/entropy", width), self._trend(TOTAL, width)
        if entropy is None or total is None or not entropy.falls or entropy.after * COLLAPSE > entropy.before or total.z > FLAT:
            return
        text = (
            f"entropy collapses ({entropy} nats a token) over {NUM_POINTS * width} steps and the reward does not rise ({total}): soon all samples "
            "of a prompt are the same; lower the learning rate, or raise kl_coef or the temperature"
        )
        yield "entropy_collapses", text, _evidence(width, {"policy/entropy": entropy, TOTAL: total})

    def _jumping(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        values = [value for row in self._steps if (value := row.get("loss/kl", 0.0)) > 0][-NUM_POINTS - 2 :]
        if len(values) < NUM_POINTS + 2 or not self._steps[-1].get("loss/kl"):
            return
        *usual, one, two = values
        centre = median(usual)
        deviation = 1.4826 * median(abs(value - centre) for value in usual)  # as large as a standard deviation, where noise is normal
        if min(one, two) <= max(KL_FACTOR * centre, centre + KL_DEVIATIONS * deviation, KL_FLOOR):
            return
        text = (
            f"the divergence from the reference jumps to {two:.3g} nats a token; its median over {NUM_POINTS} steps was {centre:.3g}: look "
            "at these steps' samples and gradient norms before going on"
        )
        yield "kl_jumps", text, {"loss/kl": [centre, two], "steps": NUM_POINTS}

    def _held_out_falling(self, step: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
        row = self._steps[-1]
        if "eval/accuracy" not in row or "eval/accuracy_se" not in row:
            return
        self._held_out.append(Measured(row["eval/accuracy"], row["eval/accuracy_se"], step))
        if self.began is not None and len(self._held_out) >= 2:
            yield from self._held_out_lost(self.began, max(self._held_out[-2:]))
        if len(self._held_out) < 4:
            return
        best, last = max(min(pair) for pair in pairwise(self._held_out[:-2])), max(self._held_out[-2:])
        if not is_below(last, best):
            return
        since = [row[TOTAL] for row in list(self._steps)[-(step - best.step) :] if TOTAL in row]
        total = trend_of(since)
        if not total.rises:
            return
        text = (
            f"held-out accuracy falls ({best.accuracy:.3g} at step {best.step} to {last.accuracy:.3g}) while the training reward rises "
            f"({total}): the policy learns the training prompts or their rewards, not the task; go back to the best checkpoint"
        )
        yield (
            "held_out_falls",
            text,
            {"eval/accuracy": [best.accuracy, last.accuracy], TOTAL: [total.before, total.after], "steps": len(since)},
        )

    def _held_out_lost(self, began: Measured, last: Measured) -> Iterator[tuple[str, str, dict[str, Any]]]:
        if not is_below(last, began):
            return
        text = (
            f"held-out accuracy is {last.accuracy:.3g}, and was {began.accuracy:.3g} when the stage began: the rewards pay for something else, "
            "or the learning rate is too high; read the best-paid samples"
        )
        yield "held_out_lost", text, {"eval/accuracy": [began.accuracy, last.accuracy]}

    def _trend(self, name: str, width: int) -> Trend | None:
        """Over the last points of ``width`` steps each; None where the metric is missing in any."""
        values = [row.get(name) for row in list(self._steps)[-NUM_POINTS * width :]]
        blocks = [[value for value in values[start : start + width] if value is not None] for start in range(0, len(values), width)]
        return trend_of([median(block) for block in blocks]) if all(blocks) else None


def is_below(one: Measured, other: Measured) -> bool:
    """By more than their errors explain."""
    return other.accuracy - one.accuracy > HELD_OUT_ERRORS * math.hypot(one.error, other.error)


def trend_of(points: Sequence[float]) -> Trend:
    """The Mann-Kendall test with its correction for ties: z = S / sqrt(Var S), S the sum of the signs of all pairs' differences."""
    third, n = max(1, len(points) // 3), len(points)
    signs = sum((later > earlier) - (later < earlier) for earlier, later in combinations(points, 2))
    ties = sum(t * (t - 1) * (2 * t + 5) for t in Counter(points).values())
    variance = (n * (n - 1) * (2 * n + 5) - ties) / 18
    return Trend(median(points[:third]), median(points[-third:]), signs / math.sqrt(variance) if variance > 0 else 0.0)


def _evidence(width: int, trends: Mapping[str, Trend]) -> dict[str, Any]:
    return {**{name: [trend.before, trend.after] for name, trend in trends.items()}, "steps": NUM_POINTS * width}
