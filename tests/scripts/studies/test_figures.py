"""Figures: labels that do not overlap, colours that can be seen, text that is data and nothing else."""

import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.studies import figures
from scripts.studies.figures import MAXSUP, PLAIN, SMOOTHED, Curve, Drawing, Level, Reliability, Series, spread_out
from scripts.studies.results import Kind
from scripts.studies.statistics import mean_interval

labels = st.lists(st.tuples(st.floats(0, 300), st.floats(5, 30)), min_size=1, max_size=8)


@given(labels)
def test_labels_do_not_overlap_and_stay_inside_where_there_is_room(wanted):
    places = spread_out([y for y, _ in wanted], [height for _, height in wanted], 0, 300)
    boxes = sorted((place - height / 2, place + height / 2) for place, (_, height) in zip(places, wanted, strict=True))
    for (_, top), (bottom, _) in pairwise(boxes):
        assert bottom >= top - 1e-6
    assert boxes[0][0] >= -1e-6
    assert boxes[-1][1] <= 300 + 1e-6


@given(labels)
def test_labels_keep_the_order_of_what_they_name(wanted):
    ys = [y for y, _ in wanted]
    places = spread_out(ys, [height for _, height in wanted], 0, 300)
    for i, j in ((i, j) for i in range(len(ys)) for j in range(len(ys)) if ys[i] < ys[j]):
        assert places[i] < places[j]


def test_a_label_that_has_room_stays_where_it_belongs():
    assert spread_out([50, 100], [10, 10], 0, 300) == [50, 100]
    assert spread_out([100, 100], [10, 10], 0, 300) == [95, 105]
    assert spread_out([2], [10], 0, 300) == [5]


def _luminance(colour: str) -> float:
    values = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
    return sum(share * value for share, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("look", [PLAIN, SMOOTHED, MAXSUP])
@pytest.mark.parametrize("page", ["#ffffff", "#15171a"])  # --page of page.html, light and dark
def test_lines_stand_out_from_both_pages(look, page):
    """WCAG 2.1, 1.4.11: graphics need a contrast of 3."""
    light, dark = sorted((_luminance(look.colour), _luminance(page)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 3


def test_the_page_has_the_colours_tested():
    template = (figures.Path(figures.__file__).parent / "page.html").read_text()
    assert re.findall(r"--page: (#\w+);", template)[:2] == ["#ffffff", "#15171a"]


def test_no_two_kinds_look_the_same_by_any_mark():
    kinds = [Kind(), Kind(0.05), Kind(0.1), Kind(0.2), Kind(0, 0.1), Kind(0, 0.2)]
    looks = list(figures.looks(kinds, Kind(0.1)).values())
    for part in ("colour", "marker"):
        assert len({getattr(look, part) for look in looks}) == len(kinds)
    assert figures.looks(kinds, Kind(0.1))[Kind(0.1)] == SMOOTHED
    assert figures.looks([Kind(0.1)], Kind(0.1)) == {Kind(0.1): SMOOTHED}  # the same without the plain teacher


def _series(name="plain", values=None, look=PLAIN):
    return Series(name, look, values or {1.0: {0: 60.0, 1: 61.0}, 4.0: {0: 61.0, 1: 62.0}, 64.0: {1: 58.0}})


@pytest.mark.parametrize("narrow", [False, True])
def test_text_is_text_and_no_markup_of_anybody(narrow):
    evil = '$\\alpha$ <b>&"'
    band = Level(evil, mean_interval([55.0, 56.0]))
    drawing = Drawing("x", figures.against_temperature([_series(evil)], evil, bands=[band]))
    element = ElementTree.fromstring(drawing.inline(narrow, evil))
    assert element.get("aria-label") == evil
    texts = ["".join(text.itertext()).strip() for text in element.iter("text")]
    assert evil in " ".join(texts)
    assert {"1", "4", "64"} <= set(texts)


def test_every_seed_is_a_dot_and_every_bounded_mean_a_bar():
    axes = figures.against_temperature([_series()], "y")(False).axes[0]
    dots = [line for line in axes.lines if line.get_alpha() == 0.7]
    assert sorted(float(y) for line in dots for y in line.get_ydata()) == [60, 61, 61, 62]  # T = 64 has its mean alone
    bars = [line for line in axes.lines if line.get_linewidth() == 2.2]
    expected = [mean_interval([60.0, 61.0]), mean_interval([61.0, 62.0])]
    assert [tuple(bar.get_ydata()) for bar in bars] == [(interval.low, interval.high) for interval in expected]


def test_seeds_are_joined_across_teachers_only_where_asked():
    lines = [_series(), _series("smoothed", look=SMOOTHED)]
    with_links, without = (
        sum(
            line.get_linewidth() == 0.7 and len(line.get_xdata()) == 2 and line.get_alpha() == 0.25
            for line in axes.lines
        )
        for axes in (figures.against_temperature(lines, "y", links=links)(False).axes[0] for links in (True, False))
    )
    assert (with_links, without) == (4, 0)


def test_teachers_far_above_do_not_flatten_the_students():
    marks = [Level("plain", mean_interval([99.0]), PLAIN)]
    axes = figures.against_temperature([_series()], "y", marks=marks)(False).axes[0]
    assert axes.get_ylim()[1] < 70
    assert any("teachers: 99.0" in text.get_text() for text in axes.texts)


def test_one_temperature_and_one_seed_can_be_drawn():
    drawing = Drawing("x", figures.against_temperature([_series(values={1.0: {0: 60.0}})], "y"))
    ElementTree.fromstring(drawing.inline(True, "x"))


def test_panels_of_curves_share_their_axes_and_long_curves_are_thinned():
    long = Curve(PLAIN, np.arange(240.0), np.linspace(10, 70, 240))
    short = Curve(None, np.arange(5.0), np.linspace(40, 60, 5))
    figure = figures.curves({"T = 1": [long], "labels alone": [short]}, "y", {"plain": long, "labels alone": short})(
        True
    )
    first, second = figure.axes
    assert first.get_xlim() == second.get_xlim()
    assert first.get_ylim() == second.get_ylim()
    xs = first.lines[0].get_xdata()
    assert len(xs) == 80
    assert (xs[0], xs[-1]) == (0, 239)


def test_a_reliability_diagram_shows_the_bins_given():
    confidence, accuracy = np.array([0.25, 0.75]), np.array([0.2, 0.7])
    teacher = Reliability("plain", PLAIN, confidence, accuracy, np.array([1, 3]), "ECE 5.0 %")
    axes = figures.reliability([teacher])(False).axes[0]
    assert np.array_equal(axes.collections[-1].get_offsets(), np.column_stack([confidence, accuracy]))


def test_the_same_figure_is_the_same_file():
    first, second = (Drawing("x", figures.against_temperature([_series()], "y")).svg(False) for _ in range(2))
    assert first == second
