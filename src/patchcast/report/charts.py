"""Line charts as inline SVG, without scripts, in the colors of the page (light and dark)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from patchcast.report.page import Html, part

WIDTH, HEIGHT = 350, 220  # in SVG units, about one pixel each on a phone
LEFT, RIGHT, TOP, BOTTOM = 44, 22, 10, 38
FRAME = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "bottom": HEIGHT - BOTTOM}
MOST_POINTS = 300
COLORS = 4


@dataclass(frozen=True)
class Curve:
    """A named line; `dots` marks each point, for short curves."""

    name: str
    x: Sequence[int | float]
    y: Sequence[int | float]
    dots: bool = False


def line_chart(curves: Sequence[Curve], *, x_label: str, y_label: str, alt: str) -> Html:
    """Curves over common axes, with a legend below.

    >>> chart = line_chart([Curve("loss", [1, 2], [0.5, 0.25])], x_label="step", y_label="loss", alt="Loss by step")
    >>> chart.count("<polyline"), "Loss by step" in chart
    (1, True)

    Args:
        alt: alternative text for screen readers.
    Raises:
        ValueError: if there is no point to draw.
    """
    shown = [thinned(curve) for curve in curves if curve.x]
    if not shown:
        raise ValueError("a chart needs at least one curve with a point")
    xs = [x for curve in shown for x in curve.x]
    ys = [y for curve in shown for y in within(curve.y)]
    x_ticks, y_ticks = ticks(min(xs), max(xs), 5), ticks(min(ys), max(ys), 5)
    left, right = min(xs), max(xs)
    low, high = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))

    def across(x: float) -> float:
        return LEFT + (x - left) / ((right - left) or 1) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        share = (min(max(y, low), high) - low) / ((high - low) or 1)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    drawn = []
    for place, curve in enumerate(shown):
        points = [(f"{across(x):.1f}", f"{down(y):.1f}") for x, y in zip(curve.x, curve.y, strict=True)]
        dots = points if curve.dots or len(points) == 1 else []
        drawn.append(
            {"name": curve.name, "color": place % COLORS, "points": [",".join(pair) for pair in points], "dots": dots}
        )
    return part(
        "chart",
        curves=drawn,
        x_ticks=[(number(x), across(x)) for x in x_ticks if left <= x <= right],
        y_ticks=[(number(y), down(y)) for y in y_ticks],
        x_label=x_label,
        y_label=y_label,
        alt=alt,
        frame=FRAME,
    )


def chart_over_steps(curves: Sequence[Curve], label: str, alt: str) -> Html:
    """Curves over the optimizer's steps."""
    return line_chart(curves, x_label="optimizer step", y_label=label, alt=alt)


def thinned(curve: Curve) -> Curve:
    """A long curve, shortened to means of neighboring points, without NaN.

    >>> thinned(Curve("", list(range(1000)), [1.0] * 1000)).y[:3]
    [1.0, 1.0, 1.0]
    >>> len(thinned(Curve("", list(range(1000)), [1.0] * 1000)).x) <= MOST_POINTS
    True
    """
    points = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if math.isfinite(y)]
    step = math.ceil(len(points) / MOST_POINTS) or 1
    groups = [points[first : first + step] for first in range(0, len(points), step)]
    x = [sum(x for x, _ in group) / len(group) for group in groups]
    y = [sum(y for _, y in group) / len(group) for group in groups]
    return Curve(curve.name, x, y, curve.dots)


def within(values: Sequence[int | float]) -> Sequence[int | float]:
    """The values that determine the axis: without the first hundredth, where the loss is far above the rest."""
    return values[len(values) // 100 :]


def ticks(low: int | float, high: int | float, count: int) -> list[float]:
    """About `count` round numbers that cover a range.

    >>> ticks(0.13, 0.92, 5)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> ticks(3, 3, 5)
    [2.0, 2.5, 3.0, 3.5, 4.0]
    """
    if high <= low:
        pad = abs(low) / 3 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def number(value: int | float) -> str:
    """A short label for an axis.

    >>> number(0.25), number(1500.0), number(20000.0), number(3.0), number(1e-5)
    ('0.25', '1,500', '20k', '3', '1e-05')
    """
    if abs(value) >= 10_000 and value % 1000 == 0:
        return f"{value / 1000:,.0f}k"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
