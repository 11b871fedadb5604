"""The page: what is written in names and reasons is text, and numbers end up where they belong."""

import re

import pytest

from pangu_bench.cost_tables import rows
from pangu_bench.report import html
from pangu_training.evaluation.pictures import Point, lines, overlaps, ranges, scatter, solved, standalone

POINT = Point(series=0, label="<b>&", x=2.0, y=0.5, low=0.25, high=1.0)


def test_markdown_of_the_table_becomes_html() -> None:
    cell = "a|b <script> `x` **loud**"
    text = f"# Head\n\n{rows(('one', 'two'), [(cell, ''), ('3', '4')])}\n\n- first\n  goes on\n- second\n\nWords."
    assert html(text) == (
        "<h1>Head</h1>"
        "<table><tr><th>one</th><th>two</th></tr>"
        "<tr><td>a|b &lt;script&gt; <code>x</code> <b>loud</b></td><td></td></tr>"
        "<tr><td>3</td><td>4</td></tr></table>"
        "<ul><li>first\n  goes on</li><li>second</li></ul>"
        "<p>Words.</p>"
    )


def test_a_point_stands_where_its_value_is() -> None:
    picture = scatter([POINT], x_label="GB", y_label="score")
    assert "<b>" not in picture
    y = float(re.findall(r'cx="[\d.]+" cy="([\d.]+)"', picture)[0])
    low, high = map(float, re.findall(r"M[\d.]+ ([\d.]+)V([\d.]+)", picture)[0])
    # y grows downwards: 50 % lies a third of the way from 25 % to 100 %
    assert (low - y) / (low - high) == pytest.approx(1 / 3, abs=0.01)


@pytest.mark.parametrize("value", [0.0, 1e-6, 3.0, 1e9])
def test_every_scale_has_ticks(value: float) -> None:
    picture = lines([(0, [(0.0, 0.0), (value, value)])], x_label="x", y_label="y")
    assert "nan" not in picture
    assert picture.count('class="tick"') >= 4


def test_solved_shows_every_problem_of_every_artifact() -> None:
    picture = solved([(0, "one", {"a": 1.0, "b": 0.0}), (1, "two", {"a": 0.5, "b": 0.0})])
    assert picture.count("<rect") == 4
    assert picture.index("a: 100%") < picture.index("b: 0%"), "what more artifacts solve comes first"


def test_a_long_name_has_room() -> None:
    name = "qwen2.5-coder-0.5b-instruct-gptq-int4-g128-no-act-order"
    spread = {"min": 1.0, "median": 2.0, "p95": 3.0, "max": 4.0}
    pictures = (
        ranges([(0, name, spread)], x_label="ms"),
        solved([(0, name, {"a": 1.0})]),
        overlaps([name], [(name, [0], 3)]),
    )
    for picture in pictures:
        end = re.search(rf'x="(\d+)"[^>]*text-anchor="end">{name}<', picture)
        assert end
        assert int(end[1]) >= 6 * len(name)
    width = re.search(r'<svg [^>]*width="(\d+)"', standalone(pictures[0], [name]))
    start = re.search(rf'<text x="(\d+)"[^>]*>{name}</text></?', standalone("", [name]) + "<")
    assert width
    assert start
    assert int(width[1]) - int(start[1]) >= 6 * len(name)
