"""Prepared text, experts, a distilled student and their BLEU, all through the command lines, on number words."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sacrebleu

from scripts.nmt.lib import generate as translate
from scripts.nmt.lib.lang_pair import LangPair
from scripts.nmt.lib.user_error import UserError

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
    assert (expert / "bleu.en-de.de").read_text().splitlines() == hypotheses
    assert scores["sentences"] == 60
    assert score > 20  # it has learned something, or the comparison says little


def test_a_students_bleu_is_what_fairseq_and_sacrebleu_give_without_us(pipeline):
    result = json.loads((pipeline / "student" / "bleu.json").read_text())
    task = ["--task", "translation_multi_simple_epoch", "--lang-pairs", "en-de,en-ru", "--langs", "en,de,ru"]
    task += ["--encoder-langtok", "tgt", "--decoder-langtok"]
    _, score = direct_bleu(pipeline, pipeline / "student" / "checkpoint_best.pt", EN_RU, *task)
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
    from fairseq_plugins.teachers.safe_checkpoint import read_checkpoint

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


def test_what_cannot_be_evaluated_is_told_in_one_line(pipeline, refused, run_script, tmp_path):
    data_bin, checkpoint = pipeline / "data" / "data-bin", pipeline / "experts" / "en-de" / "checkpoint_best.pt"

    def complaint(data_bin=data_bin, checkpoint=checkpoint, pairs="en-de", output="o.json", more=()):
        arguments = ["--data-bin", data_bin, "--checkpoint", checkpoint, "--lang-pairs", pairs]
        return refused("evaluate_bleu.py", *arguments, "--output", tmp_path / output, *more)

    assert "was trained on en-de, not on en-ru; name only these pairs" in complaint(pairs="en-ru")
    assert "test.en-fr.fr is missing: --data-bin must lie in a folder made by prepare.py" in complaint(pairs="en-fr")
    assert "no checkpoint at" in complaint(checkpoint=tmp_path / "none.pt")
    assert "must end in .json" in complaint(output="bleu.txt")
    assert "--beam 0 is below 1" in complaint(more=["--beam", "0"])
    (tmp_path / "other.json").write_text('{"pairs": {"en-de": {"references_sha256": "of others"}}}')
    assert "does not score en-de on the same references" in complaint(more=["--baseline", tmp_path / "other.json"])
    (tmp_path / "broken.json").write_text("[")
    assert "cannot be used" in complaint(more=["--baseline", tmp_path / "broken.json"])


def test_a_checkpoint_that_would_run_a_program_is_refused_unread(pipeline, run_script, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trapped"),)

    import torch

    torch.save({"model": {}, "cfg": Trap()}, tmp_path / "trap.pt")
    arguments = ["--data-bin", pipeline / "data" / "data-bin", "--checkpoint", tmp_path / "trap.pt"]
    done = run_script("evaluate_bleu.py", *arguments, "--lang-pairs", "en-de", "--output", tmp_path / "o.json")
    assert done.returncode != 0
    assert "nothing of it was executed" in done.stderr
    assert not (tmp_path / "trapped").exists()


def test_a_failure_inside_fairseq_ends_in_one_line(pipeline, run_script, tmp_path):
    shutil.copytree(pipeline / "data", tmp_path / "data")
    for path in (tmp_path / "data" / "data-bin").glob("test.*.idx"):
        path.write_bytes(b"damaged")
    checkpoint = pipeline / "experts" / "en-de" / "checkpoint_best.pt"
    arguments = ["--data-bin", tmp_path / "data" / "data-bin", "--checkpoint", checkpoint]
    done = run_script("evaluate_bleu.py", *arguments, "--lang-pairs", "en-de", "--output", tmp_path / "o.json")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert (
        done.stderr.strip().splitlines()[-1].startswith("evaluate_bleu.py: error: fairseq-generate failed for en-de: ")
    )


def test_shards_and_pairs_keep_all_workers_busy():
    two_workers = translate.plan_jobs([EN_DE], 2)
    assert two_workers == [translate.Job(EN_DE, 0, 2), translate.Job(EN_DE, 1, 2)]
    assert [job.shards for job in translate.plan_jobs([EN_DE, EN_RU], 2)] == [1, 1]
    assert len(translate.plan_jobs([EN_DE, EN_RU], 8)) == 8


def test_hypotheses_are_read_and_put_in_order_and_none_may_be_missing(pipeline):
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(pipeline / "data" / "spm.model"))
    output = "S-1\tx\nH-1\t-0.5\t▁ e i n s\nH-0\t-1\t▁ z w e i ▁ d r e i\nD-0\t-1\tx\n"
    found = translate.read_hypotheses(output)
    assert translate.decode(found, model, 2) == ["zwei drei", "eins"]
    with pytest.raises(UserError, match="left out sentence 3 of 3"):
        translate.decode(found, model, 3)


def test_models_of_other_tasks_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"was trained on task language_modeling; allowed are translation, "):
        translate.task_arguments({"_name": "language_modeling"}, [EN_DE], tmp_path / "x.pt")
