"""How the figures look: colours that everybody can tell apart, three file formats, text that stays text."""

import csv
import io
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vision_reference.files import atomic_file, write_atomically

# Okabe and Ito 2008, dark to light in grey: blue, vermilion, green, orange, purple, sky blue, black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000")
MARKERS = ("o", "^", "s", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
# One kind of teacher looks the same in every figure.
KINDS = ("plain", "smoothed", "maxsup")

_STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "lskd",  # the same figure is the same file
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
}


def style():
    """Context in which figures are made and written."""
    return matplotlib.rc_context(_STYLE)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that belongs to no window."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def look(kind: str, kinds: Sequence[str]) -> dict:
    """Colour, marker and dash of ``kind`` among ``kinds``: fixed for the known ones, the next free for others."""
    others = [name for name in kinds if name not in KINDS]
    number = KINDS.index(kind) if kind in KINDS else (len(KINDS) + others.index(kind)) % len(COLOURS)
    return {"color": COLOURS[number], "marker": MARKERS[number], "linestyle": DASHES[number]}


def letter(axes: Axes, text: str) -> None:
    """A panel's title, at its left."""
    axes.set_title(text, loc="left", fontweight="bold")


def save(figure: Figure, path: Path) -> list[Path]:
    """Write ``figure`` as ``path`` with .png, .pdf and .svg, each whole or not at all; returns the three paths."""
    path.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells of every glyph, where a program logs to stderr
    written = []
    for kind, metadata in (("png", {}), ("pdf", {"CreationDate": None})):
        target = path.with_name(f"{path.name}.{kind}")
        with style(), atomic_file(target) as file:
            figure.savefig(file, format=kind, metadata=metadata)
        written.append(target)
    target = path.with_name(f"{path.name}.svg")
    save_text(target, as_svg(figure))
    return [*written, target]


def as_svg(figure: Figure) -> str:
    """``figure`` as SVG text, for a file or a page."""
    file = io.BytesIO()
    with style():
        figure.savefig(file, format="svg", metadata={"Date": None})
    return _said_once(file.getvalue().decode())


def _said_once(svg: str) -> str:
    """The same picture in half the bytes: a group says once what all its markers look like, instead of each of them."""

    def hoist(block: re.Match) -> str:
        looks = set(re.findall(r'<use [^>]*?style="([^"]*)"', block[2]))
        if len(looks) != 1:
            return block[0]
        markers = re.sub(r'\s*(<use [^>]*?) style="[^"]*"', r"\n\1", block[2])
        return f'{block[1][:-1]} style="{looks.pop()}">{markers}'

    return re.sub(r'(<g clip-path="[^"]*">)((?:\s*<use [^>]*/>)+)', hoist, svg)


def save_table(path: Path, head: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Write a CSV file, whole or not at all; numbers with 6 digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row])
    save_text(path, text.getvalue())


def save_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())
