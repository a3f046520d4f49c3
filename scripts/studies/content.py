"""What a report is made of: sections of paragraphs, tables, figures, folded details; the page and the Markdown file
render the same.

All text is plain: the renderers escape it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scripts.studies.figures import Drawing


@dataclass(frozen=True)
class Cell:
    """A table's cell: ``text``, with ``note`` small after it; ``is_best`` in bold, ``mark`` a word to style it by."""

    text: str
    note: str = ""
    is_best: bool = False
    mark: str = ""


Row = Sequence[str | Cell]


@dataclass(frozen=True)
class Text:
    text: str
    kind: str = field(default="text", init=False)


@dataclass(frozen=True)
class Lead:
    """The first sentences of the page."""

    sentences: Sequence[str]
    kind: str = field(default="lead", init=False)


@dataclass(frozen=True)
class Table:
    """``head`` names the columns, the first cell of each row the row; ``words`` are the columns of text."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Row]
    words: Sequence[int] = ()
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class Picture:
    """A drawn figure; ``alt`` says what it shows."""

    drawing: "Drawing"
    caption: str
    alt: str
    kind: str = field(default="picture", init=False)


@dataclass(frozen=True)
class Panel:
    """A picture that an analysis left: ``source`` a data address, ``file`` its path from the study's folder."""

    source: str
    file: str
    caption: str
    alt: str
    kind: str = field(default="panel", init=False)


@dataclass(frozen=True)
class Code:
    text: str
    kind: str = field(default="code", init=False)


@dataclass(frozen=True)
class Fold:
    """What is shown on demand."""

    summary: str
    blocks: Sequence["Block"]
    is_failed: bool = False
    kind: str = field(default="fold", init=False)


Block = Text | Lead | Table | Picture | Panel | Code | Fold


@dataclass(frozen=True)
class Section:
    anchor: str
    title: str
    blocks: Sequence[Block]
