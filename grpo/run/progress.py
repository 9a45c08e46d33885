"""What a person sees while a recipe runs: a few lines that change in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import TracebackType
from typing import TYPE_CHECKING, Any

from grpo.util.streams import lasting
from grpo.util.text import printable_lines

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_EVERY_S = 10.0
SHOWN = {
    "reward/total": "reward",
    "eval/accuracy": "accuracy",
    "rollout/completion_tokens": "length",
    "rollout/well_formed_frac": "well-formed",
    "loss/total": "loss",
    "rollout/tokens_per_s": "tok/s",
}
CURVES = ("reward/total", "loss/total")
BLOCKS = "▁▂▃▄▅▆▇█"
CURVE_COLUMNS = 24


class Progress:
    """Knows which stage of how many is running, and how far it is. ``after_step`` is called once a step is shown."""

    def __init__(self, num_stages: int, after_step: Callable[[], None] | None = None, console: Console | None = None):
        from rich.console import Console

        self.num_stages = num_stages
        self._after_step = after_step
        self._console = console or Console(file=lasting(sys.stdout), soft_wrap=not sys.stdout.isatty(), highlight=False)
        self._live: Any = None
        self._last_plain = 0.0
        self._begin("")

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            from rich.live import Live

            self._live = Live("", console=self._console, refresh_per_second=4, transient=True)
            self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)
            self._live = None

    def stage(self, number: int, name: str, kind: str, summary: str) -> None:
        """A stage begins."""
        self._begin(f"[{number}/{self.num_stages}] {name}")
        self._last_plain = 0.0
        self.say(f"{self._title} ({kind}) {summary}")

    def task(self, what: str) -> None:
        """Something other than a stage begins: making a model."""
        self._begin(" ")
        self._last_plain = time.monotonic()
        self.say(what)

    def say(self, text: str) -> None:
        """A line that stays. Nothing in it is markup, and nothing a command to the terminal: it may hold what a model wrote."""
        self._console.print(printable_lines(text), markup=False)

    def doing(self, what: str) -> None:
        """What is going on within the step; shown in a terminal only."""
        self._note = what
        self._refresh()

    def step(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """``done`` of ``total`` steps are over."""
        left = self._left(done, total)
        numbers = {label: _short(metrics[key]) for key, label in SHOWN.items() if key in metrics}
        if self._live is not None:
            self._done, self._total, self._time_left = done, total, left
            self._numbers |= numbers
            if "accuracy" in numbers:
                self._numbers["accuracy"] += f" (step {done})"
            self._curve += [metrics[key] for key in CURVES if key in metrics][:1]
            self._refresh()
        elif done == total or time.monotonic() - self._last_plain > PLAIN_EVERY_S:
            self._last_plain = time.monotonic()
            shown = "  ".join(f"{label} {number}" for label, number in numbers.items())
            self.say(f"{self._title}  step {done}/{total}{left}  {shown}")
        if self._after_step is not None and done < total:
            self._after_step()

    def _begin(self, title: str) -> None:
        self._title, self._note, self._time_left = title, "", ""
        self._first_done: int | None = None
        self._done, self._total = 0, 0
        self._numbers: dict[str, str] = {}
        self._curve: list[float] = []

    def _left(self, done: int, total: int) -> str:
        """By the pace of the steps that this process has seen begin and end; the first one's beginning is not known."""
        now = time.monotonic()
        if self._first_done is None:
            self._first_done, self._first_end = done, now
            return ""
        if done == self._first_done:  # told again, as of a model that is being made
            return ""
        pace = (now - self._first_end) / (done - self._first_done)
        return f", {_duration(pace * (total - done))} left"

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.update(self.screen())

    def screen(self) -> Any:
        """A bar, the last numbers in as many columns as fit, and what is going on."""
        from rich.columns import Columns
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        doing = f"  {printable_lines(self._note)}"
        if not self._total:
            return Text(self._title + doing, style="dim")
        head = Table.grid(padding=(0, 2), expand=True)
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True, justify="right")
        bar = ProgressBar(total=self._total, completed=self._done)
        head.add_row(Text(self._title, style="bold"), bar, f"step {self._done}/{self._total}{self._time_left}")
        numbers = [Text(f"  {label} ", style="dim").append(number, style="not dim bold") for label, number in self._numbers.items()]
        lines: list[Any] = [head, Columns(numbers, padding=(0, 1))]
        if len(self._curve) > 1 and (self._console.encoding or "").startswith("utf"):
            curve = next(SHOWN[key] for key in CURVES if SHOWN[key] in self._numbers)
            lines.append(Text(f"  {curve} ", style="dim").append(sparkline(self._curve, CURVE_COLUMNS), style="not dim"))
        return Group(*lines, Text(doing, style="dim", overflow="ellipsis", no_wrap=True))


def sparkline(values: Sequence[float], columns: int) -> str:
    """Means of consecutive values as blocks between the least and the largest mean; what is not finite is a blank."""
    edges = [round(i * len(values) / min(columns, len(values))) for i in range(min(columns, len(values)) + 1)]
    means = [math.fsum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    finite = [mean for mean in means if math.isfinite(mean)]
    if not finite:
        return " " * len(means)
    low, span = min(finite), max(finite) - min(finite) or 1.0
    return "".join(BLOCKS[round((mean - low) / span * (len(BLOCKS) - 1))] if math.isfinite(mean) else " " for mean in means)


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{round(value, 2) + 0.0:.2f}"  # never -0.00


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
