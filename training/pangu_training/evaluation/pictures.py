"""Charts as SVG text, without scripts: for a page that has `STYLE` and its colours, or `standalone` as a file.

What belongs together has one of the classes `c0` to `c7`, which are the colours.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 14, 44
RANGE_WIDTH, CELLS_WIDTH = 254, 754
COLOURS = 8
TICKS = 5
CHARACTER_WIDTH = 6.4  # on average, of the font in STYLE
# The page says what --ink, --faint and --line are.
STYLE = """\
svg text { font: 11px system-ui, sans-serif; fill: var(--faint) }
svg .label { text-anchor: middle; fill: var(--ink) } .grid { stroke: var(--line); fill: none }
.line { stroke: currentColor; stroke-width: 1.5; fill: none } .faint { opacity: .4 }
.bar { stroke: currentColor; stroke-width: 7; opacity: .35 }
.mark { stroke: currentColor; stroke-width: 2.5 } .dot, .cells { fill: currentColor }
.c0 { color: #2f6fde } .c1 { color: #d9772b } .c2 { color: #2a9d6b } .c3 { color: #b64fb0 }
.c4 { color: #c2413f } .c5 { color: #17a2b0 } .c6 { color: #8d7a1f } .c7 { color: #7a6ad8 }
"""
LIGHT = "svg { --ink: #1d2329; --faint: #68727d; --line: #dfe3e8; background: #fff }\n"


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
    marks = "".join(_mark(point, x(point.x), y, "line") for point in points)
    return _chart(x, x_ticks, y, y_ticks, marks, x_label, y_label, _percent)


def curves(series: Sequence[Sequence[Point]], *, x_label: str, y_label: str) -> str:
    """A line through the points of each series; x is a count, the y axis a share, shown in percent.

    The vertical bars of different series are put side by side, so that one does not hide another.
    """
    points = [point for line in series for point in line]
    x, x_ticks = _axis(0, max(point.x for point in points), LEFT, WIDTH - RIGHT - 6 * len(series), whole=True)
    y, y_ticks = _axis(0, max(point.high for point in points), HEIGHT - BOTTOM, TOP)
    marks = ""
    for number, line in enumerate(series):
        at = [x(point.x) + 6 * number for point in line]
        path = "L".join(f"{place:.1f} {y(point.y):.1f}" for place, point in zip(at, line, strict=True))
        marks += f'<path class="line c{line[0].series % COLOURS}" d="M{path}"/>'
        marks += "".join(_mark(point, place, y, "line faint") for place, point in zip(at, line, strict=True))
    return _chart(x, x_ticks, y, y_ticks, marks, x_label, y_label, _percent)


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
    left, height = _margin(label for _, label, _ in rows), TOP + 26 * len(rows) + BOTTOM
    right = left + RANGE_WIDTH
    # one outlier must not press all the others together
    most = max(max(spread["p95"] for _, _, spread in rows) * 1.5, min(spread["max"] for _, _, spread in rows))
    x, x_ticks = _axis(0, most, left, right)
    marks = []
    for number, (colour, label, spread) in enumerate(rows):
        at = TOP + 26 * number + 13
        ends = {name: min(x(value), right) for name, value in spread.items()}
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
    title = f'<text class="label" x="{(left + right) / 2}" y="{height - 6}">{escape(x_label)}</text>'
    return _svg(right + RIGHT, height, grid + "".join(marks) + title)


def solved(rows: Sequence[tuple[int, str, Mapping[str, float]]]) -> str:
    """A row an artifact, a column a problem; full where every sample passes. Columns by how many artifacts solve it."""
    tasks = sorted(rows[0][2], key=lambda task: -sum(rates[task] for _, _, rates in rows))
    left = _margin(label for _, label, _ in rows)
    step = CELLS_WIDTH / len(tasks)
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
    return _svg(left + CELLS_WIDTH + RIGHT, TOP + 22 * len(rows) + 8, "".join(marks))


def overlaps(names: Sequence[str], sets: Sequence[tuple[str, Sequence[int], int]]) -> str:
    """A bar for each (label, numbers of the names in the set, size), and below it a dot for each name in the set."""
    left, step, tall = _margin(names), 46, 170
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


def standalone(picture: str, names: Sequence[str]) -> str:
    """A chart as a file of its own: with style, a light background, and which colour is whose at its right."""
    entries = "".join(
        f'<g class="c{number % COLOURS}"><circle class="dot" cx="{WIDTH + 10}" cy="{TOP + 6 + 20 * number}" r="5"/></g>'
        f'<text x="{WIDTH + 22}" y="{TOP + 10 + 20 * number}">{escape(name)}</text>'
        for number, name in enumerate(names)
    )
    width = WIDTH + 22 + _margin(names)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}">'
        f"<style>{LIGHT}{STYLE}</style>"
        f'<rect width="100%" height="100%" fill="#fff"/>{picture}{entries}</svg>\n'
    )


def legend(names: Sequence[str]) -> str:
    """Which colour is whose."""
    entries = (
        f'<span class="c{number % COLOURS}"><svg width="12" height="12"><circle class="dot" cx="6" cy="6" r="5"/>'
        f"</svg> {escape(name)}</span>"
        for number, name in enumerate(names)
    )
    return f'<p class="legend">{"".join(entries)}</p>'


def _axis(
    least: float, most: float, start: float, end: float, *, whole: bool = False
) -> tuple[Callable[[float], float], list[float]]:
    """From values to pixels, with a few round ticks (or whole ones) of which the last is `most` or above."""
    span = (most - least) or 1.0
    unit = max(10.0 ** math.floor(math.log10(span / TICKS)), float(whole))
    steps = (unit * factor for factor in (1, 2, 2.5, 5, 10))
    step = next(step for step in steps if span / step <= TICKS and (not whole or step.is_integer()))
    count = math.ceil(span / step - 1e-9)
    top = least + count * step
    return lambda value: start + (value - least) / (top - least) * (end - start), [
        least + step * number for number in range(count + 1)
    ]


def _margin(labels: Iterable[str]) -> int:
    """Pixels that the longest label takes, with room on both sides."""
    return 16 + math.ceil(CHARACTER_WIDTH * max(map(len, labels)))


def _mark(point: Point, at: float, y: Callable[[float], float], bar: str) -> str:
    """A point and its interval at the pixel `at`."""
    low, high = y(point.low), y(point.high)
    return (
        f'<g class="c{point.series % COLOURS}"><title>{escape(point.label)}: {point.x:.3g}, {point.y:.1%} '
        f"({point.low:.1%} to {point.high:.1%})</title>"
        f'<path class="{bar}" d="M{at:.1f} {low:.1f}V{high:.1f}M{at - 5:.1f} {low:.1f}h10M{at - 5:.1f} {high:.1f}h10"/>'
        f'<circle class="dot" cx="{at:.1f}" cy="{y(point.y):.1f}" r="5"/></g>'
    )


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
    size = f'width="{width:g}" height="{height:g}"'
    return f'<svg viewBox="0 0 {width:g} {height:g}" {size} role="img">{content}</svg>'


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _short(value: float) -> str:
    return f"{value:.4g}"
