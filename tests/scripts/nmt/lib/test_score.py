import json
import random
import subprocess
import sys

import pytest

from scripts.nmt.lib import score as bleu


@pytest.fixture(scope="module")
def texts():
    """References, a good and a worse translation of them: every tenth and every third word wrong."""
    rng = random.Random(0)
    references = [[f"word{rng.randrange(50)}" for _ in range(rng.randint(5, 15))] for _ in range(120)]

    def spoil(share: float) -> list[str]:
        return [" ".join("wrong" if rng.random() < share else w for w in line) for line in references]

    return [" ".join(line) for line in references], spoil(0.1), spoil(0.35)


def sacrebleu(*arguments, folder):
    command = [sys.executable, "-m", "sacrebleu", *arguments, "--format", "json"]
    return json.loads(subprocess.run(command, cwd=folder, capture_output=True, check=True, text=True).stdout)


@pytest.fixture
def folder(texts, tmp_path):
    for name, lines in zip(("references", "good", "worse"), texts, strict=True):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    return tmp_path


def test_scores_and_signatures_are_those_of_sacrebleus_own_command(texts, folder):
    references, good, _ = texts
    expected = sacrebleu("references", "-i", "good", "-m", "bleu", "chrf", "-w", "6", folder=folder)
    for name, entry in zip(("bleu", "chrf"), expected, strict=True):
        assert bleu.score(good, references)[name] == pytest.approx(entry["score"], abs=1e-6)
        assert bleu.signatures()[name] == entry["signature"]


def test_two_systems_without_any_score_do_not_differ():
    """sacrebleu itself calls their difference of nothing significant."""
    found = bleu.paired_bootstrap(["a b c"] * 5, ["x y z"] * 5, ["1 2 3"] * 5)
    assert found["bleu"]["difference"] == 0
    assert found["bleu"]["p_value"] == 1


def test_the_paired_bootstrap_is_that_of_sacrebleus_own_command(texts, folder):
    references, good, worse = texts
    arguments = ("references", "-i", "worse", "good", "-m", "bleu", "chrf", "--paired-bs", "-w", "6")
    _, system = sacrebleu(*arguments, folder=folder)
    compared = bleu.paired_bootstrap(good, worse, references)
    for name, column in (("bleu", "BLEU"), ("chrf", "chrF2")):
        assert compared[name]["p_value"] == pytest.approx(system[column]["p_value"], abs=1e-6)
        assert compared[name]["confidence"] == pytest.approx(system[column]["ci"], abs=1e-6)
        assert compared[name]["baseline"] + compared[name]["difference"] == pytest.approx(
            bleu.score(good, references)[name]
        )


def test_a_clear_difference_is_significant_and_a_system_does_not_differ_from_itself(texts):
    references, good, worse = texts
    better = bleu.paired_bootstrap(good, worse, references)["bleu"]
    assert better["difference"] > 10
    assert better["p_value"] < 0.01
    same = bleu.paired_bootstrap(good, list(good), references)["bleu"]
    assert (same["difference"], same["p_value"]) == (0, 1)
