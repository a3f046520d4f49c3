"""The loss benchmark measures every way, forms its ratios within rounds, and says what it could not measure."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.bench import kd_loss as bench

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "bench" / "kd_loss.py"
TINY = ["--tokens", "24", "--width", "8", "--vocabulary", "40", "--rounds", "2", "--k", "4"]


@pytest.fixture
def setting():
    return bench.Setting(tokens=24, width=8, vocabulary=40, temperature=2.0, k=40, dtype="float32", device="cpu")


def test_ratios_are_formed_within_a_round_so_that_a_slow_round_does_not_count(setting):
    seconds = {"dense": [2.0, 20.0, 2.2], "fused": [1.0, 10.0, 0.9]}
    summary = bench.summarize(seconds, {"dense": 4_000_000, "fused": 400_000})
    assert summary["fused"]["time_ratio"]["median"] == 0.5
    assert summary["fused"]["seconds"] == {"median": 1.0, "min": 0.9, "max": 10.0}
    assert summary["fused"]["memory_ratio"] == pytest.approx(0.1)
    table = bench.report(setting, summary, {"liger": "not measured: pip install liger-kernel"})
    assert [line.split()[0] for line in table.splitlines()[2:]] == ["dense", "liger", "fused"]
    assert "pip install liger-kernel" in table


def test_all_distilling_ways_work_out_the_same_loss_and_leave_gradients(setting):
    inputs = bench.make_inputs(setting)
    losses = {}
    for way in ("dense", "fused", "top-k"):
        losses[way] = float(bench.step_of(way)(inputs, setting))
        assert bench.take(way, inputs, setting) > 0
        assert inputs.features.grad.any()
        assert inputs.weight.grad.any()
    assert losses["fused"] == pytest.approx(losses["dense"], rel=1e-5)
    # with all entries stored, in half precision
    assert losses["top-k"] == pytest.approx(losses["dense"], rel=1e-3)
    assert bench.check_same(setting) < 1e-5


def test_a_way_that_cannot_be_gone_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    ways, missing = bench.available(("labels", "dense", "liger"))
    assert ways == ["labels", "dense"]
    assert "pip install liger-kernel" in missing["liger"]


def test_the_command_measures_time_memory_and_growth(tmp_path):
    file = tmp_path / "figures.json"
    run = subprocess.run(
        [sys.executable, str(SCRIPT), *TINY, "--json", str(file)], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    record = json.loads(file.read_text())
    (table,) = record["tables"]
    for way in ("labels", "dense", "fused", "top-k"):
        assert len(table["seconds"][way]) == 2
        assert table["summary"][way]["memory"] >= 0
        assert set(record["growth"]["memory"][way]) == {"12", "24", "48"}
        assert f"\n{way} " in run.stdout
    assert "extra MB at V = 40 as N grows" in run.stdout


@pytest.mark.parametrize(
    ("flags", "said"), [(["--rounds", "-1"], "'-1' is not an integer from 1"), (["--temperature", "0"], "from 0.01")]
)
def test_sizes_that_make_no_sense_are_refused(flags, said, capsys):
    with pytest.raises(SystemExit):
        bench.parse_args(flags)
    assert said in capsys.readouterr().err
