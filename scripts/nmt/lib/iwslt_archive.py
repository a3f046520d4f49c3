"""Reads the original IWSLT 2014 archives `<lang>-en.tgz` without unpacking them to disk.

Training text: `train.tags.<lang>-en.{<lang>,en}`. Lines about a talk (its address, keywords, number, translator,
reviewer) are dropped, title and description keep their text; every 23rd pair that is left is validation.
Test set: the segments of `IWSLT14.TED.{dev2010,tst2010,tst2011,tst2012}` and `IWSLT14.TEDX.dev2012` together.

An archive may come from a stranger: members are only ever read as streams, lines and XML files have a greatest size,
and XML that declares entities (a few bytes could stand for gigabytes) is refused.
"""

import contextlib
import re
import tarfile
import zlib
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO, NamedTuple
from xml.parsers import expat

from scripts.nmt.lib.lang_pair import LangPair
from scripts.nmt.lib.parallel_text import Row, clean, read_lines
from scripts.nmt.lib.user_error import UserError

VALID_EVERY = 23
TEST_SETS = ("TED.dev2010", "TED.tst2010", "TED.tst2011", "TED.tst2012", "TEDX.dev2012")
MAX_XML_BYTES = 64 << 20

_ARCHIVE_NAME = re.compile(r"([a-z]{2,3}(?:_[a-z]+)?)-en\.(?:tgz|tar\.gz)")
_ABOUT_THE_TALK = re.compile(r"<(?:url|keywords|talkid|translator|reviewer)\b")
_KEEP_TEXT_OF = re.compile(r"</?(?:title|description)>")


class Segment(NamedTuple):
    number: str
    text: str
    line: int


def archive_language(path: Path) -> str:
    """The language beside English, from the archive's name. Raises UserError for another name."""
    match = _ARCHIVE_NAME.fullmatch(path.name)
    if not match:
        raise UserError(f"{path}: the name must be <lang>-en.tgz, such as de-en.tgz; it tells which languages it holds")
    return match.group(1)


def talk_text(lines: Iterator[str]) -> Iterator[tuple[int, str]]:
    """(line number, text) of the lines that are text of a talk, its title or its description."""
    for number, line in enumerate(lines, start=1):
        if not _ABOUT_THE_TALK.search(line):
            yield number, clean(_KEEP_TEXT_OF.sub(" ", line))


def read_segments(stream: BinaryIO, name: str) -> list[Segment]:
    """The `<seg id="N">` elements in order. Raises UserError for broken or outsized XML and for declared entities."""
    segments: list[Segment] = []
    text: list[str] | None = None
    number, line = "", 0
    parser = expat.ParserCreate("UTF-8")

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal text, number, line
        if tag == "seg":
            text, number, line = [], attributes.get("id", ""), parser.CurrentLineNumber

    def characters(data: str) -> None:
        if text is not None:
            text.append(data)

    def end(tag: str) -> None:
        nonlocal text
        if tag == "seg" and text is not None:
            segments.append(Segment(number, clean("".join(text)), line))
            text = None

    def refuse(*_) -> None:
        raise UserError(f"{name}, line {parser.CurrentLineNumber}: declares an XML entity; IWSLT's own files have none")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.EntityDeclHandler = characters, refuse
    data = stream.read(MAX_XML_BYTES + 1)
    if len(data) > MAX_XML_BYTES:
        raise UserError(f"{name}: larger than {MAX_XML_BYTES >> 20} MiB; IWSLT's test sets are far smaller")
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        problem = expat.errors.messages[error.code]
        raise UserError(f"{name}, line {error.lineno}: not valid XML in UTF-8 ({problem})") from None
    return segments


class Archive:
    """One archive, opened anew for every stream, because a gzip stream has only one position."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.language = archive_language(path)
        with self._opened() as tar:
            # The first of equal names counts; only plain files do, never links.
            self._members = {Path(m.name).name: m.name for m in reversed(tar.getmembers()) if m.isfile()}

    def test_sets(self) -> list[str]:
        """Those of TEST_SETS that are inside, in that order. Raises UserError if there is none."""
        held = [name for name in TEST_SETS if any(self._xml(name, code) in self._members for code in self._languages)]
        if not held:
            raise UserError(f"{self.path}: holds no test set such as {self._xml(TEST_SETS[0], self.language)}")
        return held

    def rows(self, pair: LangPair) -> Iterator[Row]:
        """Training, validation and test rows of `pair`, which must be of this archive's two languages.

        Raises UserError, with member and line, for files that are missing, damaged or not aligned.
        """
        yield from self._train_rows(pair)
        for test_set in self.test_sets():
            yield from self._test_rows(pair, test_set)

    def _train_rows(self, pair: LangPair) -> Iterator[Row]:
        names = [f"train.tags.{self.language}-en.{code}" for code in pair]
        with self._member(names[0]) as source_stream, self._member(names[1]) as target_stream:
            sides = (
                talk_text(read_lines(s, self._say(n)))
                for s, n in ((source_stream, names[0]), (target_stream, names[1]))
            )
            kept = 0
            for source, target in zip_longest(*sides):
                if source is None or target is None:
                    short, long = names if source is None else names[::-1]
                    number, _ = source or target
                    raise UserError(
                        f"{self._say(long)}, line {number}: has no counterpart, {short} has no more lines of text; "
                        "the archive is damaged or of another year"
                    )
                whole = bool(source[1] and target[1])
                kept += whole
                yield "valid" if whole and kept % VALID_EVERY == 0 else "train", source[1], target[1]

    def _test_rows(self, pair: LangPair, test_set: str) -> Iterator[Row]:
        names = [self._xml(test_set, code) for code in pair]
        sides = []
        for name in names:
            with self._member(name) as stream:
                sides.append(read_segments(stream, self._say(name)))
        for source, target in zip_longest(*sides):
            if source is None or target is None or source.number != target.number:
                segment, name, other = (source, *names) if source else (target, *names[::-1])
                raise UserError(
                    f"{self._say(name)}, line {segment.line}: segment {segment.number} has no counterpart in {other}"
                )
            yield "test", source.text, target.text

    @property
    def _languages(self) -> tuple[str, str]:
        return self.language, "en"

    def _xml(self, test_set: str, code: str) -> str:
        return f"IWSLT14.{test_set}.{self.language}-en.{code}.xml"

    def _say(self, member: str) -> str:
        return f"{self.path}: {member}"

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tarfile.TarFile]:
        try:
            with tarfile.open(self.path, "r:gz") as tar:
                yield tar
        except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
            raise UserError(f"{self.path}: cannot be read as a tar.gz archive ({error}); is the file whole?") from None

    @contextlib.contextmanager
    def _member(self, name: str) -> Iterator[BinaryIO]:
        if name not in self._members:
            raise UserError(f"{self.path}: {name} is missing; give an original IWSLT 2014 archive")
        with self._opened() as tar, tar.extractfile(self._members[name]) as stream:
            yield stream
