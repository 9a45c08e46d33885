#!/usr/bin/env python3
"""Pictures of what commands print, for README and documentation: each is run in a terminal of so many columns, and its screen saved as SVG.

    python scripts/write_pictures.py [NAME ...] [--out docs/pictures]

Those of a run, live-80 and live-120, take some minutes each: they start r1_zero_tiny, and end it at a step in its middle.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Picture:
    """``until``: of a command that goes on, what its screen shows when the picture is taken."""

    command: str
    columns: int = 100
    until: str = ""


LIVE = "grpo run r1_zero_tiny --out zero"
PICTURES = {
    "plan": Picture("grpo plan r1_zero_tiny"),
    "errors": Picture("grpo run wrong.yaml"),
    "live-80": Picture(LIVE, 80, "step 16: "),
    "live-120": Picture(LIVE, 120, "step 16: "),
}
WRONG = """\
extends: r1_zero_tiny
name: wrong
data:
  sums: {settings: {min_term: 3}}
stages:
  - name: reason
    sampels_per_prompt: 8
    learning_rate: fast
    max_prompt_tokens: 64
    rewards:
      - {use: maths}
      - {use: ./brief.py:brief, limits: 30}
"""
BRIEF = "def brief(num_tokens: int, *, limit: int = 40) -> float:\n    return float(num_tokens <= limit)\n"
LIGHT = TerminalTheme(
    (250, 251, 252),
    (36, 41, 47),
    [(36, 41, 47), (180, 35, 24), (26, 127, 55), (154, 103, 0), (9, 105, 218), (130, 80, 223), (27, 124, 131), (110, 119, 129)],
)
# rich's own frame loads a font from elsewhere; this one takes what the reader has
FRAME = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">
<style>.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: {char_height}px;
line-height: {line_height}px; }} .{unique_id}-title {{ font-family: system-ui, sans-serif; font-size: 16px; }} {styles}</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>{lines}</defs>
{chrome}<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g></g></svg>
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(PICTURES), help=f"of {', '.join(PICTURES)} (default: all)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures")
    arguments = parser.parse_args()
    for name in arguments.names:
        picture = PICTURES[name]
        console = Console(record=True, width=picture.columns, file=open(os.devnull, "w"))  # noqa: SIM115 - as long as the process
        console.print(Text.from_ansi(screen(picture).strip("\n"), overflow="fold"))
        file = arguments.out / f"{name}.svg"
        console.save_svg(str(file), title=f"$ {picture.command}", theme=LIGHT, code_format=FRAME, unique_id=name)
        print(file)


def screen(picture: Picture) -> str:
    """What a terminal shows of it."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "wrong.yaml").write_text(WRONG, encoding="utf-8")
        (Path(folder) / "brief.py").write_text(BRIEF, encoding="utf-8")
        ours, theirs = pty.openpty()
        environment = {**os.environ, "COLUMNS": str(picture.columns), "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
        running = subprocess.Popen(picture.command.split(), cwd=folder, env=environment, stdout=theirs, stderr=theirs, close_fds=True)
        os.close(theirs)
        text, shown = b"", ""
        while True:
            try:
                text += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            shown = without_movements(text.decode(errors="ignore"))
            if picture.until and re.search(picture.until, shown):
                running.terminate()
                with suppress(OSError):  # until the other end is closed: what is not read would hold it up
                    while os.read(ours, 65536):
                        pass
                break
        running.wait()
    return shown


def without_movements(text: str) -> str:
    """Lines as they stand after the cursor went up and wrote them anew; colours stay."""
    lines, row = [""], 0
    for piece in re.split(r"(\x1b\[\d*[AK]|\x1b\[\?25[lh]|\r|\n)", text):
        if piece == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif piece.startswith("\x1b[") and piece.endswith("A"):
            row -= int(piece[2:-1] or 1)
        elif piece.startswith("\x1b[") and piece.endswith("K"):
            lines[row] = ""
        elif piece != "\r" and not piece.startswith("\x1b[?25"):
            lines[row] += piece
    return "\n".join(lines)


if __name__ == "__main__":
    main()
