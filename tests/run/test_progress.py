"""What a person sees while a recipe runs."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator

import pytest
from rich.console import Console

from grpo.run import progress as module
from grpo.run.progress import Progress, sparkline

METRICS = {
    "reward/total": 0.531,
    "rollout/completion_tokens": 28.25,
    "rollout/well_formed_frac": 0.984,
    "loss/total": -0.012,
    "rollout/tokens_per_s": 1204.0,
}


class Clock:
    now = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(module.time, "monotonic", lambda: clock.now)
    yield clock


def terminal(columns: int) -> Console:
    return Console(file=io.StringIO(), width=columns, force_terminal=True, color_system=None, legacy_windows=False)


def lines_of(progress: Progress, columns: int) -> list[str]:
    console = Console(file=io.StringIO(), width=columns, color_system=None)
    console.print(progress.screen())
    return [line.rstrip() for line in console.file.getvalue().rstrip("\n").split("\n")]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("columns", "rows"), [(80, 5), (120, 4)])
def test_a_terminal_shows_stage_numbers_curve_and_what_is_going_on(clock: Clock, columns: int, rows: int) -> None:
    with Progress(6, console=terminal(columns)) as progress:
        progress.stage(2, "reason", "rl", "from base")
        for step, reward in ((1, 0.0), (2, 0.25), (3, 1.0)):
            clock.now += 10
            measured = {"eval/accuracy": 0.47} if step == 2 else {}
            progress.step(step, 60, {**METRICS, **measured, "reward/total": reward})
        progress.doing("step 4: drawn 64/256 samples")
        lines = lines_of(progress, columns)
    assert len(lines) == rows and max(map(len, lines)) <= columns
    assert lines[0].startswith("[2/6] reason") and lines[0].endswith("step 3/60, 10 min left")
    numbers = " ".join(" ".join(lines[1:-2]).split())
    assert numbers == "reward 1.00 length 28.25 well-formed 0.98 loss -0.01 tok/s 1204 accuracy 0.47 (step 2)"
    assert lines[-2:] == ["  reward ▁▃█", "  step 4: drawn 64/256 samples"]


def test_before_the_first_step_there_is_one_line(clock: Clock) -> None:
    with Progress(1, console=terminal(80)) as progress:
        progress.stage(1, "reason", "rl", "from base")
        progress.doing("starting 2 vllm worker(s)")
        assert lines_of(progress, 80) == ["[1/1] reason  starting 2 vllm worker(s)"]


def test_a_new_stage_forgets_the_last_ones_numbers(clock: Clock) -> None:
    with Progress(2, console=terminal(80)) as progress:
        progress.stage(1, "reason", "rl", "from base")
        progress.step(1, 2, METRICS)
        progress.stage(2, "sft", "sft", "from base")
        progress.step(1, 2, {"loss/total": 1.5})
        assert "reward" not in "".join(lines_of(progress, 80)) and "loss 1.50" in lines_of(progress, 80)[1]


def test_time_left_goes_by_the_steps_of_this_process(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that goes on from step 90 has not made 91 steps in its first two minutes."""
    with Progress(1) as progress:
        progress.stage(1, "reason", "rl", "from base")
        for clock.now, step in ((100.0, 91), (120.0, 92), (140.0, 93)):
            progress.step(step, 120, {"reward/total": 0.5})
    said = [line.removeprefix("[1/1] reason  step ") for line in capsys.readouterr().out.splitlines()[1:]]
    assert said == ["91/120  reward 0.50", "92/120, 9 min left  reward 0.50", "93/120, 9 min left  reward 0.50"]  # 28 and 27 steps of 20 s


def test_a_number_that_rounds_to_nothing_has_no_sign(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(1) as progress:
        progress.stage(1, "reason", "rl", "from base")
        clock.now = 20.0
        progress.step(1, 1, {"loss/total": -0.001})
    assert "loss 0.00" in capsys.readouterr().out


def test_a_sparkline_is_means_between_the_least_and_the_largest() -> None:
    assert sparkline([0.0, 1.0], 24) == "▁█"
    assert sparkline([0.0, 0.0, 3.0, 4.0, 7.0, 7.0], 3) == "▁▅█"  # means 0, 3.5, 7
    assert sparkline([2.0, 2.0], 24) == "▁▁"
    assert sparkline([0.0, math.nan, 7.0], 24) == "▁ █"
    assert sparkline([math.nan], 24) == " "


def test_a_step_that_is_told_twice_is_no_pace(clock: Clock) -> None:
    """A model that is being made is asked for its step every two seconds, and a step may take longer."""
    with Progress(1, console=terminal(80)) as progress:
        progress.task("making the model")
        for step in (1, 1, 2):
            clock.now += 10
            progress.step(step, 20, {"loss/total": 1.0})
        assert lines_of(progress, 80)[0].endswith("step 2/20, 6 min left")  # 18 of the 20 s from the first to the second
