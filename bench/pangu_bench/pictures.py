"""Charts as SVG text, for a page that has no scripts. Colours are the page's: classes `c0` to `c7`, by artifact."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 14, 44
COLOURS = 8
TICKS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A value with its interval; `series` chooses the colour."""

    series: int
    label: str
    x: float
    y: float
    low: float
    high: float


def scatter(points: Sequence[Point], *, x_label: str, y_label: str) -> str:
    """Points with vertical error bars; the y axis is a share, shown in percent."""
    x, x_ticks = _axis(0, max(point.x for point in points), LEFT, WIDTH - RIGHT)
    y, y_ticks = _axis(0, max(point.high for point in points), HEIGHT - BOTTOM, TOP)
    marks = []
    for point in points:
        at, colour = x(point.x), point.series % COLOURS
        marks.append(
            f'<g class="c{colour}"><title>{escape(point.label)}: {point.x:.3g}, {point.y:.1%} '
            f"({point.low:.1%} to {point.high:.1%})</title>"
            f'<path class="line" d="M{at:.1f} {y(point.low):.1f}V{y(point.high):.1f}'
            f'M{at - 5:.1f} {y(point.low):.1f}h10M{at - 5:.1f} {y(point.high):.1f}h10"/>'
            f'<circle class="dot" cx="{at:.1f}" cy="{y(point.y):.1f}" r="5"/></g>'
        )
    return _chart(x, x_ticks, y, y_ticks, "".join(marks), x_label, y_label, lambda tick: f"{tick:.0%}")


def lines(series: Sequence[tuple[int, Sequence[tuple[float, float]]]], *, x_label: str, y_label: str) -> str:
    """One line for each (colour, points)."""
    points = [point for _, line in series for point in line]
    x, x_ticks = _axis(0, max(at for at, _ in points), LEFT, WIDTH - RIGHT)
    y, y_ticks = _axis(0, max(value for _, value in points), HEIGHT - BOTTOM, TOP)
    marks = "".join(
        f'<g class="c{colour % COLOURS}"><path class="line" d="M'
        + "L".join(f"{x(at):.1f} {y(value):.1f}" for at, value in line)
        + '"/>'
        + "".join(
            f'<circle class="dot" cx="{x(at):.1f}" cy="{y(value):.1f}" r="4">'
            f"<title>{at:g}: {value:.4g}</title></circle>"
            for at, value in line
        )
        + "</g>"
        for colour, line in series
    )
    return _chart(x, x_ticks, y, y_ticks, marks, x_label, y_label, _short)


def ranges(rows: Sequence[tuple[int, str, Mapping[str, float]]], *, x_label: str) -> str:
    """For each (colour, label, spread): a line from least to most, a thick one to the 95th percentile, the median."""
    left, height = 190, TOP + 26 * len(rows) + BOTTOM
    # one outlier shall not press all the others together
    most = max(max(spread["p95"] for _, _, spread in rows) * 1.5, min(spread["max"] for _, _, spread in rows))
    x, x_ticks = _axis(0, most, left, WIDTH - RIGHT)
    marks = []
    for number, (colour, label, spread) in enumerate(rows):
        at = TOP + 26 * number + 13
        ends = {name: min(x(value), WIDTH - RIGHT) for name, value in spread.items()}
        numbers = ", ".join(f"{name} {value:.3g}" for name, value in spread.items())
        marks.append(
            f'<g class="c{colour % COLOURS}"><title>{escape(label)}: {numbers}</title>'
            f'<path class="line" d="M{ends["min"]:.1f} {at}H{ends["max"]:.1f}"/>'
            f'<path class="bar" d="M{ends["min"]:.1f} {at}H{ends["p95"]:.1f}"/>'
            f'<path class="mark" d="M{ends["median"]:.1f} {at - 8}v16"/></g>'
            f'<text class="tick" x="{left - 8}" y="{at + 4}" text-anchor="end">{escape(label)}</text>'
        )
    grid = "".join(
        f'<path class="grid" d="M{x(tick):.1f} {TOP}V{height - BOTTOM}"/>'
        f'<text class="tick" x="{x(tick):.1f}" y="{height - BOTTOM + 16}" text-anchor="middle">{_short(tick)}</text>'
        for tick in x_ticks
    )
    title = f'<text class="label" x="{(left + WIDTH - RIGHT) / 2}" y="{height - 6}">{escape(x_label)}</text>'
    return _svg(WIDTH, height, grid + "".join(marks) + title)


def solved(rows: Sequence[tuple[int, str, Mapping[str, float]]]) -> str:
    """A row an artifact, a column a problem; full where every sample passes. Columns by how many artifacts solve it."""
    tasks = sorted(rows[0][2], key=lambda task: -sum(rates[task] for _, _, rates in rows))
    left, width = 190, 960
    step = (width - left - RIGHT) / len(tasks)
    marks = []
    for number, (colour, label, rates) in enumerate(rows):
        top = TOP + 22 * number
        cells = "".join(
            f'<rect x="{left + step * column:.2f}" y="{top}" width="{max(step - 0.6, 0.4):.2f}" height="16" '
            f'opacity="{0.08 + 0.92 * rates[task]:.2f}"><title>{escape(task)}: {rates[task]:.0%}</title></rect>'
            for column, task in enumerate(tasks)
        )
        marks.append(
            f'<g class="c{colour % COLOURS} cells">{cells}</g>'
            f'<text class="tick" x="{left - 8}" y="{top + 12}" text-anchor="end">{escape(label)}</text>'
        )
    return _svg(width, TOP + 22 * len(rows) + 8, "".join(marks))


def overlaps(names: Sequence[str], sets: Sequence[tuple[str, Sequence[int], int]]) -> str:
    """A bar for each (label, numbers of the names in the set, size), and below it a dot for each name in the set."""
    left, step, tall = 190, 46, 170
    most, floor = max(size for *_, size in sets) or 1, TOP + tall + 14
    marks = [
        f'<text class="tick" x="{left - 8}" y="{floor + 22 * row + 20}" text-anchor="end">{escape(name)}</text>'
        for row, name in enumerate(names)
    ]
    for column, (label, members, size) in enumerate(sets):
        middle, height = left + step * (column + 0.5), tall * size / most
        top = TOP + 14 + tall - height
        marks.append(
            f'<g class="cells"><title>{escape(label)}: {size}</title>'
            f'<rect x="{middle - 14:.1f}" y="{top:.1f}" width="28" height="{height:.1f}"/></g>'
            f'<text class="label" x="{middle:.1f}" y="{top - 4:.1f}">{size}</text>'
        )
        marks += [
            f'<g class="c{row % COLOURS}"><circle class="dot" cx="{middle:.1f}" cy="{floor + 22 * row + 16}" r="6" '
            f'opacity="{1 if row in members else 0.12}"/></g>'
            for row in range(len(names))
        ]
    return _svg(left + step * len(sets) + RIGHT, floor + 22 * len(names) + 12, "".join(marks))


def legend(names: Sequence[str]) -> str:
    """Which colour is whose."""
    entries = (
        f'<span class="c{number % COLOURS}"><svg width="12" height="12"><circle class="dot" cx="6" cy="6" r="5"/>'
        f"</svg> {escape(name)}</span>"
        for number, name in enumerate(names)
    )
    return f'<p class="legend">{"".join(entries)}</p>'


def _axis(
    least: float, most: float, start: float, end: float
) -> tuple[Callable[[float], float], list[float]]:
    """From values to pixels, with a few round ticks of which the last is `most` or above."""
    span = (most - least) or 1.0
    unit = 10 ** math.floor(math.log10(span / TICKS))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if span / (unit * factor) <= TICKS)
    count = math.ceil(span / step - 1e-9)
    top = least + count * step
    return lambda value: start + (value - least) / (top - least) * (end - start), [
        least + step * number for number in range(count + 1)
    ]


def _chart(
    x: Callable[[float], float],
    x_ticks: Sequence[float],
    y: Callable[[float], float],
    y_ticks: Sequence[float],
    marks: str,
    x_label: str,
    y_label: str,
    y_text: Callable[[float], str],
) -> str:
    floor, middle = HEIGHT - BOTTOM, (TOP + HEIGHT - BOTTOM) / 2
    grid = [
        f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{y_text(tick)}</text>'
        for tick in y_ticks
    ]
    grid += [
        f'<text class="tick" x="{x(tick):.1f}" y="{floor + 16}" text-anchor="middle">{_short(tick)}</text>'
        for tick in x_ticks
    ]
    titles = (
        f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}">{escape(x_label)}</text>'
        f'<text class="label" transform="translate(13 {middle}) rotate(-90)">{escape(y_label)}</text>'
    )
    return _svg(WIDTH, HEIGHT, "".join(grid) + marks + titles)


def _svg(width: float, height: float, content: str) -> str:
    return f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img">{content}</svg>'


def _short(value: float) -> str:
    return f"{value:.4g}"
