#!/usr/bin/env python3
"""Pictures of what commands print, for README and documentation: each is run in a terminal of so many columns, and its screen saved as SVG.

    python scripts/write_pictures.py [NAME ...] [--columns 100] [--out docs/pictures]
"""

from __future__ import annotations

import argparse
import os
import pty
import subprocess
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "plan": "grpo plan r1_zero_tiny",
    "errors": "grpo run wrong.yaml",
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
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(COMMANDS), help=f"of {', '.join(COMMANDS)} (default: all)")
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures")
    arguments = parser.parse_args()
    for name in arguments.names:
        screen = printed(COMMANDS[name], arguments.columns)
        console = Console(record=True, width=arguments.columns, file=open(os.devnull, "w"))  # noqa: SIM115 - as long as the process
        console.print(Text.from_ansi(screen.rstrip("\n"), overflow="fold"))
        file = arguments.out / f"{name}.svg"
        console.save_svg(str(file), title=f"$ {COMMANDS[name]}", theme=LIGHT, code_format=FRAME, unique_id=name)
        print(file)


def printed(command: str, columns: int) -> str:
    """What a terminal shows of it."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "wrong.yaml").write_text(WRONG, encoding="utf-8")
        (Path(folder) / "brief.py").write_text(BRIEF, encoding="utf-8")
        ours, theirs = pty.openpty()
        environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
        running = subprocess.Popen(command.split(), cwd=folder, env=environment, stdout=theirs, stderr=theirs, close_fds=True)
        os.close(theirs)
        text = bytearray()
        while True:
            try:
                text += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not text:
                break
        running.wait()
    return text.decode().replace("\r\n", "\n")


if __name__ == "__main__":
    main()
