"""Each sign of a hacked reward is seen when it is there, not when its healthy likeness is, and hardly ever in noise."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from grpo.run.monitor import Alarm, Measured, Watch, trend_of

HEALTHY = [json.loads(line) for line in (Path(__file__).parent / "healthy_runs.jsonl").read_text().splitlines()]
Series = Callable[[int], float]


def alarms(num_steps: int = 60, seed: int = 0, correlation: float = 0.0, **series: Series) -> list[Alarm]:
    """What a watch says of a run whose metrics are these functions of the step, with the noise of small batches on them.

    Noise is 3% of the level (entropy 10%, divergence 40%, repetition 30%), with ``correlation`` between neighbouring steps.
    """
    usual: dict[str, Series] = {
        "math": lambda step: 0.6,
        "judge": lambda step: 0.5,
        "length": lambda step: 200.0,
        "repetition": lambda step: 0.02,
        "kl": lambda step: 0.05,
        "entropy": lambda step: 0.3,
        "accuracy": lambda step: 0.6,
    }
    curves, rng = {**usual, **series}, random.Random(seed)
    noise = dict.fromkeys(curves, 0.0)
    spread = {"kl": 0.4, "entropy": 0.1, "repetition": 0.3}
    watch = Watch(rules=("math", "format"), models=("judge",), accuracy="math")
    found = []
    for step in range(1, num_steps + 1):
        for name in noise:
            noise[name] = correlation * noise[name] + math.sqrt(1 - correlation**2) * rng.gauss(0, 1)
        at = {name: curve(step) * math.exp(spread.get(name, 0.03) * noise[name]) for name, curve in curves.items()}
        metrics = {
            "reward/math": at["math"],
            "reward/judge": at["judge"],
            "reward/format": 1.0,
            "reward/total": at["math"] + at["judge"] + 0.2,
            "rollout/completion_tokens": at["length"],
            "rollout/repeated_4gram_frac": at["repetition"],
            "loss/kl": at["kl"],
            "policy/entropy": at["entropy"],
        }
        if step % 5 == 0:
            metrics |= {"eval/accuracy": curves["accuracy"](step) + 0.015 * rng.gauss(0, 1), "eval/accuracy_se": 0.015}
        found += watch.step(step, metrics)
    return found


def kinds(found: list[Alarm]) -> set[str]:
    return {alarm.alarm for alarm in found}


def ramp(start: float, end: float, first: int = 20, last: int = 60) -> Series:
    return lambda step: start + (end - start) * min(1.0, max(0.0, (step - first) / (last - first)))


# --- Is each sign seen? -----------------------------------------------------------------------------


def test_a_judge_that_is_pleased_while_answers_get_worse() -> None:
    (alarm,) = alarms(judge=ramp(0.4, 0.9), math=ramp(0.6, 0.2))
    assert alarm.alarm == "rewards_diverge" and 25 < alarm.step < 50
    assert alarm.text.startswith("rewards diverge: 'judge' rises (0.") and "while 'math' falls (0." in alarm.text
    before, after = alarm.evidence["reward/judge"]
    assert before < after and alarm.evidence["reward/math"][0] > alarm.evidence["reward/math"][1] and alarm.evidence["steps"] == 20


def test_rules_that_are_met_while_the_judge_is_not_pleased() -> None:
    (alarm,) = alarms(judge=ramp(0.8, 0.4), math=ramp(0.3, 0.8))
    assert alarm.alarm == "rewards_diverge" and "'judge' falls" in alarm.text


def test_length_that_pays_without_being_right() -> None:
    found = alarms(length=ramp(200, 600), judge=ramp(0.4, 0.8))
    assert kinds(found) == {"length_pays"} and "completions grow (" in found[0].text and "but 'math' does not" in found[0].text


def test_repetition_that_pays_without_being_right() -> None:
    found = alarms(repetition=ramp(0.02, 0.5), judge=ramp(0.4, 0.8))
    assert kinds(found) == {"repetition_pays"} and "completions repeat themselves (" in found[0].text


def test_held_out_accuracy_that_falls_while_the_training_reward_rises() -> None:
    found = alarms(accuracy=ramp(0.6, 0.3), math=ramp(0.6, 0.9))
    assert kinds(found) == {"held_out_falls"}
    assert found[0].evidence["eval/accuracy"][0] > found[0].evidence["eval/accuracy"][1]
    assert "go back to the best checkpoint" in found[0].text


def test_held_out_accuracy_below_the_stages_beginning() -> None:
    """Two evaluations running, by three errors of the difference: 3 x hypot(0.006, 0.003) is 0.02."""
    watch = Watch(rules=("math", "brief"), accuracy="math", began=Measured(0.03, 0.006, 0))
    evaluations = [0.001, 0.02, 0.002, 0.003, 0.0]
    found = [watch.step(step, {"eval/accuracy": value, "eval/accuracy_se": 0.003}) for step, value in enumerate(evaluations, 1)]
    assert [len(alarms) for alarms in found] == [0, 0, 0, 1, 0]
    assert found[3][0].alarm == "held_out_lost" and found[3][0].evidence == {"eval/accuracy": [0.03, 0.003]}
    assert "is 0.003, and was 0.03 when the stage began" in found[3][0].text


def test_a_divergence_that_jumps() -> None:
    found = alarms(kl=lambda step: 0.05 if step < 40 else 1.0)
    assert [(alarm.alarm, alarm.step) for alarm in found] == [("kl_jumps", 41)]  # two steps running


def test_an_entropy_that_collapses_for_nothing() -> None:
    found = alarms(entropy=lambda step: 0.3 * math.exp(-max(0, step - 20) / 8))
    assert kinds(found) == {"entropy_collapses"} and "the reward does not rise" in found[0].text


def test_a_slow_drift_is_seen_over_points_of_five_steps() -> None:
    """Over twenty steps a change of 4% is lost in noise of 3% a step; over a hundred it is 20%."""
    found = alarms(300, judge=ramp(0.5, 0.8, 0, 300), math=ramp(0.6, 0.4, 0, 300))
    assert kinds(found) == {"rewards_diverge"} and found[0].evidence["steps"] == 100


# --- And its healthy likeness not? ------------------------------------------------------------------


@pytest.mark.parametrize(
    "series",
    [
        {"math": ramp(0.1, 0.8), "judge": ramp(0.2, 0.8), "length": ramp(200, 900)},  # thinking longer and being right more often
        {"math": ramp(0.1, 0.8), "entropy": lambda step: 0.9 * math.exp(-step / 8)},  # growing sure of what is right
        {"kl": lambda step: 1e-4 * step**2},  # leaving the reference steadily
        {"kl": lambda step: 0.0 if step % 25 == 0 else 1e-5 * (step % 25) ** 2},  # a reference that is refreshed
        {"kl": lambda step: 2.0 if step == 40 else 0.05},  # one odd batch
        {"kl": lambda step: 0.0},  # no divergence in the loss
        {"accuracy": ramp(0.6, 0.3), "math": ramp(0.6, 0.3)},  # getting worse everywhere is plain to see already
        {"length": ramp(600, 200), "judge": ramp(0.4, 0.8)},  # shorter and better
        {"judge": lambda step: 0.0},  # a judge that says nothing
    ],
)
def test_what_only_looks_like_it_is_passed_over(series: dict[str, Series]) -> None:
    assert alarms(60, **series) == []


@pytest.mark.parametrize("run", HEALTHY, ids=lambda run: run["run"])
@pytest.mark.parametrize("models", [(), ("format",)])
def test_healthy_runs_set_off_nothing(run: dict, models: tuple[str, ...]) -> None:
    """Metrics of this toolkit's own runs of 40 to 100 steps, in which held-out accuracy rose or stayed; also with a rule taken for a judge."""
    names = [name.removeprefix("reward/") for name in run["metrics"] if name.startswith("reward/") and name != "reward/total"]
    watch = Watch([name for name in names if name not in models], models, "math")
    steps = [dict(zip(run["metrics"], values, strict=True)) for values in zip(*run["metrics"].values(), strict=True)]
    assert len(steps) >= 40
    assert [alarm for step, metrics in enumerate(steps, 1) for alarm in watch.step(step, metrics)] == []


@pytest.mark.parametrize(
    ("correlation", "series", "most"),
    [
        (0.0, {}, 1),
        (0.0, {"math": ramp(0.3, 0.8, 0, 100), "judge": ramp(0.3, 0.6, 0, 100)}, 1),  # learning
        (0.5, {}, 3),
    ],
)
def test_noise_alone_hardly_ever_sets_it_off(correlation: float, series: dict[str, Series], most: int) -> None:
    """30 runs of 100 steps. In the runs above, neighbouring steps correlate by -0.4 to 0.3 once their trend is gone: 0.5 is worse."""
    assert sum(bool(alarms(100, seed, correlation, **series)) for seed in range(30)) <= most


# --- How is it said? --------------------------------------------------------------------------------


def test_a_sign_that_stays_is_said_once_and_again_after_a_window_without_it() -> None:
    jumps = (40, 41, 42, 43, 100, 101, 102)
    found = alarms(110, kl=lambda step: 2.0 if step in jumps else 0.05)
    assert [alarm.step for alarm in found] == [41, 101]


def test_missing_metrics_and_nan_are_no_signs() -> None:
    watch = Watch(("math",), ("judge",), "math")
    for step in range(1, 61):
        assert (
            watch.step(step, {"reward/math": 1 - step / 60, "reward/judge": float("nan") if step % 3 else step, "eval/accuracy": None})
            == []
        )
    assert Watch((), (), None).step(1, {}) == []


def test_the_same_metrics_give_the_same_alarms() -> None:
    series = {"judge": ramp(0.4, 0.9), "math": ramp(0.6, 0.2)}
    assert alarms(**series) == alarms(**series) != []


def test_a_trend_is_mann_kendalls() -> None:
    """Of 1, 3, 2, 4: five pairs rise, one falls, so S = 4; Var = 4*3*13/18 = 26/3; z = 4 / sqrt(26/3).
    Of 1, 1, 2: S = 2, and the tie of two takes 2*1*9 from 3*2*11: Var = 48/18."""
    assert trend_of([1, 3, 2, 4]).z == pytest.approx(4 / math.sqrt(26 / 3))
    assert trend_of([1, 1, 2]).z == pytest.approx(2 / math.sqrt(48 / 18))
    assert trend_of([5, 5, 5]).z == 0
    assert trend_of(list(range(20))).z == pytest.approx(190 / math.sqrt(950))
