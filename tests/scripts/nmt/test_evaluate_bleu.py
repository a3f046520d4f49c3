"""Further test sets, comparisons, averages: what evaluate_bleu.py does beside scoring the prepared test set."""

import json
import os
import shutil
import sys

import pytest
import torch

from scripts.nmt import evaluate_bleu
from scripts.nmt.lib.averaged_checkpoint import average, last_checkpoints
from scripts.nmt.lib.lang_pair import LangPair
from scripts.nmt.lib.user_error import UserError

EN_DE, EN_RU = LangPair("en", "de"), LangPair("en", "ru")


def few(pipeline, folder, language, lines=12):
    path = folder / f"few.{language}"
    text = (pipeline / "text" / f"test.{language}").read_text().splitlines()[:lines]
    path.write_text("\n".join(text) + "\n")
    return path


@pytest.fixture(scope="module")
def two_outputs(pipeline, tmp_path_factory):
    """A student's and an expert's score on twelve sentences, without any prepared data."""
    folder = tmp_path_factory.mktemp("outputs")
    news = f"news={few(pipeline, folder, 'en')},{few(pipeline, folder, 'de')}"
    outputs = []
    for place, pairs in (("student", [EN_DE, EN_RU]), ("experts/en-de", [EN_DE])):
        outputs.append(folder / f"{place[:6]}.json")
        checkpoint = pipeline / place / "checkpoint_best.pt"
        evaluate_bleu.evaluate(None, checkpoint, pairs, outputs[-1], test_sets=(news,))
    return outputs


def test_a_further_test_set_is_scored_from_plain_text(pipeline, two_outputs):
    _, expert = two_outputs
    scores = json.loads(expert.read_text())["test_sets"]["news"]["en-de"]
    # the same sentences of the prepared test set were translated before, in other batches
    before = (pipeline / "experts" / "en-de" / "bleu.en-de.de").read_text().splitlines()[:12]
    assert expert.with_name("expert.news.en-de.de").read_text().splitlines() == before
    assert scores["sentences"] == 12
    assert "| news, en-de | " in expert.with_suffix(".md").read_text()


def test_two_outputs_are_compared_by_the_texts_beside_them(two_outputs):
    student, expert = two_outputs
    found = evaluate_bleu.compare(student, expert)
    table = evaluate_bleu.comparison_table(student, expert, found).splitlines()
    label, metric, a, b, difference, p = (cell.strip() for cell in table[2].strip("|").split("|"))
    scores = [json.loads(path.read_text())["test_sets"]["news"]["en-de"]["bleu"] for path in two_outputs]
    assert (label, metric) == ("news.en-de", "bleu")
    assert [float(a), float(b), float(difference)] == pytest.approx([*scores, scores[1] - scores[0]], abs=0.006)
    assert 0 < float(p) < 0.05  # twelve sentences are enough: the student says the same word again and again
    same = evaluate_bleu.compare(expert, expert)
    assert evaluate_bleu.comparison_table(expert, expert, same).splitlines()[2].endswith("| +0.00 | 1.0000 |")


def test_a_comparison_is_written_where_it_is_asked_for(two_outputs, tmp_path, monkeypatch, capsys):
    output = tmp_path / "new" / "compare.json"
    monkeypatch.setattr(sys, "argv", ["x", "--compare", *map(str, two_outputs), "--output", str(output)])
    evaluate_bleu.main()
    assert json.loads(output.read_text())["sets"] == evaluate_bleu.compare(*two_outputs)
    assert capsys.readouterr().out.startswith("| pair | metric | A | B | B - A | p |")


def test_what_cannot_be_compared_is_told(two_outputs, tmp_path):
    student, _ = two_outputs
    for path in student.parent.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / "expert.news.en-de.reference.de").write_text("anders\n" * 12)
    with pytest.raises(UserError, match=r"the texts of news.en-de beside .* were changed since; evaluate again"):
        evaluate_bleu.compare(student, tmp_path / "expert.json")
    (tmp_path / "expert.news.en-de.de").unlink()
    with pytest.raises(UserError, match="evaluate_bleu.py leaves it beside its output"):
        evaluate_bleu.compare(student, tmp_path / "expert.json")
    (tmp_path / "empty.json").write_text('{"pairs": {}}')
    with pytest.raises(UserError, match="have no set in common"):
        evaluate_bleu.compare(student, tmp_path / "empty.json")


def test_the_pair_of_a_test_set_is_told_by_its_files(pipeline, tmp_path):
    for language in ("en", "ru", "txt"):
        few(pipeline, tmp_path, language if language != "txt" else "en").rename(tmp_path / f"x.{language}")
    english, russian, unknown = (tmp_path / f"x.{language}" for language in ("en", "ru", "txt"))
    assert evaluate_bleu.read_test_set(f"a={english},{russian}", [EN_DE, EN_RU]).pair == EN_RU
    assert evaluate_bleu.read_test_set(f"a={english},{unknown}", [EN_DE]).pair == EN_DE
    with pytest.raises(UserError, match=r"of which pair\? Let the files end in the languages of one of --lang-pairs"):
        evaluate_bleu.read_test_set(f"a={english},{unknown}", [EN_DE, EN_RU])
    for text in ("a", "a=b", "/=a.en,a.de", "a=b,c,d"):
        with pytest.raises(UserError, match="give NAME=SRC,REF, such as news=news.en,news.de"):
            evaluate_bleu.read_test_set(text, [EN_DE])


def test_the_mean_of_the_last_checkpoints_is_their_mean(pipeline, tmp_path):
    best = torch.load(pipeline / "experts" / "en-de" / "checkpoint_best.pt", weights_only=False)
    generator = torch.Generator().manual_seed(0)
    weights = []
    for epoch in (8, 9, 10, 11):
        # drawn, not taken from training: fairseq leaves some weights unset (`_float_tensor`), and those may hold NaN
        model = {
            name: torch.randn(weight.shape, generator=generator) if weight.is_floating_point() else weight
            for name, weight in best["model"].items()
        }
        weights.append(model)
        torch.save({**best, "model": model}, tmp_path / f"checkpoint{epoch}.pt")
    (tmp_path / "checkpoint_9_400.pt").touch()  # of an update, not of an epoch
    paths = last_checkpoints(tmp_path, 3)
    assert [path.name for path in paths] == ["checkpoint9.pt", "checkpoint10.pt", "checkpoint11.pt"]
    path = average(paths)
    assert path.name == "checkpoint_mean_9-11.pt"
    found = torch.load(path, weights_only=False)
    assert "last_optimizer_state" not in found
    for name, weight in found["model"].items():
        assert weight.dtype == best["model"][name].dtype
        expected = sum(model[name].double() for model in weights[1:]) / 3
        assert torch.allclose(weight.double(), expected, atol=1e-6), name
    with pytest.raises(UserError, match="--average 5: .* holds only 4 of the checkpoint<epoch>.pt; train with KEEP"):
        last_checkpoints(tmp_path, 5)


def test_comet_needs_its_package(two_outputs, pipeline, tmp_path):
    with pytest.raises(UserError, match="pip install unbabel-comet"):
        evaluate_bleu.bleu.load_comet("some/model")


def test_what_cannot_be_evaluated_is_told_in_one_line(pipeline, tmp_path):
    data_bin, checkpoint = pipeline / "data" / "data-bin", pipeline / "experts" / "en-de" / "checkpoint_best.pt"

    def complaint(data_bin=data_bin, checkpoint=checkpoint, pair=EN_DE, output="o.json", **more):
        with pytest.raises(UserError) as problem:
            evaluate_bleu.evaluate(data_bin, checkpoint, [pair], tmp_path / output, **more)
        return str(problem.value)

    assert "was trained on en-de, not on en-ru; name only these pairs" in complaint(pair=EN_RU)
    assert "test.en-fr.en is missing: --data-bin must lie in a folder made by" in complaint(pair=LangPair("en", "fr"))
    assert "no checkpoint at" in complaint(checkpoint=tmp_path / "none.pt")
    assert f"did you mean {checkpoint}?" in complaint(checkpoint=checkpoint.parent)
    assert "must end in .json" in complaint(output="bleu.txt")
    (tmp_path / "other.json").write_text('{"pairs": {"en-de": {"references_sha256": "of others"}}}')
    assert "does not score en-de on the same references" in complaint(baseline=tmp_path / "other.json")
    (tmp_path / "broken.json").write_text("[")
    assert "cannot be used" in complaint(baseline=tmp_path / "broken.json")


def test_a_checkpoint_that_would_run_a_program_is_refused_unread(pipeline, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trapped"),)

    torch.save({"model": {}, "cfg": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(UserError, match="nothing of it was executed"):
        evaluate_bleu.evaluate(pipeline / "data" / "data-bin", tmp_path / "trap.pt", [EN_DE], tmp_path / "o.json")
    assert not (tmp_path / "trapped").exists()
