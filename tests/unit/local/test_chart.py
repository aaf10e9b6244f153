import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinoctl.local.report.chart import HEIGHT, WIDTH, Chart, Line, Points, draw, label, thinned


def drawn(points: Points, **options: object):  # type: ignore[no-untyped-def]
    return draw(Chart("loss", "nats", [Line("loss", points, 0)], **options), 100)  # type: ignore[arg-type]


@given(
    st.lists(st.tuples(st.integers(0, 100), st.floats(-1e30, 1e30)), min_size=1, max_size=50, unique_by=lambda p: p[0]),
    st.booleans(),
    st.booleans(),
)
def test_everything_lies_within_the_picture(points: list[tuple[int, float]], log: bool, zero: bool) -> None:
    drawing = drawn(sorted(points), log=log, zero=zero)
    numbers = [float(n) for n in re.findall(r"[-\d.e+]+", drawing.paths[0].replace("h0", ""))]
    assert all(drawing.left <= x <= WIDTH for x in numbers[::2])
    assert all(0 <= y <= HEIGHT for y in numbers[1::2])
    assert all(0 <= tick.at <= HEIGHT for tick in drawing.y_ticks)


def test_a_curve_breaks_off_where_a_value_is_not_finite() -> None:
    points = [(0, 1.0), (10, 2.0), (20, math.nan), (30, math.inf), (40, 2.0), (50, 1.0), (60, math.nan), (70, 1.5)]
    path = drawn(points).paths[0]
    assert path.count("M") == 3
    assert path.endswith("h0")  # the last point has no neighbour: a dot


def test_without_a_finite_value_there_is_no_chart() -> None:
    assert drawn([(0, math.nan)]) is None
    assert draw(Chart("x", "", []), 10) is None


def test_one_value_lies_in_the_middle() -> None:
    drawing = drawn([(0, 0.04), (100, 0.04)])
    assert len({y for _, y in re.findall(r"([\d.]+) ([\d.]+)", drawing.paths[0])}) == 1


def test_steps_are_whole_numbers() -> None:
    drawing = draw(Chart("x", "", [Line("x", [(0, 1.0), (3, 2.0)], 1)]), 3)
    assert drawing is not None
    assert [tick.text for tick in drawing.x_ticks] == ["0", "1", "2", "3"]


def test_log_axes_have_powers_of_ten_and_fall_back_for_zero() -> None:
    points = [(0, 0.01), (100, 900.0)]
    assert [tick.text for tick in drawn(points, log=True).y_ticks] == ["0.01", "0.1", "1", "10", "100", "1000"]
    assert drawn([*points, (101, 0.0)], log=True) is not None


def test_marks_that_are_near_each_other_keep_their_lines_and_lose_their_words() -> None:
    chart = Chart("x", "", [Line("x", [(0, 1.0)], 1)])
    drawing = draw(chart, 100, [(10, "attempt 2"), (11, "attempt 3"), (60, "attempt 4")])
    assert drawing is not None
    assert [mark.text for mark in drawing.marks] == ["attempt 2", "", "attempt 4"]


def test_long_curves_are_thinned_and_keep_their_ends_and_spikes() -> None:
    points = [(i, 1.0) for i in range(60_000)]
    points[31_234] = (31_234, 99.0)
    kept = thinned(points)
    assert len(kept) < 400
    assert {points[0], points[-1], points[31_234]} <= set(kept)
    assert [step for step, _ in kept] == sorted(step for step, _ in kept)
    assert thinned(points[:300]) == points[:300]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (5000, "5000"), (12_500, "12.5k"), (2.5e6, "2.5M"), (0.002, "0.002"), (-3, "−3"), (1e-6, "1e−06")],
)
def test_labels_are_short(value: float, text: str) -> None:
    assert label(value) == text
