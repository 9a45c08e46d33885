"""How are a run's texts and numbers written for a person? Nothing unseen, nothing that a page could take for its own."""

from __future__ import annotations

import re
from typing import Any

from markupsafe import Markup, escape

from grpo.report.samples import Numbers

SIGNS = {"\n": "↵\n", "\t": "⇥\t"}
TAGS = re.compile(r"(</?[A-Za-z_][\w-]{0,30}>|<\|[^|<>\s]{1,60}\|>|⟨U\+[0-9A-F]{4,6}⟩)")


def visible(text: Any) -> str:
    """The text with line ends, control characters and direction-changing characters shown as signs; to escape it is the template's part."""
    return re.sub(r"[^\x20-\x7e]", lambda match: _sign(match[0]), str(text))


def tagged(text: Any) -> Markup:
    """The visible text, escaped, with tags and special tokens such as <think> and <|im_end|> set off from the rest."""
    pieces = TAGS.split(visible(text))
    return Markup("").join(Markup("<mark>{}</mark>").format(piece) if i % 2 else escape(piece) for i, piece in enumerate(pieces))


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"


def size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} GiB"


def score(scores: Numbers, name: str) -> str:
    """ "0.412 ± 0.015", or "–" where it was not measured."""
    if name not in scores:
        return "–"
    error = scores.get(f"{name}_se")
    return f"{scores[name]:.3f}" + (f" ± {error:.3f}" if error is not None else "")


def _sign(character: str) -> str:
    if character in SIGNS or character.isprintable():
        return SIGNS.get(character, character)
    return f"⟨U+{ord(character):04X}⟩"
