"""Archives in IWSLT 2014's format, made here, with the pairs that must come out worked out by hand."""

import io
import json
import tarfile

import pytest

from scripts.nmt.lib import iwslt_archive
from scripts.nmt.lib.lang_pair import LangPair
from scripts.nmt.lib.user_error import UserError

EN_DE, DE_EN = LangPair("en", "de"), LangPair("de", "en")

# Fifty lines of text: the title and the description of one talk, then sentences 3 to 50.
ENGLISH = """<url>http://www.ted.com/talks/one.html</url>
<keywords>talks, cats</keywords>
<speaker>A Speaker</speaker>
<talkid>1</talkid>
<title>A talk: On cats</title>
<description>TED Talk Subtitles: Cats. </description>
""" + "".join(f"Sentence {n}.\n" for n in range(3, 51))
GERMAN = """<url>http://www.ted.com/talks/lang/de/one.html</url>
<keywords>talks, cats</keywords>
<speaker>A Speaker</speaker>
<talkid>1</talkid>
<translator href="http://www.ted.com/profiles/2">Eine Übersetzerin</translator>
<reviewer href="http://www.ted.com/profiles/3">Ein Prüfer</reviewer>
<title>Ein Vortrag: Über Katzen</title>
<description>TED Talk Untertitel: Katzen. </description>
""" + "".join(f"Satz {n}.\n" for n in range(3, 51))


def xml(*segments):
    body = "".join(f'<seg id="{number}"> {text} </seg>\n' for number, text in segments)
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<mteval>
<refset setid="set" srclang="english" trglang="german">
<doc docid="1" genre="lectures">
<title>Not part of the test set</title>
{body}</doc>
</refset>
</mteval>
"""


def files(sets=iwslt_archive.TEST_SETS):
    found = {"train.tags.de-en.en": ENGLISH, "train.tags.de-en.de": GERMAN}
    for name in sets:
        found[f"IWSLT14.{name}.de-en.en.xml"] = xml((1, f"First of {name}."), (2, "Cats &amp; dogs."))
        found[f"IWSLT14.{name}.de-en.de.xml"] = xml((1, f"Erster von {name}."), (2, "Katzen &amp; Hunde."))
    return found


def archive(folder, contents, name="de-en.tgz"):
    path = folder / name
    with tarfile.open(path, "w:gz") as tar:
        for member, text in contents.items():
            data = text if isinstance(text, bytes) else text.encode()
            info = tarfile.TarInfo(f"de-en/{member}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def rows(path, pair=EN_DE):
    return list(iwslt_archive.Archive(path).rows(pair))


def test_training_text_keeps_titles_and_drops_lines_about_the_talk(tmp_path):
    found = [row[1:] for row in rows(archive(tmp_path, files())) if row[0] != "test"]
    # <speaker> is no tag that the recipe drops; it stands in both languages.
    assert found[:4] == [
        ("<speaker>A Speaker</speaker>", "<speaker>A Speaker</speaker>"),
        ("A talk: On cats", "Ein Vortrag: Über Katzen"),
        ("TED Talk Subtitles: Cats.", "TED Talk Untertitel: Katzen."),
        ("Sentence 3.", "Satz 3."),
    ]
    assert found[-1] == ("Sentence 50.", "Satz 50.")
    assert len(found) == 51


def test_every_23rd_pair_is_validation(tmp_path):
    found = rows(archive(tmp_path, files()))
    # Pair 23 is the speaker, title, description and sentences 3 to 22; pair 46 ends with sentence 45.
    assert [row for row in found if row[0] == "valid"] == [
        ("valid", "Sentence 22.", "Satz 22."),
        ("valid", "Sentence 45.", "Satz 45."),
    ]
    assert sum(row[0] == "train" for row in found) == 49


def test_a_pair_with_an_empty_side_does_not_count_towards_the_23(tmp_path):
    contents = files()
    contents["train.tags.de-en.de"] = contents["train.tags.de-en.de"].replace("Satz 10.\n", "\n")
    found = rows(archive(tmp_path, contents))
    assert ("train", "Sentence 10.", "") in found
    assert [row[1] for row in found if row[0] == "valid"] == ["Sentence 23.", "Sentence 46."]


def test_an_empty_pair_after_a_validation_pair_is_counted_as_training(tmp_path):
    contents = files()
    contents["train.tags.de-en.de"] = contents["train.tags.de-en.de"].replace("Satz 23.\n", "\n")
    assert ("train", "Sentence 23.", "") in rows(archive(tmp_path, contents))


def test_the_test_set_is_the_segments_of_all_five_sets_in_order(tmp_path):
    found = [row[1:] for row in rows(archive(tmp_path, files()), DE_EN) if row[0] == "test"]
    names = ("TED.dev2010", "TED.tst2010", "TED.tst2011", "TED.tst2012", "TEDX.dev2012")
    assert found[0::2] == [(f"Erster von {name}.", f"First of {name}.") for name in names]
    assert found[1::2] == [("Katzen & Hunde.", "Cats & dogs.")] * 5


def test_prepare_reads_it_and_says_which_sets_and_lines_are_missing(tmp_path, run_script):
    contents = files(iwslt_archive.TEST_SETS[:4])
    contents["train.tags.de-en.de"] = contents["train.tags.de-en.de"].replace("Satz 10.\n", "\n")
    path = archive(tmp_path, contents)
    command = ["iwslt", path, "--pairs", "en-de,de-en", "--vocab-size", "60", "--output", tmp_path / "out"]
    done = run_script("prepare.py", *command)
    assert done.returncode == 0, done.stderr
    assert f"{path}: holds no TEDX.dev2012; the test set is made of the others" in done.stdout
    assert "en-de: train 48 pairs (1 left out: one side empty), valid 2 pairs, test 8 pairs" in done.stdout
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["pairs"] == ["en-de", "de-en"]
    assert manifest["settings"]["test_sets"] == {"de-en.tgz": list(iwslt_archive.TEST_SETS[:4])}
    assert (tmp_path / "out" / "data-bin" / "test.de-en.en.bin").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["de-en.tgz", "out"]  # nothing was unpacked


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.tags.de-en.de": None}, r"train\.tags\.de-en\.de is missing; give an original IWSLT 2014 archive"),
        ({"IWSLT14.TED.tst2011.de-en.en.xml": None}, r"tst2011\.de-en\.en\.xml is missing"),
        ({"train.tags.de-en.de": GERMAN + "zu viel\n"}, r"train\.tags\.de-en\.de, line 57: has no counterpart"),
        ({"train.tags.de-en.en": ENGLISH + "too much\n"}, r"train\.tags\.de-en\.en, line 55: has no counterpart"),
        ({"train.tags.de-en.en": b"fine\n\xff\n"}, r"train\.tags\.de-en\.en, line 2: byte 1 is not valid UTF-8"),
        (
            {"IWSLT14.TED.dev2010.de-en.de.xml": xml((1, "Eins."), (3, "Drei."))},
            r"dev2010\.de-en\.en\.xml, line 7: segment 2 has no counterpart in IWSLT14\.TED\.dev2010\.de-en\.de\.xml",
        ),
        (
            {"IWSLT14.TED.dev2010.de-en.en.xml": xml((1, "One."))},
            r"dev2010\.de-en\.de\.xml, line 7: segment 2 has no counterpart",
        ),
        ({"IWSLT14.TED.dev2010.de-en.en.xml": xml((1, "A & B"))}, r"line 6: not valid XML in UTF-8 \(not well-formed"),
        ({"IWSLT14.TED.dev2010.de-en.en.xml": xml((1, "x")).encode()[:-20]}, r"not valid XML in UTF-8"),
        ({"IWSLT14.TED.dev2010.de-en.en.xml": xml((1, "ü")).encode("latin-1")}, r"line 6: not valid XML in UTF-8"),
    ],
)
def test_damage_is_told_with_file_and_line(tmp_path, changes, message):
    contents = {name: text for name, text in (files() | changes).items() if text is not None}
    with pytest.raises(UserError, match=message):
        rows(archive(tmp_path, contents))


def test_entities_that_could_fill_the_memory_are_refused(tmp_path):
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>\n<mteval><seg id="1">&b;</seg></mteval>'
    contents = files() | {"IWSLT14.TED.dev2010.de-en.en.xml": bomb}
    with pytest.raises(UserError, match=r"dev2010\.de-en\.en\.xml, line 1: declares an XML entity"):
        rows(archive(tmp_path, contents))


def test_files_outside_the_archive_cannot_be_read_through_it(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text('<!ENTITY a "secret">')
    text = f'<!DOCTYPE x SYSTEM "file://{secret}"><mteval><seg id="1">left &a; right</seg></mteval>'
    assert iwslt_archive.read_segments(io.BytesIO(text.encode()), "x.xml") == [("1", "left right", 1)]


def test_outsized_xml_is_refused(monkeypatch):
    monkeypatch.setattr(iwslt_archive, "MAX_XML_BYTES", 100)
    with pytest.raises(UserError, match=r"x\.xml: larger than"):
        iwslt_archive.read_segments(io.BytesIO(xml((1, "x" * 200)).encode()), "x.xml")


def test_links_inside_an_archive_are_not_followed(tmp_path):
    path = tmp_path / "de-en.tgz"
    with tarfile.open(path, "w:gz") as tar:
        link = tarfile.TarInfo("de-en/train.tags.de-en.de")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(UserError, match=r"train\.tags\.de-en\.en is missing"):
        rows(path)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"no archive", lambda data: b""])
def test_a_damaged_archive_is_one_line(tmp_path, damage):
    path = archive(tmp_path, files())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"de-en\.tgz: cannot be read as a tar\.gz archive \(.*\); is the file whole\?"):
        rows(path)


def test_archives_and_pairs_must_fit(tmp_path, refused):
    path = archive(tmp_path, files())
    out = ("--output", tmp_path / "out")
    line = refused("prepare.py", "iwslt", path, "--pairs", "en-ru", *out)
    assert f"--pairs en-ru: not in the archives given ({path}); allowed: English and an archive's language" in line
    assert "the name must be <lang>-en.tgz" in refused("prepare.py", "iwslt", path.rename(tmp_path / "data.tgz"), *out)
    assert "cannot be read as a tar.gz archive" in refused("prepare.py", "iwslt", tmp_path / "ru-en.tgz", *out)
