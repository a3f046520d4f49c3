"""The benchmark of a Marian step: its ways are what their names say, and the documented function is one of them."""

import json
from unittest.mock import MagicMock

import pytest
import torch

pytest.importorskip("transformers")

from scripts.bench import marian_step as bench

SIZE = bench.Size(width=16, layers=1, vocabulary=40, sentences=3, words=4)


def test_every_way_works_out_its_loss_and_leaves_gradients():
    student, steps = bench.make_steps(SIZE)
    losses = {way: step() for way, step in steps.items()}
    assert list(losses) == ["own loss", "own loss + KL", "fused", "fused, top 8"]
    for way, loss in losses.items():
        student.zero_grad()
        loss.backward()
        assert student.lm_head.weight.grad.any(), way


def test_the_fused_step_is_smoothed_labels_and_divergence_from_logits():
    torch.manual_seed(0)
    student, teacher = bench.make_models(SIZE)
    batch = bench.make_batch(SIZE)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        ours, theirs = (model(**inputs).logits.flatten(0, 1).double().log_softmax(1) for model in (student, teacher))
        spread = bench.LABEL_SMOOTHING / (SIZE.vocabulary - 1)
        nll = -ours.gather(1, batch["labels"].reshape(-1, 1)).squeeze(1)
        labels = (1 - bench.LABEL_SMOOTHING - spread) * nll - spread * ours.sum(1)
        divergence = (theirs.exp() * (theirs - ours)).sum(1)
        expected = ((1 - bench.KD_WEIGHT) * labels + bench.KD_WEIGHT * divergence).mean()
        found = bench.documented_step()(student, teacher, batch)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_run_prints_its_table_and_writes_every_measurement(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["marian_step.py", "--quick", "--rounds", "2", "--json", str(tmp_path / "figures")])
    pool = MagicMock()  # processes of their own would import for seconds
    pool.return_value.__enter__.return_value.submit.return_value.result.return_value = 7
    monkeypatch.setattr(bench, "ProcessPoolExecutor", pool)
    bench.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row.count("|") for row in rows] == [9] * 5
    figures = json.loads((tmp_path / "figures").read_text())
    assert [len(figures[name]["fused"]) for name in ("seconds", "cpu_seconds")] == [2, 2]
    assert figures["bytes"] == dict.fromkeys(figures["seconds"], 7)
