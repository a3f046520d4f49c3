import gzip
import io

import pytest

from scripts.nmt.lib import parallel_text
from scripts.nmt.lib.lang_pair import LangPair
from scripts.nmt.lib.user_error import UserError

EN_DE = LangPair("en", "de")


def write(path, text):
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def rows(split, source, target):
    return list(parallel_text.read_split(split, (source, target)))


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("train.en-de.en", "train.en-de.de"),
        ("train.en-de.en.gz", "train.en-de.de"),
        ("train.de-en.en", "train.de-en.de.gz"),
        ("train.en", "train.de"),
        ("train.en.gz", "train.de.gz"),
    ],
)
def test_every_layout_is_found_and_read(tmp_path, source, target):
    write(tmp_path / source, "a cat\ntwo dogs\n")
    write(tmp_path / target, "eine Katze\nzwei Hunde\n")
    files = parallel_text.find_files(tmp_path, "train", EN_DE)
    assert [path.name for path in files] == [source, target]
    assert rows("train", *files) == [("train", "a cat", "eine Katze"), ("train", "two dogs", "zwei Hunde")]


def test_files_of_the_pair_come_before_files_of_the_language(tmp_path):
    for name in ("train.en-de.en", "train.en-de.de", "train.en", "train.de"):
        write(tmp_path / name, "x\n")
    assert [p.name for p in parallel_text.find_files(tmp_path, "train", EN_DE)] == ["train.en-de.en", "train.en-de.de"]


def test_a_missing_pair_names_what_was_looked_for(tmp_path):
    with pytest.raises(
        UserError, match=r"no files for pair en-de: neither val\.en-de\.en\[\.gz\] nor .* nor val\.en\["
    ):
        parallel_text.find_files(tmp_path, "val", EN_DE)


def test_a_missing_side_is_named(tmp_path):
    write(tmp_path / "train.en", "x\n")
    with pytest.raises(UserError, match=r"train\.de\[\.gz\] is missing, though the other language's file is there"):
        parallel_text.find_files(tmp_path, "train", EN_DE)


@pytest.mark.parametrize(("short", "long"), [("en", "de"), ("de", "en")])
def test_files_of_unequal_length_are_refused_with_the_line(tmp_path, short, long):
    write(tmp_path / short, "1\n2\n")
    write(tmp_path / long, "1\n2\n3\n")
    with pytest.raises(UserError, match=rf"/{short}: ends after line 2, but .*/{long} goes on"):
        rows("train", tmp_path / "en", tmp_path / "de")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_invalid_utf8_is_refused_with_file_line_and_byte(tmp_path, suffix):
    source = write(tmp_path / f"bad{suffix}", b"fine\nno\xfft fine\n")
    target = write(tmp_path / "good", "1\n2\n")
    with pytest.raises(UserError, match=rf"bad{suffix}, line 2: byte 3 is not valid UTF-8; convert the file to UTF-8"):
        rows("train", source, target)


def test_empty_lines_are_passed_on_for_counting_in_training_and_refused_in_the_test_set(tmp_path):
    source, target = write(tmp_path / "en", "one\ntwo\n"), write(tmp_path / "de", "eins\n \t\n")
    assert rows("train", source, target) == [("train", "one", "eins"), ("train", "two", "")]
    assert rows("valid", source, target)[1] == ("valid", "two", "")
    with pytest.raises(UserError, match=r"/de, line 2: empty line in the test set; remove the pair from both files"):
        rows("test", source, target)


def test_only_a_line_feed_ends_a_line_and_white_space_becomes_one_space():
    data = "\ufeffa\u2028b\r\n  c\x85\u00a0d  \ne\rf".encode()
    assert list(parallel_text.read_lines(io.BytesIO(data), "x")) == ["a b", "c d", "e f"]


def test_an_endless_line_is_refused_before_it_fills_the_memory(tmp_path):
    packed = write(tmp_path / "bomb.gz", b"x" * (parallel_text.MAX_LINE_BYTES + 1))
    with pytest.raises(UserError, match=r"bomb\.gz, line 1: longer than 1,048,576 bytes"):
        rows("train", packed, write(tmp_path / "de", "x\n"))


def test_a_damaged_gzip_file_is_refused_with_its_line(tmp_path):
    whole = gzip.compress(b"".join(b"line %d\n" % n for n in range(10_000)))
    (tmp_path / "cut.gz").write_bytes(whole[: len(whole) // 2])
    target = write(tmp_path / "de", "x\n" * 10_000)
    with pytest.raises(UserError, match=r"cut\.gz, line \d+: cannot be read \(.*\); is the file whole\?"):
        rows("train", tmp_path / "cut.gz", target)


def test_a_file_that_only_looks_like_gzip_is_refused(tmp_path):
    (tmp_path / "plain.gz").write_text("plain text\n")
    with pytest.raises(UserError, match=r"plain\.gz, line 1: cannot be read"):
        rows("train", tmp_path / "plain.gz", write(tmp_path / "de", "x\n"))
