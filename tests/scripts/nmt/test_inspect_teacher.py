"""Inspection and diffusion index of translation models, against the models run one sentence at a time."""

import json
import sys

import numpy as np
import pytest
import torch

from scripts.nmt import diffusion_index, inspect_teacher
from scripts.nmt.lib.lang_pair import LangPair
from scripts.nmt.lib.user_error import run_cli
from scripts.studies import mechanism
from scripts.studies.page import markdown
from scripts.studies.results import read_study
from scripts.studies.sections.outline import sections_of


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs a command in this process; returns what it printed."""

    def run(module, *flags, expect=0):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__.rpartition('.')[2]}.py", *map(str, flags)])
        capsys.readouterr()
        status = 0
        try:
            run_cli(sys.argv[0], module.main)
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        assert status == expect, printed.err
        return printed.err if expect else printed.out

    return run


@pytest.fixture(scope="module")
def by_hand(pipeline):
    """Targets, decoder features and logits of every token of the validation set, sentence by sentence, unpadded."""
    from scripts.nmt.lib import decoder_features

    references = decoder_features.open_references(pipeline / "data" / "data-bin", LangPair("en", "de"), "valid")
    expert = decoder_features.load(str(pipeline / "experts" / "en-de" / "checkpoint_best.pt"), references)
    (model,) = expert.members
    found = []
    for number in range(len(references.dataset)):
        pair = references.dataset[number]
        source, target = pair["source"][None], pair["target"]
        previous = torch.cat([target[-1:], target[:-1]])[None]
        with torch.inference_mode():
            features = model(source, torch.tensor([source.size(1)]), previous, features_only=True)[0][0]
        logits = model.decoder.output_layer(features)
        found.append((target, features, logits))
    return [torch.cat(part).double().detach().numpy() for part in zip(*found, strict=True)]


def test_the_inspection_counts_every_token_of_the_references(command, pipeline, by_hand, tmp_path):
    checkpoint = pipeline / "experts" / "en-de" / "checkpoint_best.pt"
    text = command(
        inspect_teacher, "--data-bin", pipeline / "data" / "data-bin", "--lang-pair", "en-de", "--checkpoint",
        checkpoint, "--output", tmp_path, "--tokens", 200,
    )  # fmt: skip
    result = json.loads((tmp_path / "inspection.json").read_text())
    targets, _, logits = by_hand
    targets = targets.astype(int)
    every = result["all_tokens"]
    assert every["count"] == len(targets)
    assert every["accuracy"] == pytest.approx(100 * (logits.argmax(1) == targets).mean())
    nll = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(targets)).item()
    assert every["perplexity"] == pytest.approx(np.exp(nll), rel=1e-4)
    assert result["images"] == 200
    assert result["classes"] == logits.shape[1]
    assert result["smoothing"]["recorded"]["label_smoothing"] == 0.1
    assert result["rule"]["kind"] == "smoothed"
    assert len(text.strip().splitlines()) == 10
    assert "train_student.sh" in text
    assert (tmp_path / "inspection.svg").stat().st_size > 5000


def test_the_diffusion_index_of_words_equals_one_worked_out_by_hand(command, pipeline, by_hand, tmp_path):
    expert = pipeline / "experts" / "en-de" / "checkpoint_best.pt"
    data = ["--data-bin", pipeline / "data" / "data-bin", "--lang-pair", "en-de", "--classes", 6]
    student = pipeline / "student" / "checkpoint_best.pt"  # knows two pairs and expects a language token
    command(
        diffusion_index, *data, "--plain-teacher", expert, "--reference", f"plain={expert}",
        "--student", f"plain:3={student}", "--output", tmp_path,
    )  # fmt: skip
    result = json.loads((tmp_path / "diffusion_index.json").read_text())
    targets, features, logits = by_hand
    from scripts.nmt.lib import decoder_features
    from vision_reference.analysis import geometry

    references = decoder_features.open_references(pipeline / "data" / "data-bin", LangPair("en", "de"), "valid")
    classes = [references.dictionary.index(name) for name in result["classes"]]
    counts = [int((targets == entry).sum()) for entry in classes]
    assert counts == sorted(counts, reverse=True)
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    for number, entry in enumerate(classes):
        mean = probabilities[targets == entry].mean(0)[classes]
        mean[number] = -1
        assert result["similar"][result["classes"][number]] == [
            result["classes"][place] for place in np.argsort(-mean)[: result["similar_classes"]]
        ]
    means, _ = decoder_features.of_classes(
        decoder_features.load(str(expert), references), references, np.array(classes), max_tokens=512, title="expert"
    )
    np.testing.assert_allclose(means, [features[targets == entry].mean(0) for entry in classes], atol=1e-4)
    (cell,) = result["cells"]
    assert cell["similar"]["low"] <= cell["similar"]["mean"] <= cell["similar"]["high"]
    assert np.abs(cell["similar"]["per_class"]).max() > 0.01  # two different models
    assert geometry.neighbour_count(6) == result["similar_classes"] == 2


def test_a_study_of_translation_is_looked_into(command, pipeline, tmp_path):
    """Its diffusion index is the command's for the same models; its experts are what their inspection says."""
    expert, student = (pipeline / name / "checkpoint_best.pt" for name in ("experts/en-de", "student"))
    data = pipeline / "data" / "data-bin"
    lines = []
    for role, temperature, checkpoint in (("teacher", None, expert), ("student", 1, student), ("student", 3, expert)):
        job = f"{role}{temperature or ''}"
        (tmp_path / "study" / "runs" / job).mkdir(parents=True)
        (tmp_path / "study" / "runs" / job / "checkpoint_best.pt").symlink_to(checkpoint)
        line = {"job": job, "role": role, "seed": 1, "alpha": 0.0, "temperature": temperature, "network": "t"}
        lines.append(line | {"metrics": {"bleu": {"en-de": 30.0}}, "folder": f"runs/{job}", "finished": "today"})
    study = tmp_path / "study"
    (study / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (study / "study.json").write_text(json.dumps({"data": str(pipeline / "data"), "pairs": ["en-de"]}))
    found = mechanism.analyse_translation(study, device="cpu")
    assert found == []
    records = {record["kind"]: record for record in json.loads((study / "analysis" / "mechanism.json").read_text())}
    pieces = len(json.loads((study / "runs" / "teacher" / "pieces.en-de.json").read_text())["found"]["means"])
    command(
        diffusion_index, "--data-bin", data, "--lang-pair", "en-de", "--classes", pieces, "--plain-teacher", expert,
        "--reference", f"plain={student}", "--student", f"plain:3={expert}", "--output", tmp_path / "index",
    )  # fmt: skip
    (cell,) = json.loads((tmp_path / "index" / "diffusion_index.json").read_text())["cells"]
    assert records["eta"]["eta"] == pytest.approx(cell["similar"]["mean"], rel=1e-6)
    assert records["eta"]["control"] == pytest.approx(cell["control"]["mean"], rel=1e-6)
    command(
        inspect_teacher, "--data-bin", data, "--lang-pair", "en-de", "--checkpoint", expert,
        "--output", tmp_path / "inspection",
    )  # fmt: skip
    inspected = json.loads((tmp_path / "inspection" / "inspection.json").read_text())
    assert records["teacher"]["token_accuracy"] == pytest.approx(inspected["all_tokens"]["accuracy"])
    assert records["teacher"]["perplexity"] == pytest.approx(inspected["all_tokens"]["perplexity"])
    assert (records["teacher"]["pair"], records["teacher"]["bleu"]) == ("en-de", 30.0)
    # once more, from what was kept beside the checkpoints; a checkpoint that is gone is named
    (study / "runs" / "student3" / "checkpoint_best.pt").unlink()
    assert mechanism.analyse_translation(study) == ["student3"]
    page = markdown("t", "s", "q", sections_of(read_study(study)))
    assert "tokens right, %" in page
    refused = command(mechanism, study, "--groups", "x.tsv", expect=2)
    assert "is a study of translation, which does not take --groups" in refused


def test_what_does_not_fit_is_one_line(command, pipeline, tmp_path):
    expert, data = pipeline / "experts" / "en-de" / "checkpoint_best.pt", pipeline / "data" / "data-bin"
    start = ["--data-bin", data, "--output", tmp_path]
    inspected = [*start, "--checkpoint", expert, "--lang-pair"]
    assert "was trained on en-de, not on en-ru" in command(inspect_teacher, *inspected, "en-ru", expect=2)
    assert "holds no nosuch set" in command(inspect_teacher, *inspected, "en-de", "--subset", "nosuch", expect=2)
    assert "name one" in command(inspect_teacher, *inspected, "en-de,en-ru", expect=2)
    assert "there is no" in command(
        inspect_teacher, "--data-bin", tmp_path, *start[2:], "--checkpoint", expert, "--lang-pair", "en-de", expect=2
    )
    compared = [*start, "--lang-pair", "en-de", "--plain-teacher", expert]
    students = ["--reference", f"a={expert}", "--student", f"a:2={expert}"]
    assert "ask for fewer with --classes" in command(diffusion_index, *compared, *students, "--classes", 5000, expect=2)
    wrong = ["--reference", f"a={expert}", "--student", f"b:2={expert}"]
    assert "has no --reference b=PATH" in command(diffusion_index, *compared, *wrong, expect=2)
    absent = [*start, "--checkpoint", tmp_path / "none.pt", "--lang-pair", "en-de"]
    assert "no checkpoint at" in command(inspect_teacher, *absent, expect=2)
