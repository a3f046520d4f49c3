"""A student and an expert in CTranslate2's format, run where this project is not."""

import ast
import json
import re
import subprocess
import sys

import pytest

from scripts.nmt import export
from scripts.nmt.lib.lang_pair import LangPair
from scripts.nmt.lib.recorded_model import find_vocabulary, read_recorded
from scripts.nmt.lib.translator import Translator
from scripts.nmt.lib.user_error import UserError

pytest.importorskip("ctranslate2")
EN_DE, EN_RU = LangPair("en", "de"), LangPair("en", "ru")


def run(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["export.py", *map(str, arguments), "--format", "ctranslate2"])
    export.main()


@pytest.fixture(scope="module")
def exported(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "student"
    with pytest.MonkeyPatch.context() as patch:
        run(patch, pipeline / "student" / "checkpoint_best.pt", "--output", folder, "--sentences", 20)
    return folder


def test_the_folder_translates_as_fairseq_without_this_project(pipeline, exported):
    lines = (pipeline / "text" / "test.en").read_text().splitlines()[:30]
    (code,) = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    code = code.replace("__de__", "__ru__").replace('["Good morning."]', repr(lines))
    code += "import sys\nassert not {'torch', 'fairseq', 'scripts', 'fairseq_plugins'} & set(sys.modules)\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=exported.parent, capture_output=True, text=True, check=True
    )
    recorded = read_recorded(pipeline / "student" / "checkpoint_best.pt")
    expected = Translator(recorded, EN_RU, find_vocabulary(recorded, EN_RU)).translate(lines)
    ended = [number for number, one in enumerate(expected) if not one.is_cut]
    assert len(ended) > 20
    found = ast.literal_eval(done.stdout)
    assert [found[number].split() for number in ended] == [expected[number].text.split() for number in ended]


def test_the_card_says_what_was_measured_and_which_tokens_belong_to_a_pair(exported):
    card = (exported / "README.md").read_text()
    assert "| en-ru | __ru__ | __ru__ |" in card
    # BLEU agrees where translations come to their end, as the Russian ones of this little student do
    row = re.search(r"\| en-ru \| 20 \| ([\d.]+) \| ([\d.]+) \| ([\d.]+)% \|", card)
    assert float(row[1]) == pytest.approx(float(row[2]), abs=0.3)
    assert float(row[3]) > 90
    assert "distilled at T = 1.0, kd_weight 0.9" in card
    assert json.loads((exported / "translation.json").read_text())["pairs"]["en-de"] == [["__de__"], ["__de__"]]
    assert not list(exported.parent.glob("*.partial"))


def test_an_expert_in_8_bits_on_sentences_that_are_given(pipeline, tmp_path, monkeypatch, capsys):
    for language in EN_DE:
        text = (pipeline / "text" / f"test.{language}").read_text().splitlines()[:10]
        (tmp_path / f"few.{language}").write_text("\n".join(text) + "\n")
    checkpoint = pipeline / "experts" / "en-de" / "checkpoint_best.pt"
    few = f"en-de={tmp_path / 'few.en'},{tmp_path / 'few.de'}"
    run(monkeypatch, checkpoint, "--int8", "--output", tmp_path / "out", "--test-set", few, "--beam", 2)
    assert re.search(r"\| en-de \| 10 \| [\d.]+ \| [\d.]+ \| [\d.]+% ", capsys.readouterr().out)
    assert "8-bit integers" in (tmp_path / "out" / "README.md").read_text()
    # a second time, nothing is replaced
    with pytest.raises(UserError, match="exists already; choose a new folder or remove it"):
        run(monkeypatch, checkpoint, "--output", tmp_path / "out")


def test_test_sets_of_other_pairs_or_of_unequal_length_are_refused(tmp_path):
    (tmp_path / "a").write_text("one\ntwo\n")
    (tmp_path / "b").write_text("eins\n")
    for text, problem in {
        "en-fr=a,b": "--test-set en-fr=a,b: give PAIR=SRC,REF with PAIR one of en-de",
        "en-de=a": "give PAIR=SRC,REF",
        f"en-de={tmp_path / 'a'},{tmp_path / 'b'}": "ends after line 1, but",
        f"en-de={tmp_path / 'a'},{tmp_path / 'none'}": "none: cannot be opened",
    }.items():
        with pytest.raises(UserError, match=problem):
            export.read_test_sets([text], (EN_DE,))
