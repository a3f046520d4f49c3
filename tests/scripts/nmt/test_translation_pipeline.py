"""Prepared text, experts, a distilled student and their BLEU, all through the command lines, on number words."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sacrebleu

from scripts.nmt.lib.lang_pair import LangPair

EN_DE, EN_RU = LangPair("en", "de"), LangPair("en", "ru")
ROOT = Path(__file__).resolve().parents[3]


def direct_bleu(pipeline, checkpoint, pair, *task):
    """BLEU by other means: one fairseq-generate with its own sentencepiece removal, then sacrebleu on the text."""
    command = [sys.executable, "-m", "fairseq_cli.generate", pipeline / "data" / "data-bin", "--path", checkpoint]
    command += ["--user-dir", ROOT / "fairseq_plugins" / "inference_only", "--remove-bpe", "sentencepiece", "--cpu"]
    command += ["-s", pair.source, "-t", pair.target, "--beam", "5", *task]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    found = dict(line[2:].split("\t")[::2] for line in done.stdout.splitlines() if line.startswith("D-"))
    hypotheses = [found[str(number)] for number in range(len(found))]
    references = (pipeline / "text" / f"test.{pair.target}").read_text().splitlines()
    return hypotheses, sacrebleu.corpus_bleu(hypotheses, [references]).score


def test_an_experts_bleu_is_what_fairseq_and_sacrebleu_give_without_us(pipeline):
    expert = pipeline / "experts" / "en-de"
    scores = json.loads((expert / "bleu.json").read_text())["pairs"]["en-de"]
    hypotheses, score = direct_bleu(pipeline, expert / "checkpoint_best.pt", EN_DE)
    assert scores["bleu"] == pytest.approx(score)
    assert (expert / "bleu.en-de.de").read_text().splitlines() == [" ".join(line.split()) for line in hypotheses]
    assert scores["sentences"] == 60
    assert score > 20  # it has learned something, or the comparison says little


def test_a_students_bleu_is_what_fairseq_and_sacrebleu_give_without_us(pipeline):
    result = json.loads((pipeline / "student" / "bleu.json").read_text())
    task = ["--task", "translation_multi_simple_epoch", "--lang-pairs", "en-de,en-ru", "--langs", "en,de,ru"]
    task += ["--encoder-langtok", "tgt", "--decoder-langtok"]
    hypotheses, score = direct_bleu(pipeline, pipeline / "student" / "checkpoint_best.pt", EN_RU, *task)
    assert [line.split() for line in (pipeline / "student" / "bleu.en-ru.ru").read_text().splitlines()] == [
        line.split() for line in hypotheses
    ]
    german, russian = (result["pairs"][pair]["bleu"] for pair in ("en-de", "en-ru"))
    assert russian == pytest.approx(score)
    assert result["average"]["bleu"] == pytest.approx((german + russian) / 2)
    assert result["signatures"]["bleu"].startswith("nrefs:1|case:mixed|")


def test_a_comparison_with_a_baseline_is_in_json_and_table(pipeline):
    student = json.loads((pipeline / "student" / "bleu.json").read_text())["pairs"]["en-de"]
    expert = json.loads((pipeline / "experts" / "en-de" / "bleu.json").read_text())["pairs"]["en-de"]
    against = expert["baseline"]["bleu"]
    assert against["baseline"] == pytest.approx(student["bleu"])
    assert against["difference"] == pytest.approx(expert["bleu"] - student["bleu"])
    assert 0 < against["p_value"] <= 1
    head, _, row = (pipeline / "experts" / "en-de" / "bleu.md").read_text().splitlines()[:3]
    assert head == "| pair | BLEU | chrF | baseline BLEU | difference | p |"
    assert row.startswith(f"| en-de | {expert['bleu']:.2f} | {expert['chrf']:.2f} | {student['bleu']:.2f} | ")


def test_a_finished_pipeline_is_not_run_again(pipeline, run_script, tiny):
    experts, student = {"OUT": pipeline / "experts", "MAX_EPOCH": 12}, {"OUT": pipeline / "student", "MAX_EPOCH": 8}
    done = run_script("train_experts.sh", **tiny, DATA=pipeline / "data", **experts)
    assert done.stdout.splitlines() == ["en-de: finished before, skipped", "en-ru: finished before, skipped"]
    done = run_script("train_student.sh", **tiny, DATA=pipeline / "data", EXPERTS=pipeline / "experts", **student)
    assert done.stdout.splitlines() == ["student: finished before, skipped"]


def test_a_training_in_two_goes_ends_as_one_in_one(pipeline, run_script, tiny, tmp_path):
    from fairseq_plugins.inference_only.checkpoints import read_checkpoint

    for epochs in (5, 12):
        variables = tiny | {"DATA": pipeline / "data", "OUT": tmp_path, "PAIRS": "en-de", "MAX_EPOCH": epochs}
        assert run_script("train_experts.sh", **variables).returncode == 0
    straight, halting = (
        read_checkpoint(str(folder / "en-de" / "checkpoint_last.pt"))["model"]
        for folder in (pipeline / "experts", tmp_path)
    )
    assert straight.keys() == halting.keys()
    # What no training sets: a placeholder, and encoder layers' copies of their weights, which fairseq makes on loading.
    unset = re.compile(r"_float_tensor$|encoder\.layers\.\d+\.(in_proj|out_proj|fc1|fc2)_(weight|bias)$")
    trained = [name for name in straight if not unset.search(name)]
    assert {name.split(".")[0] for name in trained} == {"encoder", "decoder"}
    for name in trained:
        assert straight[name].equal(halting[name]), name
