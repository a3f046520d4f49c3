"""A study's report: one HTML page that stands alone, the same as Markdown, and the figures as files.

    python scripts/study.py report DIR

writes ``report.html`` (no network, no script; light and dark, phone to paper), ``report.md`` and ``figures/`` into the
study's folder. Half a study gets a page too, which says what is missing.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import jinja2

from scripts.studies.content import Block, Cell, Code, Fold, Lead, Panel, Picture, Section, Table, Text
from scripts.studies.results import read_study
from scripts.studies.sections.outline import QUESTION, sections_of, subtitle_of, title_of
from vision_reference.files import atomic_file

PAGE, MARKDOWN, FIGURES = "report.html", "report.md", "figures"


def write_report(folder: Path) -> Path:
    """Write the report of the study in ``folder`` beside its results.

    Returns:
        The path of ``report.html``.

    Raises:
        UserError: the folder holds no study, or a file of it is damaged.
    """
    study = read_study(folder)
    title, subtitle = title_of(study), subtitle_of(study)
    question = str(study.facts.get("question") or QUESTION)
    sections = sections_of(study)
    pictures = folder / FIGURES
    pictures.mkdir(exist_ok=True)
    drawn = {picture.drawing.name: picture.drawing for section in sections for picture in _pictures(section.blocks)}
    for stale in pictures.glob("*.*"):  # a figure of an earlier report that this one does not have
        if stale.suffix in (".svg", ".png") and stale.stem not in drawn:
            stale.unlink()
    for drawing in drawn.values():
        drawing.save(pictures)
    _write(folder / PAGE, html(title, subtitle, question, sections))
    _write(folder / MARKDOWN, markdown(title, subtitle, question, sections))
    return folder / PAGE


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode())


def _pictures(blocks: Sequence[Block]) -> list[Picture]:
    found = [block for block in blocks if isinstance(block, Picture)]
    return found + [picture for block in blocks if isinstance(block, Fold) for picture in _pictures(block.blocks)]


def html(title: str, subtitle: str, question: str, sections: list[Section]) -> str:
    """The page; everything that comes from data is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["tie"] = tie
    page = environment.get_template("page.html")
    return page.render(title=title, subtitle=subtitle, question=question, sections=sections)


def tie(text: str) -> str:
    """No line break inside ``T = 4``, ``61.1 ± 0.5``, ``95 %`` or ``[0.4, 2.0]``."""
    text = re.sub(r"\b(T|n|p|alpha) = (?=[\d<])", "\\1\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}", str(text))
    return re.sub(r"(?<=[\d\]]) (?=[±%])|(?<=±) |(?<=\d,) (?=[^\[\]]{1,9}\])", "\N{NO-BREAK SPACE}", text)


def markdown(title: str, subtitle: str, question: str, sections: list[Section]) -> str:
    """The same as Markdown; pictures are the PNG files in ``figures/``."""
    lines = [f"# {_plain(title)}", "", f"{_plain(question)} {_plain(subtitle)}.", ""]
    for section in sections:
        lines += [f"## {_plain(section.title)}", ""]
        for block in section.blocks:
            lines += [*_markdown_block(block), ""]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_block(block: Block) -> list[str]:
    match block:
        case Text(text):
            return [_plain(text)]
        case Lead(sentences):
            return [" ".join(map(_plain, sentences))]
        case Code(text):
            fence = "```"
            while fence in text:
                fence += "`"
            return [fence, text, fence]
        case Table():
            return _markdown_table(block)
        case Picture(drawing, caption, alt):
            return [f"![{_plain(alt)}]({FIGURES}/{drawing.name}.png)", "", f"*{_plain(caption)}*"]
        case Panel(_, file, caption, alt):
            return [f"![{_plain(alt)}](<{file}>)", "", f"*{_plain(caption)}*"]
        case Fold(summary, blocks):
            inner = [line for inside in blocks for line in [*_markdown_block(inside), ""]]
            return ["<details>", f"<summary>{_plain(summary)}</summary>", "", *inner, "</details>"]


def _markdown_table(table: Table) -> list[str]:
    rows = [table.head, *([_cell(cell) for cell in row] for row in table.rows)]
    heads, *body = ["| " + " | ".join(_plain(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    rule = "|" + "|".join("---" if i == 0 or i in table.words else "---:" for i in range(len(table.head))) + "|"
    caption = _plain(table.caption)
    return [caption if caption.endswith(".") else f"{caption}:", "", heads, rule, *body]


def _cell(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return cell
    text = f"**{cell.text}**" if cell.is_best else cell.text
    return f"{text} ({cell.note})" if cell.note else text


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: no tags, no line breaks."""
    return " ".join(str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").split())
