"""What stages say, to be looked at."""

from __future__ import annotations

from grpo.run.progress import Progress


class Heard(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(1)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)
