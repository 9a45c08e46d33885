"""What a person sees while a recipe runs: one live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from grpo.problems import printable_lines

PLAIN_EVERY_S = 10.0
SHOWN = {
    "reward/total": "reward",
    "eval/accuracy": "accuracy",
    "rollout/completion_tokens": "length",
    "rollout/well_formed_frac": "well-formed",
    "loss/total": "loss",
    "rollout/tokens_per_s": "tok/s",
}


class Progress:
    """Knows which stage of how many is running, and how far it is. ``after_step`` is called once a step is shown."""

    def __init__(self, num_stages: int, after_step: Callable[[], None] | None = None):
        from rich.console import Console

        self.num_stages = num_stages
        self._after_step = after_step
        self._console = Console(file=sys.stdout, soft_wrap=not sys.stdout.isatty(), highlight=False)
        self._live: Any = None
        self._title, self._began, self._last_plain, self._note = "", 0.0, 0.0, ""

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
        self._title, self._began, self._last_plain = f"[{number}/{self.num_stages}] {name}", time.monotonic(), 0.0
        self.say(f"{self._title} ({kind}) {summary}")

    def task(self, what: str) -> None:
        """Something other than a stage begins: making a model."""
        self._title, self._began, self._last_plain = " ", time.monotonic(), time.monotonic()
        self.say(what)

    def say(self, text: str) -> None:
        """A line that stays. Nothing in it is markup, and nothing a command to the terminal: it may hold what a model wrote."""
        self._console.print(printable_lines(text), markup=False)

    def doing(self, what: str) -> None:
        """What is going on within the step; shown in a terminal only."""
        self._note = what
        self._refresh(f"{self._title}  {what}")

    def step(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """``done`` of ``total`` steps are over."""
        elapsed = time.monotonic() - self._began
        left = elapsed / max(1, done) * (total - done)
        numbers = "  ".join(f"{label} {_short(metrics[key])}" for key, label in SHOWN.items() if key in metrics)
        line = f"{self._title}  step {done}/{total}  {numbers}  left {_duration(left)}"
        if self._live is not None:
            self._refresh(line)
        elif done == total or time.monotonic() - self._last_plain > PLAIN_EVERY_S:
            self._last_plain = time.monotonic()
            self.say(line)
        if self._after_step is not None and done < total:
            self._after_step()

    def _refresh(self, line: str) -> None:
        if self._live is not None:
            from rich.text import Text

            self._live.update(Text(printable_lines(line)))


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
