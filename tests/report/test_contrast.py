"""Text and lines can be told from what lies behind them, by light and by dark: WCAG 2.2 asks 4.5 of text and 3 of what is drawn."""

from __future__ import annotations

import re

import pytest

from grpo.report.charts import chart_style

TEXTS = ("ink", "quiet", "link", "good", "bad", "open", "tag")
LINES = ("c0", "c1", "c2", "c3", "c4", "c5")


def colours(scheme: str) -> dict[str, str]:
    light, dark = str(chart_style()).split("@media (prefers-color-scheme: dark)")
    return dict(re.findall(r"--(\w+): (#[0-9a-f]{3,6});", light if scheme == "light" else dark))


def luminance(colour: str) -> float:
    """Relative luminance of "#rgb" or "#rrggbb" (WCAG 2.2)."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_black_on_white_has_a_contrast_of_21() -> None:
    assert contrast("#000000", "#fff") == pytest.approx(21)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out(scheme: str) -> None:
    found = colours(scheme)
    for behind in ("page", "card"):
        text = {name: contrast(found[name], found[behind]) for name in TEXTS}
        lines = {name: contrast(found[name], found[behind]) for name in LINES}
        assert min(text.values()) >= 4.5, text
        assert min(lines.values()) >= 3, lines
