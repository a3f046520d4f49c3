import json
import random
import subprocess
import sys

import pytest

from scripts.nmt.lib import cldr_phrases


@pytest.fixture(scope="module")
def texts():
    return cldr_phrases.phrases()


def test_there_are_20000_distinct_pairs_for_each_language(texts):
    for pair in cldr_phrases.PAIRS:
        pairs = {(source, target) for _, source, target in cldr_phrases.rows(pair, texts)}
        assert len(pairs) == len(texts) >= 20_000


def test_no_phrase_of_one_split_is_in_another_in_any_language(texts):
    for pair in cldr_phrases.PAIRS:
        rows = list(cldr_phrases.rows(pair, texts))
        for side in (1, 2):
            splits = {name: {row[side] for row in rows if row[0] == name} for name in ("train", "valid", "test")}
            assert len(splits["valid"]) == len(splits["test"]) == cldr_phrases.HELD_OUT
            assert not splits["train"] & splits["valid"]
            assert not splits["train"] & splits["test"]
            assert not splits["valid"] & splits["test"]


def test_a_phrase_is_in_the_same_split_for_both_pairs(texts):
    german, russian = (list(cldr_phrases.rows(pair, texts)) for pair in cldr_phrases.PAIRS)
    assert [row[:2] for row in german] == [row[:2] for row in russian]


def test_another_process_makes_the_same_phrases(scripts_folder):
    program = "import json; from scripts.nmt.lib.cldr_phrases import phrases; print(json.dumps(phrases(count=500)))"
    command, root = [sys.executable, "-c", program], scripts_folder.parent
    done = subprocess.run(command, cwd=root, env={"PYTHONHASHSEED": "7"}, capture_output=True)
    assert json.loads(done.stdout) == cldr_phrases.phrases(count=500)


def test_another_seed_makes_other_phrases():
    assert cldr_phrases.phrases(count=100, seed=1) != cldr_phrases.phrases(count=100, seed=2)


@pytest.mark.parametrize("kind", [*cldr_phrases.KINDS])
def test_every_kind_is_rendered_in_all_languages_from_the_same_arguments(kind):
    phrase = kind(random.Random(3))
    rendered = [phrase(code) for code in ("en", "de", "ru")]
    assert all(rendered)
    assert rendered == [phrase(code) for code in ("en", "de", "ru")]


def test_plural_forms_follow_the_number(texts):
    """Russian has three forms where English has two: 1, 2 to 4, 5 and more."""
    german, russian = ({t["en"]: t[code] for t in texts} for code in ("de", "ru"))
    hours = {"1 hour": "1 час", "2 hours": "2 часа", "5 hours": "5 часов", "21 hours": "21 час"}
    found = {english: russian[english] for english in hours if english in russian}
    assert found
    assert found == {english: hours[english] for english in found}
    assert all(german[english].startswith(english.split()[0]) for english in found)
