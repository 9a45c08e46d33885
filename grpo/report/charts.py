"""How do numbers become an SVG picture? Plain shapes with <title> tooltips; colours are the classes c0, c1, ... of charts.css."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from markupsafe import Markup

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 240, 50, 10, 26, 38
NUM_COLOURS, MAX_POINTS, MAX_BAND_POINTS, MAX_TOOLTIPS, MAX_BARS = 6, 200, 80, 60, 60
BAR, VALUE_WIDTH = 16, 104
MARGIN, LINE, CHARACTER_WIDTH = 12, 18, 6.6  # of a picture that stands alone
MIN_SMOOTHED = 12

Point = tuple[float, float]
Scale = Callable[[float], float]


@dataclass(frozen=True)
class Series:
    """A named row of (x, y), x ascending. ``errors`` are half-widths: a band around a marked series, whiskers on single points.

    Styles: a curve is a smoothed line over faint points; marked points are few, and joined; single ones are squares by themselves.
    A curve's band is ``spread``, (low, high) at each point, smoothed like its line; where none is given, and ``has_band``, one standard
    deviation of the points about the line.
    """

    name: str
    points: Sequence[Point]
    errors: Sequence[float] = ()
    colour: int = 0
    style: Literal["curve", "marked", "single"] = "curve"
    spread: Sequence[Point] = ()
    has_band: bool = False


@dataclass(frozen=True)
class Bar:
    name: str
    value: float
    error: float | None
    is_faint: bool


@dataclass(frozen=True)
class Chart:
    """A drawn chart. ``legend``: (class, name) of each colour; ``tips`` are unseen shapes that say what was measured where the pointer rests."""

    title: str
    note: str
    legend: Sequence[tuple[str, str]]
    height: float
    label: str
    shapes: Markup
    tips: Markup = Markup()

    def figure(self) -> Markup:
        """A <figure> of a page that has charts.css."""
        keys = Markup("").join(Markup('<li><i class="{}"></i>{}</li>').format(*key) for key in self.legend)
        return Markup(
            '<figure><figcaption><b>{}</b> <span class="note">{}</span><ul class="legend">{}</ul></figcaption>'
            '<svg viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">{}</svg></figure>'
        ).format(self.title, self.note, keys, WIDTH, self.height, self.label, self.shapes + self.tips)

    def picture(self) -> str:
        """A file of its own, light and dark: the caption and the legend are drawn as well."""
        y = MARGIN + 14.0
        drawn = [Markup('<text class="name" x="{}" y="{:.0f}">{}</text>').format(MARGIN, y, self.title)]
        note_at = MARGIN + 8.2 * len(self.title) + 10
        if self.note:
            if note_at + CHARACTER_WIDTH * len(self.note) > WIDTH:
                note_at, y = MARGIN, y + LINE
            drawn.append(Markup('<text x="{:.0f}" y="{:.0f}">{}</text>').format(note_at, y, self.note))
        x, y = float(MARGIN), y + LINE * bool(self.legend)
        for colour, name in self.legend:
            width = 22 + CHARACTER_WIDTH * len(name) + 12
            if x > MARGIN and x + width > WIDTH + MARGIN:
                x, y = float(MARGIN), y + LINE
            key = '<rect class="{}{}" x="{:.0f}" y="{:.0f}" width="14" height="{}"/><text x="{:.0f}" y="{:.0f}">{}</text>'
            is_area = "fill" in colour.split()
            place = (x, y - (9 if is_area else 5), 10 if is_area else 3, x + 20, y, name)
            drawn.append(Markup(key).format(colour, "" if is_area else " fill", *place))
            x += width
        y += 10
        width, height = WIDTH + 2 * MARGIN, y + self.height + MARGIN
        return Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {:.0f}" width="{}" height="{:.0f}" role="img"><title>{}: {}</title>'
            '<style>{}</style><rect width="100%" height="100%" rx="8" style="fill: var(--card)"/>{}<g transform="translate({} {:.0f})">{}</g></svg>\n'
        ).format(
            *(width, height, width, height, self.title, self.label, chart_style(), Markup("").join(drawn), MARGIN, y, self.shapes),
        )


def chart_style() -> Markup:
    """What charts look like, for a page's or a picture's <style>."""
    return Markup(Path(__file__).with_name("charts.css").read_text(encoding="utf-8"))


def line_chart(title: str, y_name: str, series: Sequence[Series], x_name: str = "step", note: str = "") -> Chart | None:
    """Curves over a common x; None where there is not a single point."""
    series = [one for one in series if one.points]
    if not series:
        return None
    errors = [y + sign * error for one in series for (_, y), error in zip(one.points, _padded(one), strict=True) for sign in (-1, 1)]
    bands = {id(one): band for one in series if (band := _band(one))}
    reach = [*errors, *(y for band in bands.values() for point in band for y in point[1:])]
    x_at, y_at, axes = _axes([x for one in series for x, _ in one.points], reach, x_name, y_name)
    shapes = [axes, *(_drawn(one, bands.get(id(one), []), x_at, y_at) for one in reversed(series))]
    tips = Markup("").join(_tooltips(series, x_at, x_name))
    legend = [(f"c{one.colour % NUM_COLOURS}", one.name) for one in series if one.style != "single"] if len(series) > 1 else []
    summary = "; ".join(f"{one.name} {number(one.points[0][1])} to {number(one.points[-1][1])}" for one in series)
    return Chart(title, note, legend, HEIGHT, f"{y_name} by {x_name}: {summary}", Markup("").join(shapes), tips)


def stacked_chart(title: str, y_name: str, xs: Sequence[float], parts: Mapping[str, Sequence[float]], x_name="step") -> Chart | None:
    """One bar for each x, or for several neighbours their mean; the legend gives each part's share of the whole."""
    if not xs or not parts:
        return None
    bins = _bins(len(xs), MAX_BARS)
    heights = {name: [float(np.mean(values[one])) for one in bins] for name, values in parts.items()}
    wholes = [sum(column) for column in zip(*heights.values(), strict=True)]
    x_at, y_at, axes = _axes([xs[0] - 0.5, xs[-1] + 0.5], [0.0, *wholes], x_name, y_name)
    shapes = [axes]
    for i, one in enumerate(bins):
        left, right = x_at(xs[one][0] - 0.5), x_at(xs[one][-1] + 0.5)
        bottom, rects = 0.0, []
        for colour, values in enumerate(heights.values()):
            top = bottom + values[i]
            box = (colour % NUM_COLOURS, left, y_at(top), max(0.5, (right - left) * 0.88), y_at(bottom) - y_at(top))
            rects.append(Markup('<rect class="c{} fill" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(*box))
            bottom = top
        tip = "\n".join([_place(x_name, xs[one]), *(f"{name}: {number(values[i])}" for name, values in heights.items())])
        shapes.append(Markup("<g><title>{}</title>{}</g>").format(tip, Markup("").join(rects)))
    whole = sum(map(sum, parts.values())) or 1.0
    legend = [(f"c{i % NUM_COLOURS} fill", f"{name} {sum(values) / whole:.0%}") for i, (name, values) in enumerate(parts.items())]
    return Chart(title, "", legend, HEIGHT, f"{y_name} by {x_name}: " + ", ".join(text for _, text in legend), Markup("").join(shapes))


def bar_chart(title: str, x_name: str, groups: Mapping[str, Sequence[Bar]], highest: float, colour: int = 0) -> Chart | None:
    """Bars lying side by side below their group's name, from 0 to ``highest``, each with its value ± standard error."""
    if not any(groups.values()):
        return None
    x_at = _scale(0.0, highest, LEFT, WIDTH - VALUE_WIDTH)
    y, shapes = 4.0, []
    for name, bars in groups.items():
        shapes.append(Markup('<text class="name" x="2" y="{:.0f}">{}</text>').format(y + 12, name))
        y += 18
        for bar in bars:
            error, text = bar.error or 0.0, f"{bar.value:.3f}" + (f" ± {bar.error:.3f}" if bar.error is not None else "")
            end, low, high, middle = x_at(bar.value), x_at(max(0.0, bar.value - error)), x_at(bar.value + error), y + BAR / 2
            whisker = f"M{low:.1f} {middle:.1f}H{high:.1f}M{low:.1f} {middle - 3:.1f}v6M{high:.1f} {middle - 3:.1f}v6" if error else ""
            shapes.append(
                Markup(
                    '<g><title>{}, {}: {}</title><text x="{}" y="{:.1f}" class="end">{}</text>'
                    '<rect class="c{} fill{}" x="{}" y="{:.1f}" width="{:.1f}" height="{}"/><path class="whisker" d="{}"/>'
                    '<text x="{:.1f}" y="{:.1f}">{}</text></g>'
                ).format(
                    *(name, bar.name, text, LEFT - 5, middle + 4, bar.name, colour, " faint" if bar.is_faint else "", LEFT, y + 1.5),
                    *(max(1.0, end - LEFT), BAR - 3, whisker, max(end, high) + 5, middle + 4, text),
                )
            )
            y += BAR
        y += 8
    marks = [
        Markup('<path class="grid" d="M{0:.1f} 4V{1:.0f}"/><text x="{0:.1f}" y="{2:.0f}" class="middle">{3}</text>').format(
            x_at(tick), y, y + 13, _tick_name(tick)
        )
        for tick in ticks(0.0, highest)
    ]
    axis = Markup('<text x="{}" y="{:.0f}" class="axis middle">{}</text>').format((LEFT + WIDTH - VALUE_WIDTH) / 2, y + 28, x_name)
    label = "; ".join(f"{name}: " + ", ".join(f"{bar.name} {bar.value:.3f}" for bar in bars) for name, bars in groups.items())
    return Chart(title, "", [], y + 34, f"{x_name}: {label}", Markup("").join([*marks, *shapes, axis]))


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between low and high: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def smooth(ys: Sequence[float]) -> Sequence[float]:
    """A Gaussian mean over about a tenth of the row; short rows stay as they are."""
    if len(ys) < MIN_SMOOTHED:
        return ys
    sigma = len(ys) / 40
    kernel = np.exp(-0.5 * (np.arange(-math.ceil(2.5 * sigma), math.ceil(2.5 * sigma) + 1) / sigma) ** 2)
    return (np.convolve(ys, kernel, "same") / np.convolve(np.ones(len(ys)), kernel, "same")).tolist()


def thinned(points: Sequence[tuple[float, ...]], most: int = MAX_POINTS) -> list[Any]:
    """At most ``most`` points: means of neighbours."""
    if len(points) <= most:
        return list(points)
    return [tuple(np.mean(points[one], axis=0).tolist()) for one in _bins(len(points), most)]


def number(value: float | None) -> str:
    """Three significant digits, and no more than a person reads."""
    if value is None:
        return "–"
    if value == int(value) and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e12 else f"{value:.3g}"


def _band(one: Series) -> list[tuple[float, float, float]]:
    """(x, low, high) along a curve; nothing for rows too short to be smoothed."""
    if one.style != "curve" or len(one.points) < MIN_SMOOTHED or not (one.spread or one.has_band):
        return []
    xs, ys = (np.array(column) for column in zip(*one.points, strict=True))
    if one.spread:
        low, high = (np.array(smooth(edge)) for edge in zip(*one.spread, strict=True))
    else:
        line = np.array(smooth(ys.tolist()))
        deviation = np.sqrt(smooth(((ys - line) ** 2).tolist()))
        low, high = np.maximum(line - deviation, ys.min()), np.minimum(line + deviation, ys.max())
    return thinned(list(zip(xs.tolist(), low.tolist(), high.tolist(), strict=True)), MAX_BAND_POINTS)


def _drawn(one: Series, band: Sequence[tuple[float, float, float]], x_at: Scale, y_at: Scale) -> Markup:
    """A series as a <g> of its colour."""
    points = thinned(one.points) if one.style == "curve" else one.points
    xs, ys = [x_at(x) for x, _ in points], [y_at(y) for _, y in points]
    dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in zip(xs, ys, strict=True))
    drawn = smooth(ys) if one.style == "curve" else ys
    shapes = [("line", _path(xs, drawn))] if one.style != "single" else []
    if band:
        across = [x_at(x) for x, _, _ in band]
        edges = [*(y_at(high) for _, _, high in band), *(y_at(low) for _, low, _ in reversed(band))]
        shapes.insert(0, ("band", _path([*across, *reversed(across)], edges) + "Z"))
    if one.errors:
        highs = [y_at(y + error) for (_, y), error in zip(one.points, _padded(one), strict=True)]
        lows = [y_at(y - error) for (_, y), error in zip(one.points, _padded(one), strict=True)]
        if one.style == "marked":
            shapes.insert(0, ("band", _path([*xs, *reversed(xs)], [*highs, *reversed(lows)]) + "Z"))
        else:
            ends = zip(xs, highs, lows, strict=True)
            shapes.append(("whisker", "".join(f"M{x - 3:.1f} {a:.1f}h6M{x:.1f} {a:.1f}V{b:.1f}m-3 0h6" for x, a, b in ends)))
    shapes.append(({"curve": "raw", "marked": "dots", "single": "squares"}[one.style], dots))
    paths = [Markup('<path class="{}" d="{}"/>').format(*shape) for shape in shapes]
    return Markup('<g class="c{}">{}</g>').format(one.colour % NUM_COLOURS, Markup("").join(paths))


def _tooltips(series: Sequence[Series], x_at: Scale, x_name: str) -> Iterable[Markup]:
    """Unseen columns that say, where the pointer rests, what was measured there."""
    xs = sorted({x for one in series for x, _ in one.points})
    columns = [xs[one] for one in _bins(len(xs), MAX_TOOLTIPS)]
    values = [dict(one.points) for one in series]
    edges = [x_at(xs[0]) - 6, *(x_at((a[-1] + b[0]) / 2) for a, b in zip(columns, columns[1:], strict=False)), x_at(xs[-1]) + 6]
    for column, left, right in zip(columns, edges, edges[1:], strict=False):
        lines = [_place(x_name, column)]
        for one, by_x in zip(series, values, strict=True):
            if here := [by_x[x] for x in column if x in by_x]:
                lines.append(f"{one.name}: {number(sum(here) / len(here))}")
        box = (left, TOP, right - left, HEIGHT - TOP - BOTTOM, "\n".join(lines))
        yield Markup('<rect class="tip" x="{:.1f}" y="{}" width="{:.1f}" height="{}"><title>{}</title></rect>').format(*box)


def _axes(xs: Sequence[float], ys: Sequence[float], x_name: str, y_name: str) -> tuple[Scale, Scale, Markup]:
    """The two scales, and the axes with their names; y begins at 0 unless the numbers lie far from it."""
    low, high = min(ys), max(ys)
    margin = 0.05 * (high - low) or abs(high) * 0.1 or 0.5
    if 0 <= low < 0.75 * high or low == high == 0:
        low = 0.0
    else:
        low -= margin
    high = min(high + margin, 1.0) if high <= 1.0 < high + margin else high + margin
    x_low, x_high = (min(xs), max(xs)) if min(xs) < max(xs) else (xs[0] - 1, xs[0] + 1)
    x_at, y_at = _scale(x_low, x_high, LEFT, WIDTH - RIGHT), _scale(low, high, HEIGHT - BOTTOM, TOP)
    marks = [Markup('<text x="{}" y="{}" class="axis">{}</text>').format(2, 11, y_name)]
    marks.append(Markup('<text x="{}" y="{}" class="axis middle">{}</text>').format((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, x_name))
    for tick in ticks(low, high):
        place = (LEFT, y_at(tick), WIDTH - RIGHT, LEFT - 6, y_at(tick) + 4, _tick_name(tick))
        marks.append(Markup('<path class="grid" d="M{} {:.1f}H{}"/><text x="{}" y="{:.1f}" class="end">{}</text>').format(*place))
    for tick in ticks(x_low, x_high):
        if tick == int(tick):
            below = (x_at(tick), HEIGHT - BOTTOM + 15, _tick_name(tick))
            marks.append(Markup('<text x="{:.1f}" y="{}" class="middle">{}</text>').format(*below))
    marks.append(Markup('<path class="base" d="M{} {:.1f}H{}"/>').format(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT))
    return x_at, y_at, Markup("").join(marks)


def _bins(count: int, most: int) -> list[slice]:
    """Cut 0..count into at most ``most`` runs of about equal length."""
    parts = min(count, most)
    edges = [round(i * count / parts) for i in range(parts + 1)]
    return [slice(start, end) for start, end in zip(edges, edges[1:], strict=False)]


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _path(xs: Sequence[float], ys: Sequence[float]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True))


def _padded(one: Series) -> Sequence[float]:
    return one.errors or [0.0] * len(one.points)


def _place(x_name: str, xs: Sequence[float]) -> str:
    return f"{x_name} {number(xs[0])}" if len(xs) == 1 else f"{x_name} {number(xs[0])} to {number(xs[-1])}"


def _tick_name(value: float) -> str:
    return f"{round(value / 1000, 6):g}k" if 10_000 <= abs(value) < 1e6 else f"{round(value, 12):g}"
