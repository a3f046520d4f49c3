"""The figures of a study's page, as SVG whose text is text and whose ink is the reader's (light or dark), and as PNG.

Every figure is drawn twice: wide, and narrow for a phone. The same teacher has the same colour (Okabe and Ito's),
marker and dash in all of them, so that neither colour alone nor a legend is needed; names stand at the ends of lines.
One unit of an SVG is one pixel at its natural size.
"""

import io
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from scripts.studies import statistics, wording
from scripts.studies.claims import Claim
from scripts.studies.results import Kind
from scripts.studies.statistics import CONTRADICTED, SUPPORTED, BySeed, Interval

# Stand-ins that no figure uses otherwise; the page replaces them by the reader's colours.
INK, PAPER = "#010203", "#fdfeff"
GREY = {"color": INK, "alpha": 0.35}
WIDE, NARROW = 900, 350
PNG_SCALE = 2
DOTTED = (0, (1, 1.6))  # a line's dashes
_STEPS = (1, 2, 5, 10)  # ticks at round numbers

_STYLE = {
    "font.size": 12,
    "axes.labelsize": 12,
    "axes.titlesize": 12,
    "xtick.labelsize": 11.5,
    "ytick.labelsize": 11.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.dpi": 72,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "svg.fonttype": "none",
    "svg.hashsalt": "study",  # the same figure is the same file
    "path.simplify": True,
}


@dataclass(frozen=True)
class Look:
    """How one kind of teacher looks in every figure."""

    colour: str
    marker: str
    dash: str | tuple[int, tuple[float, ...]]


PLAIN, SMOOTHED, MAXSUP = (
    Look("#0072B2", "o", "-"),
    Look("#D55E00", "s", (0, (5, 2))),
    Look("#009E73", "^", (0, (5, 1.5, 1, 1.5))),
)
_FURTHER = (
    Look("#CC79A7", "D", (0, (1, 1.2))),
    Look("#56B4E9", "v", (0, (8, 2))),
    Look("#E69F00", "P", (0, (3, 1, 1, 1, 1, 1))),
    Look("#999999", "X", "-"),
)


def looks(kinds: Sequence[Kind], smoothed: Kind | None) -> dict[Kind, Look]:
    """The look of each kind: fixed for the plain, the smoothed and the first MaxSup teacher, in order for others."""
    found: dict[Kind, Look] = {}
    further = iter(_FURTHER * len(kinds))
    for kind in kinds:
        if kind.is_plain:
            found[kind] = PLAIN
        elif kind == smoothed:
            found[kind] = SMOOTHED
        elif kind.max_suppression and MAXSUP not in found.values():
            found[kind] = MAXSUP
        else:
            found[kind] = next(further)
    return found


@dataclass(frozen=True)
class Drawing:
    """A figure in both widths, drawn when asked for.

    Attributes:
        name: of its files, without a suffix.
        draw: makes the figure, narrow or wide.
    """

    name: str
    draw: Callable[[bool], Figure]

    def inline(self, narrow: bool, label: str) -> str:
        """The SVG element for the page, with ``label`` as what a screen reader says of it."""
        return inline_svg(self.svg(narrow), f"{self.name}-{'n' if narrow else 'w'}", label)

    def save(self, folder: Path) -> None:
        """Write ``NAME.svg`` and ``NAME.png``, the wide figure; the PNG on white."""
        text = self.svg(narrow=False).replace(INK, "currentColor").replace(PAPER, "white")
        (folder / f"{self.name}.svg").write_text(text, encoding="utf-8")
        with matplotlib.rc_context(_STYLE):
            self._figure(False).savefig(
                folder / f"{self.name}.png", dpi=72 * PNG_SCALE, facecolor="white", metadata={"Software": None}
            )

    @cache  # noqa: B019 (a few figures, which live as long as the page is made)
    def svg(self, narrow: bool) -> str:
        """The figure as an SVG file, in stand-in colours."""
        buffer = io.StringIO()
        with matplotlib.rc_context(_STYLE):
            self._figure(narrow).savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        return buffer.getvalue()

    @cache  # noqa: B019
    def _figure(self, narrow: bool) -> Figure:
        return self.draw(narrow)


def inline_svg(text: str, prefix: str, label: str) -> str:
    """An SVG file's text as an element of an HTML page.

    Its colours become the page's, its font the page's, its ids get ``prefix`` so that figures do not share them.
    """
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    referenced = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in referenced else "", body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", body)
    body = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{prefix}-\1"', body)
    body = re.sub(r"font: (?:(bold|\d+) )?([\d.]+)px [^;\"]*", _font, body)
    body = body.replace(INK, "currentColor").replace(PAPER, "var(--page)")
    box = re.search(r'viewBox="([^"]+)"', body)
    width = box[1].split()[2] if box else "100%"
    head = f'<svg viewBox="{box[1]}" width="{width}" role="img" aria-label="{_attribute(label)}"' if box else "<svg"
    body = re.sub(r"<svg[^>]*", lambda _: head, body, count=1)
    return re.sub(r"\n\s*\n+", "\n", body).strip()


def _font(match: re.Match) -> str:
    return f"font-size: {match[2]}px" + ("; font-weight: 600" if match[1] else "")


def _attribute(text: str) -> str:
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(character, entity)
    return text


@dataclass(frozen=True)
class Series:
    """One line of a figure against T.

    Attributes:
        points: {T: {seed: value}}.
        is_control: drawn hollow, thin and dotted.
    """

    name: str
    look: Look
    points: Mapping[float, BySeed]
    is_control: bool = False


@dataclass(frozen=True)
class Level:
    """What does not depend on T: a band from ``interval``, named ``name``; ``look`` None: in ink."""

    name: str
    interval: Interval
    look: Look | None = None
    dash: str | tuple[int, tuple[float, ...]] = "-"


def series_in_words(series: Sequence[Series], what: str) -> str:
    """What a figure against T shows."""
    said = []
    for line in series:
        means = [
            f"{wording.level(statistics.mean_interval(list(values.values())))} at T = {t:g}"
            for t, values in sorted(line.points.items())
        ]
        said.append(f"{line.name}: {', '.join(means)}")
    return f"Line chart of {what} against T. {'. '.join(said)}."


def levels_in_words(levels: Sequence[Level]) -> str:
    """What its bands show, a sentence each with a space before it."""
    return "".join(f" {level.name}: {wording.level(level.interval)}." for level in levels)


def against_temperature(
    series: Sequence[Series],
    y_label: str,
    *,
    bands: Sequence[Level] = (),
    marks: Sequence[Level] = (),
    zero: bool = False,
    links: bool = False,
    height: int = 430,
) -> Callable[[bool], Figure]:
    """Lines over T on a logarithmic axis: every seed a dot, means with 95 % intervals.

    Args:
        bands: levels drawn as bands over the whole width (labels alone).
        marks: levels drawn as short marks at the left edge (teachers).
        zero: whether a line at zero belongs in.
        links: whether the dots of one seed are joined across lines.
    """

    def draw(narrow: bool) -> Figure:
        figure = _figure(narrow, height if not narrow else min(height, 330))
        right = 98 if narrow else 168
        axes = _axes(figure, left=44 if narrow else 62, right=right, top=18, bottom=46)
        grid = sorted({temperature for line in series for temperature in line.points})
        _temperature_axis(axes, grid, narrow)
        dodge, aside = _dodge(axes, series, grid)
        if links:
            _seed_links(axes, series, [shift + aside for shift in dodge])
        ends: list[tuple[float, str, Look | None, bool]] = []
        for index, line in enumerate(series):
            points = [(t, statistics.mean_interval(list(line.points[t].values()))) for t in grid if line.points.get(t)]
            if not points:
                continue
            xs = [math.log10(t) + dodge[index] for t, _ in points]
            means = [interval.mean for _, interval in points]
            face = PAPER if line.is_control else line.look.colour
            dash = (0, (1, 1.5)) if line.is_control else line.look.dash
            axes.plot(xs, means, color=line.look.colour, linestyle=dash, linewidth=1.2 if line.is_control else 1.8)
            for x, (t, interval) in zip(xs, points, strict=True):
                values = list(line.points[t].values())
                if interval.is_bounded:
                    axes.plot([x, x], [interval.low, interval.high], color=line.look.colour, linewidth=2.2)
                if not line.is_control and len(values) > 1:
                    _dots(axes, [x + aside] * len(values), values, line.look)
                axes.plot(
                    [x],
                    [interval.mean],
                    marker=line.look.marker,
                    color=line.look.colour,
                    markerfacecolor=face,
                    markersize=8,
                    markeredgecolor=line.look.colour if line.is_control else PAPER,
                    markeredgewidth=1.2,
                    zorder=5,
                )
            ends.append((means[-1], line.name, line.look, line.is_control))
        for band in bands:
            _band(axes, band)
            ends.append((band.interval.mean, band.name, None, False))
        if zero:
            axes.axhline(0, color=INK, linewidth=0.9)
        axes.set_ylabel(y_label)
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.7)
        axes.set_axisbelow(True)
        _teacher_marks(axes, marks)
        _end_labels(axes, ends, narrow)
        return figure

    return draw


def _figure(narrow: bool, height: float) -> Figure:
    return Figure(figsize=((NARROW if narrow else WIDE) / 72, height / 72))


def _axes(figure: Figure, *, left: float, right: float, top: float, bottom: float) -> Axes:
    """Axes with margins in pixels."""
    width, height = (side * 72 for side in figure.get_size_inches())
    return figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    )


def _dodge(axes: Axes, series: Sequence[Series], grid: Sequence[float]) -> tuple[list[float], float]:
    """Sideways shifts of the lines that keep their intervals apart, and of a line's dots from its interval; in decades.

    Controls share the shifts of the lines before them.
    """
    low, high = axes.get_xlim()
    decades_per_pixel = (high - low) / axes.get_window_extent().width
    nearest = min((b - a for a, b in pairwise(map(math.log10, grid))), default=high - low)
    lines = [index for index, line in enumerate(series) if not line.is_control] or [0]
    step = min(24 * decades_per_pixel, 0.7 * nearest / len(lines))
    shifts = [step * (place - (len(lines) - 1) / 2) for place in range(len(lines))]
    return [shifts[index % len(lines)] for index in range(len(series))], 0.36 * step


def _dots(axes: Axes, xs: Sequence[float], ys: Sequence[float], look: Look) -> None:
    """A dot for each seed."""
    axes.plot(
        xs, ys, marker=look.marker, color=look.colour, markersize=4.6, alpha=0.7, markeredgewidth=0, linestyle="none"
    )


def _seed_links(axes: Axes, series: Sequence[Series], dodge: Sequence[float]) -> None:
    """A thin line between the dots of one seed at one T, across teachers."""
    lines = [(line, shift) for line, shift in zip(series, dodge, strict=True) if not line.is_control]
    for (one, left), (other, right) in pairwise(lines):
        for temperature in one.points.keys() & other.points.keys():
            x = math.log10(temperature)
            shared = sorted(one.points[temperature].keys() & other.points[temperature].keys())
            for seed in shared if len(shared) > 1 else ():
                ends = one.points[temperature][seed], other.points[temperature][seed]
                axes.plot([x + left, x + right], ends, linewidth=0.7, color=INK, alpha=0.25)


def _band(axes: Axes, band: Level) -> None:
    if band.interval.is_bounded:
        axes.axhspan(band.interval.low, band.interval.high, color=INK, alpha=0.09, linewidth=0)
    axes.axhline(band.interval.mean, color=INK, alpha=0.65, linewidth=1.1, linestyle=band.dash)


def _temperature_axis(axes: Axes, grid: Sequence[float], narrow: bool) -> None:
    decades = [math.log10(t) for t in grid]
    axes.xaxis.set_major_locator(FixedLocator(decades))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(decades, [f"{t:g}" for t in grid])
    margin = 0.08 * (decades[-1] - decades[0]) if len(decades) > 1 else 0.2
    axes.set_xlim(decades[0] - margin, decades[-1] + 0.8 * margin)
    axes.set_xlabel("temperature T (logarithmic)" if narrow else "temperature T of the distillation (logarithmic)")


def _teacher_marks(axes: Axes, marks: Sequence[Level]) -> None:
    """Short marks at the left edge; where the teachers are far above, a word says so instead."""
    if not marks:
        return
    low, high = axes.get_ylim()
    means = [mark.interval.mean for mark in marks]
    if max(means) > high + (high - low) or min(means) < low - (high - low):
        place = " and ".join(sorted({f"{mean:.1f}" for mean in means}))
        axes.annotate(
            f"teachers: {place}",
            (0.015, 1),
            xycoords="axes fraction",
            va="bottom",
            fontsize=11,
        )
        return
    axes.set_ylim(min(low, *means), max(high, max(means) + 0.04 * (high - low)))
    beside = ScaledTranslation(16 / 72, 0, axes.figure.dpi_scale_trans)
    for mark in marks:
        look = mark.look or PLAIN
        axes.annotate(
            "",
            (0, mark.interval.mean),
            xytext=(16, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            arrowprops={"arrowstyle": "-", "color": look.colour, "linewidth": 2.4, "shrinkA": 0, "shrinkB": 0},
        )
        axes.plot(
            [0],
            [mark.interval.mean],
            transform=axes.get_yaxis_transform() + beside,
            marker=look.marker,
            color=look.colour,
            markersize=5.5,
            linestyle="none",
        )
    axes.annotate(
        "teachers" if len(marks) > 1 else "teacher",
        (0, float(np.mean(means))),
        xytext=(25, 0),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        va="center",
        fontsize=11,
    )


def _end_labels(axes: Axes, ends: Sequence[tuple[float, str, Look | None, bool]], narrow: bool) -> None:
    """Names at the right edge, moved apart where they would overlap, each with its marker and a thin leader."""
    if not ends:
        return
    width = 12 if narrow else 22
    texts = ["\n".join(textwrap.wrap(name, width)) for _, name, _, _ in ends]
    low, high = axes.get_ylim()
    pixels = axes.get_window_extent().height  # at 72 dpi a point is a pixel
    scale = pixels / (high - low)
    heights = [14.5 * (1 + text.count("\n")) + 3 for text in texts]
    places = spread_out([(y - low) * scale for y, *_ in ends], heights, 0, pixels)
    for (y, _, look, is_control), text, place in zip(ends, texts, places, strict=True):
        at = low + place / scale
        axes.plot([1.0, 1.03], [y, at], transform=axes.get_yaxis_transform(), clip_on=False, linewidth=0.7, **GREY)
        if look is not None:
            beside = ScaledTranslation(11 / 72, 0, axes.figure.dpi_scale_trans)
            axes.plot(
                [1.03],
                [at],
                transform=axes.get_yaxis_transform() + beside,
                marker=look.marker,
                color=look.colour,
                markerfacecolor=PAPER if is_control else look.colour,
                markersize=7,
                clip_on=False,
                linestyle="none",
            )
        axes.annotate(
            text,
            (1.03, at),
            xycoords=axes.get_yaxis_transform(),
            xytext=(5 if look is None else 20, 0),
            textcoords="offset points",
            va="center",
            annotation_clip=False,
            fontsize=11 if narrow else 12,
            linespacing=1.15,
        )


def spread_out(wanted: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """Places near the ``wanted`` ones at which labels of these heights do not overlap, from ``low`` to ``high``.

    Where all of them are higher than the room, they go on beyond ``high``.
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    blocks: list[tuple[list[int], float]] = []  # labels that touch one another, and the bottom of their pile
    for index in order:
        members, bottom = [index], wanted[index] - heights[index] / 2
        while True:
            total = sum(heights[member] for member in members)
            bottom = max(min(bottom, high - total), low)
            if not blocks:
                break
            above_end = blocks[-1][1] + sum(heights[member] for member in blocks[-1][0])
            if above_end <= bottom + 1e-9:
                break
            members = blocks.pop()[0] + members
            # The pile lies where its members want to be in the mean.
            offsets, height = [], 0.0
            for member in members:
                offsets.append(wanted[member] - height - heights[member] / 2)
                height += heights[member]
            bottom = sum(offsets) / len(offsets)
        blocks.append((members, bottom))
    places = [0.0] * len(wanted)
    for members, bottom in blocks:
        for member in members:
            places[member] = bottom + heights[member] / 2
            bottom += heights[member]
    return places


def forest(claims: Sequence[Claim]) -> Callable[[bool], Figure]:
    """One row a claim in the order of testing: seeds, mean, interval, the test set's noise, verdict, p.

    Claims in another unit (eta) have an axis of their own below the others'.
    """
    shown = [claim for claim in claims if claim.finding]
    units = list(dict.fromkeys(claim.part.unit for claim in shown))
    panels = [[claim for claim in shown if claim.part.unit == unit] for unit in units]

    def draw(narrow: bool) -> Figure:
        row, gap, top = (108 if narrow else 62), 52, 26
        height = top + sum(row * len(panel) + gap for panel in panels)
        figure = _figure(narrow, height)
        left, right = (12, 12) if narrow else (322, 172)
        from_top = top
        for unit, panel in zip(units, panels, strict=True):
            axes = _axes(figure, left=left, right=right, top=from_top, bottom=height - from_top - row * len(panel))
            _forest_panel(axes, panel, unit, narrow)
            from_top += row * len(panel) + gap
        return figure

    return draw


def _forest_panel(axes: Axes, claims: Sequence[Claim], unit: str, narrow: bool) -> None:
    axes.set_ylim(len(claims) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)
    axes.yaxis.set_visible(False)
    axes.set_xlabel(f"difference, {unit}")
    axes.xaxis.set_major_locator(MaxNLocator(5 if narrow else 8, steps=_STEPS))
    if not narrow:  # where the text stands between the rows no line crosses it
        axes.axvline(0, color=INK, linewidth=0.9)
        axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.7)
        axes.set_axisbelow(True)
    for index, claim in enumerate(claims):
        finding, noise = claim.finding, claim.part.noise
        assert finding is not None
        y = index + (0.14 if narrow else 0)
        if narrow:
            axes.plot([0, 0], [index - 0.05, index + 0.3], color=INK, linewidth=0.9)
        is_settled = claim.verdict in (SUPPORTED, CONTRADICTED)
        seeds = finding.differences
        if len(seeds) > 1:
            dots = {"marker": "o", "markersize": 3.8, "alpha": 0.6, "markeredgewidth": 0, "linestyle": "none"}
            axes.plot(seeds, [y - (0.12 if narrow else 0.17)] * len(seeds), color=INK, **dots)
        if noise is not None:
            axes.plot([noise.low, noise.high], [y + (0.1 if narrow else 0.15)] * 2, linewidth=1.2, **GREY)
        if finding.interval.is_bounded:
            axes.plot([finding.interval.low, finding.interval.high], [y, y], color=INK, linewidth=2.2)
        axes.plot(
            [finding.interval.mean],
            [y],
            marker="D",
            markersize=8,
            color=INK,
            markerfacecolor=INK if is_settled else PAPER,
            markeredgewidth=1.5,
            zorder=5,
        )
        _forest_text(axes, claim, index, narrow)
    low, high = axes.get_xlim()
    axes.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))


def _forest_text(axes: Axes, claim: Claim, index: int, narrow: bool) -> None:
    finding = claim.finding
    assert finding is not None
    p = f"p = {wording.p_value(finding.p)}, smallest {wording.p_value(finding.smallest_p)}"
    place: dict[str, Any] = {
        "xycoords": axes.get_yaxis_transform(),
        "annotation_clip": False,
        "textcoords": "offset points",
    }
    if narrow:
        text = "\n".join(textwrap.wrap(f"{claim.number}  {claim.statement}", 52)[:3])
        axes.annotate(text, (0, index - 0.46), xytext=(0, 0), va="top", fontsize=10.5, linespacing=1.15, **place)
        axes.annotate(claim.verdict, (0, index + 0.39), xytext=(0, 0), va="center", fontsize=11, weight="bold", **place)
        axes.annotate(p, (1, index + 0.39), xytext=(0, 0), va="center", ha="right", fontsize=10.5, **place)
        return
    text = "\n".join(textwrap.wrap(claim.statement, 46))
    axes.annotate(str(claim.number), (0, index), xytext=(-310, 0), va="center", weight="bold", **place)
    axes.annotate(text, (0, index), xytext=(-294, 0), va="center", linespacing=1.2, **place)
    axes.annotate(claim.verdict, (1, index - 0.13), xytext=(18, 0), va="center", weight="bold", **place)
    axes.annotate(p, (1, index + 0.16), xytext=(18, 0), va="center", fontsize=11, **place)


@dataclass(frozen=True)
class Reliability:
    """Accuracy against confidence of one kind of teacher, in bins.

    Attributes:
        confidence, accuracy: (bins,) means, 0 to 1.
        count: (bins,) images.
        note: printed in the panel (its calibration error).
    """

    name: str
    look: Look
    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray
    note: str


def reliability(teachers: Sequence[Reliability]) -> Callable[[bool], Figure]:
    """Reliability diagrams side by side: below the diagonal a teacher is surer than right; dots grow with images."""

    def draw(narrow: bool) -> Figure:
        columns = _columns(len(teachers), 2 if narrow else 4)
        side = (NARROW - 40) / columns - 14 if narrow else 210
        figure, grid = _panel_grid(len(teachers), columns, side, side, x_gap=14 if narrow else 26)
        for index, (axes, teacher) in enumerate(zip(grid, teachers, strict=True)):
            axes.set(xlim=(0, 1), ylim=(0, 1))
            axes.plot([0, 1], [0, 1], color=INK, linewidth=0.9, alpha=0.6)
            axes.vlines(teacher.confidence, teacher.confidence, teacher.accuracy, color=teacher.look.colour, alpha=0.5)
            share = teacher.count / max(teacher.count.sum(), 1)
            axes.plot(teacher.confidence, teacher.accuracy, color=teacher.look.colour, linestyle=teacher.look.dash)
            axes.scatter(
                teacher.confidence,
                teacher.accuracy,
                s=12 + 220 * share,
                color=teacher.look.colour,
                marker=teacher.look.marker,
                edgecolor=PAPER,
                zorder=5,
            )
            axes.set_title(teacher.name, loc="left")
            axes.text(0.04, 0.94, teacher.note, va="top", fontsize=11, transform=axes.transAxes)
            axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
            axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"] if index % columns == 0 else [""] * 3)
            axes.set_xlabel("confidence")
            if index % columns == 0:
                axes.set_ylabel("accuracy")
        return figure

    return draw


@dataclass(frozen=True)
class Curve:
    """The validation scores of one run."""

    look: Look | None
    epochs: np.ndarray
    scores: np.ndarray
    dash: str | tuple[int, tuple[float, ...]] = "-"


def curves(
    panels: Mapping[str, Sequence[Curve]], y_label: str, key: Mapping[str, Curve], *, fall: bool = False
) -> Callable[[bool], Figure]:
    """Training curves as small multiples on the same axes: one panel a cell, one line a run; ``key`` names lines.

    Args:
        fall: the curves fall while training goes well, as losses do.
    """

    def draw(narrow: bool) -> Figure:
        columns = _columns(len(panels), 2 if narrow else 4)
        gap, top = (12 if narrow else 20), 32 + 18 * len(_key_rows(key, narrow))
        width = ((NARROW if narrow else WIDE) - 44 - 4) / columns - gap
        figure, grid = _panel_grid(len(panels), columns, width, 120 if narrow else 160, x_gap=gap, left=44, top=top)
        _key(figure, key, narrow)
        runs = [curve for group in panels.values() for curve in group]
        longest = max(curve.epochs.max() for curve in runs)
        # The first epochs of a training say little: the range leaves out the worst tenth of all points.
        scores = np.concatenate([curve.scores for curve in runs])
        low, high = (scores.min(), np.quantile(scores, 0.9)) if fall else (np.quantile(scores, 0.1), scores.max())
        for index, (axes, (title, group)) in enumerate(zip(grid, panels.items(), strict=True)):
            for curve in group:
                colour = curve.look.colour if curve.look else INK
                dash = curve.look.dash if curve.look else curve.dash
                axes.plot(*_thinned(curve), color=colour, linestyle=dash, linewidth=1.1, alpha=0.75)
            axes.set(xlim=(0, longest * 1.02), ylim=(low - 0.05 * (high - low), high + 0.05 * (high - low)))
            axes.set_title(title, loc="left", fontsize=11.5)
            axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.7)
            axes.yaxis.set_major_locator(MaxNLocator(4, steps=_STEPS))
            axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
            if index % columns:
                axes.tick_params(labelleft=False)
            elif index == 0:
                axes.set_ylabel(y_label)
            if index >= len(panels) - columns:
                axes.set_xlabel("epoch")
        return figure

    return draw


def _thinned(curve: Curve, most: int = 80) -> tuple[np.ndarray, np.ndarray]:
    if len(curve.epochs) <= most:
        return curve.epochs, curve.scores
    kept = np.unique(np.linspace(0, len(curve.epochs) - 1, most).round().astype(int))
    return curve.epochs[kept], curve.scores[kept]


def _columns(count: int, most: int) -> int:
    """At most ``most`` columns, and rows as full as can be."""
    return math.ceil(count / math.ceil(count / most))


def _panel_grid(
    count: int, columns: int, width: float, height: float, *, x_gap: float, left: float = 44, top: float = 24
) -> tuple[Figure, list[Axes]]:
    """``count`` axes of the same size in rows of ``columns``; all in pixels."""
    y_gap, bottom = 58, 44
    rows = math.ceil(count / columns)
    total = top + rows * height + (rows - 1) * y_gap + bottom
    across = left + columns * (width + x_gap)
    figure = Figure(figsize=(across / 72, total / 72))
    grid = []
    for index in range(count):
        row, column = divmod(index, columns)
        x, y = left + column * (width + x_gap), top + row * (height + y_gap)
        grid.append(_axes(figure, left=x, right=across - x - width, top=y, bottom=total - y - height))
    return figure, grid


def _key(figure: Figure, key: Mapping[str, Curve], narrow: bool) -> None:
    """Names of lines in rows above the panels; ``_key_rows`` of them."""
    width, height = (side * 72 for side in figure.get_size_inches())
    for row, names in enumerate(_key_rows(key, narrow)):
        x, y = 44.0, 1 - (12 + 18 * row) / height
        for name in names:
            curve = key[name]
            colour, dash = (curve.look.colour, curve.look.dash) if curve.look else (INK, curve.dash)
            line = Line2D([x / width, (x + 24) / width], [y, y], color=colour, linestyle=dash, linewidth=1.8)
            figure.add_artist(line)
            figure.text((x + 30) / width, y, name, va="center", fontsize=11 if narrow else 12)
            x += _key_width(name)


def _key_width(name: str) -> float:
    """Room for a line's sample and name, in pixels."""
    return 48 + 7 * len(name)


def _key_rows(key: Mapping[str, Curve], narrow: bool) -> list[list[str]]:
    rows: list[list[str]] = [[]]
    for name in key:
        if rows[-1] and 44 + sum(map(_key_width, [*rows[-1], name])) > (NARROW if narrow else WIDE):
            rows.append([])
        rows[-1].append(name)
    return rows
