"""Epochs' records at TensorBoard, Weights & Biases and MLflow, read back with what these services bring for it."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vision_reference.arguments import parse_args
from vision_reference.errors import UserError
from vision_reference.runs import tracking
from vision_reference.runs.tracking import Tracking, check_installed

KEY = "0123456789abcdef0123456789abcdef01234567"
RECORDS = [{"epoch": epoch, "train_loss": 2.0 - epoch, "val_acc1": 40.0 + epoch} for epoch in range(4)]


@pytest.fixture(autouse=True)
def no_account(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def stopped_and_resumed(names, folder):
    """Two epochs, a third whose checkpoint was never written, and the run that goes on from the second."""
    folder.mkdir()
    with contextlib.suppress(KeyboardInterrupt), Tracking(names) as run:
        run.begin(folder, {"lr": 0.1, "given": ["lr"], "seed": None}, 0, resumed=False)
        for record in RECORDS[:2]:
            run.log(record)
        run.log({"epoch": 2, "train_loss": -1.0, "val_acc1": -1.0})
        raise KeyboardInterrupt
    with Tracking(names) as run:
        run.begin(folder, {"lr": 0.1}, 2, resumed=True)
        for record in RECORDS[2:]:
            run.log(record)


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_shows_one_curve_of_a_resumed_run(tmp_path):
    stopped_and_resumed(["tensorboard"], tmp_path / "run")
    assert scalars(tmp_path / "run" / "tensorboard") == {
        name: [(record["epoch"], pytest.approx(record[name])) for record in RECORDS]
        for name in ("train_loss", "val_acc1")
    }


def test_mlflow_keeps_one_run_in_a_local_folder(tmp_path):
    from mlflow import MlflowClient

    stopped_and_resumed(["mlflow"], tmp_path / "run")
    client = MlflowClient(tracking_uri=(tmp_path / "run" / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("lskd")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status, run.data.params) == ("run", "FINISHED", {"lr": "0.1"})
    history = client.get_metric_history(run.info.run_id, "val_acc1")
    assert [(one.step, one.value) for one in history if one.value >= 0] == [(n, 40.0 + n) for n in range(4)]


def test_wandb_works_offline_without_an_account_and_never_sees_a_key(tmp_path):
    # In a process of its own: wandb starts a service that lives as long as its process.
    script = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1])\n"
        "from tests_tracking import stopped_and_resumed\n"
        "stopped_and_resumed(['wandb'], pathlib.Path(sys.argv[2]))\n"
    )
    (tmp_path / "tests_tracking.py").write_text(Path(__file__).read_text())
    environment = {**os.environ, "WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}
    command = [sys.executable, "-c", script, str(tmp_path), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    assert "tracked by wandb: offline, run " in done.stdout
    (name,) = {json.loads((tmp_path / "run" / "tracking.json").read_text())["wandb"]}
    logs = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert [log.name for log in logs] == [f"run-{name}.wandb"] * len(logs)
    assert logs
    assert b"val_acc1" in b"".join(log.read_bytes() for log in logs)
    written = b"".join(file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file())
    assert KEY.encode() not in written + done.stdout.encode() + done.stderr.encode()


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": ""}, "offline"),
        ({"WANDB_API_KEY": KEY}, "online"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
    ],
)
def test_wandb_is_offline_unless_the_environment_says_otherwise(tmp_path, monkeypatch, environment, mode):
    import wandb

    asked = {}

    class Run:
        def define_metric(self, *_, **__):
            pass

        def finish(self, exit_code):
            asked["exit_code"] = exit_code

    monkeypatch.setattr(wandb, "init", lambda **options: asked.update(options) or Run())
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with Tracking(["wandb"]) as run:
        run.begin(tmp_path, {"lr": 0.1}, 0, resumed=False)
    assert (asked["mode"], asked["project"], asked["name"], asked["exit_code"]) == (mode, "lskd", tmp_path.name, 0)
    assert KEY not in repr(asked["config"])


def test_a_service_that_fails_does_not_end_the_run_and_keeps_its_secrets(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hush")

    class Broken:
        identity, place = "", "nowhere"

        def __init__(self, *_):
            pass

        def log(self, epoch, figures):
            raise ConnectionError("no answer to hush\nand more")

    monkeypatch.setattr(tracking, "_MLflow", Broken)
    with Tracking(["mlflow"]) as run:
        run.begin(tmp_path, {}, 0, resumed=False)
        run.log(RECORDS[0])
        run.log(RECORDS[1])
    out = capsys.readouterr().out
    assert out.count("note: --track mlflow failed and is left out") == 1
    assert "no answer to MLFLOW_TRACKING_PASSWORD)" in out
    assert "hush" not in out


def test_a_place_that_cannot_be_used_is_one_line_before_training(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://user:hush@host")
    with Tracking(["mlflow"]) as run, pytest.raises(UserError, match="--track mlflow: it cannot be used") as told:
        run.begin(tmp_path, {}, 0, resumed=False)
    assert "hush" not in str(told.value)
    assert "\n" not in str(told.value)


def test_a_missing_package_is_one_line_that_names_the_extra(monkeypatch):
    monkeypatch.setattr(tracking.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r'--track wandb: the package wandb is not installed; .*pip install "lskd\[track\]"'
    ):
        check_installed(["wandb"])
    check_installed([])


def test_the_flag_may_be_repeated_or_have_commas(capsys):
    assert parse_args([]).track == []
    assert parse_args(["--track", "wandb,mlflow", "--track", "tensorboard,wandb"]).track == [
        "wandb", "mlflow", "tensorboard",
    ]  # fmt: skip
    with pytest.raises(SystemExit):
        parse_args(["--track", "tensorbord"])
    assert "'tensorbord' is not one of tensorboard, wandb, mlflow" in capsys.readouterr().err


def test_training_is_tracked_and_goes_on_in_the_same_curve(train, tmp_path, metrics):
    flags = ["--model", "resnet8", "--lr", 0.01, "--output-dir", tmp_path, "--track", "tensorboard"]
    text = train(*flags, "--epochs", 1)
    assert f"tracked by tensorboard: {tmp_path / 'tensorboard'}" in text
    text = train(*flags, "--epochs", 2, "--resume", "auto")
    assert "--track" not in text
    shown = scalars(tmp_path / "tensorboard")
    for name in ("train_loss", "val_acc1", "images_per_second", "lr"):
        assert shown[name] == [(record["epoch"], pytest.approx(record[name])) for record in metrics(tmp_path)]
