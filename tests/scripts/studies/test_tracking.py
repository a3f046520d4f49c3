"""Trainings of a study that are tracked: the commands, and that a study stays the same study."""

import pytest

from scripts.lib import jobs
from scripts.studies import plan as planning
from scripts.studies.schema import CONFIGS, read_study
from scripts.studies.tracking import set_environment, with_tracking
from vision_reference.errors import UserError


def plans(name, folder, services):
    plan = planning.make_plan(read_study(CONFIGS / f"{name}.yaml"), folder)
    return plan, with_tracking(plan, services)


def test_trainings_of_images_are_tracked_and_finished_ones_stay_finished(tmp_path):
    plain, tracked = plans("digits", tmp_path, ["tensorboard", "wandb"])
    for before, after in zip(plain, tracked, strict=True):
        added = after.job.command[len(before.job.command) :]
        trains = before.role in ("teacher", "student", "baseline")
        assert added == (("--track", "tensorboard,wandb") if trains else ())
        assert after.job.settings == before.job.settings  # what decides whether a job is to be run again


def test_translations_are_tracked_by_what_fairseq_has(tmp_path, monkeypatch):
    pytest.importorskip("fairseq")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    plain, tracked = plans("phrases", tmp_path, ["tensorboard", "wandb"])
    trainings = 0
    for before, after in zip(plain, tracked, strict=True):
        assert after.job.settings == before.job.settings
        if "fairseq-train" in before.job.command:
            trainings += 1
            assert jobs.value_of("--tensorboard-logdir", after.job.command) == str(before.job.folder / "tensorboard")
            assert jobs.value_of("--wandb-project", after.job.command) == "lskd"
        else:
            assert after == before
    assert trainings
    with pytest.raises(UserError, match="fairseq has no MLflow"):
        plans("phrases", tmp_path, ["mlflow"])


def test_services_find_one_place_for_all_runs_and_what_the_user_set_stays(tmp_path):
    environment = {}
    set_environment(["tensorboard"], "A study", tmp_path, environment)
    assert environment == {}
    set_environment(["wandb"], "A study", tmp_path, environment)
    assert environment == {"WANDB_RUN_GROUP": "A study", "WANDB_DIR": str(tmp_path), "WANDB_MODE": "offline"}
    environment = {"WANDB_API_KEY": "k", "WANDB_RUN_GROUP": "mine"}
    set_environment(["wandb"], "A study", tmp_path, environment)
    assert environment == {"WANDB_API_KEY": "k", "WANDB_RUN_GROUP": "mine", "WANDB_DIR": str(tmp_path)}
    environment = {"MLFLOW_TRACKING_URI": "http://somewhere"}
    set_environment(["mlflow"], "A study", tmp_path, environment)
    assert environment == {"MLFLOW_TRACKING_URI": "http://somewhere"}


def test_runs_of_mlflow_share_an_experiment_made_once(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for _ in range(2):
        set_environment(["mlflow"], "A study", tmp_path, {})
    client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    names = [experiment.name for experiment in client.search_experiments()]
    assert names.count("A study") == 1
