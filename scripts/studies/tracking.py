"""``study.py run --track``: every training of a study logs to TensorBoard, Weights & Biases or MLflow.

Trainings of images pass the flag on to ``train.py``, those of translation to what fairseq has for it. All runs of a
study are found together: ``tensorboard --logdir DIR/runs``, a group of wandb's with the study's title, an experiment of
MLflow's with that title in ``DIR/mlruns``.
"""

import os
from collections.abc import MutableMapping, Sequence
from dataclasses import replace
from pathlib import Path

from scripts.lib.jobs import Job
from scripts.studies.plan import Planned
from vision_reference.errors import UserError
from vision_reference.runs.tracking import check_installed

PROJECT = "lskd"


def with_tracking(plan: Sequence[Planned], services: Sequence[str]) -> list[Planned]:
    """The same plan with trainings that are tracked.

    Args:
        services: of ``vision_reference.arguments.TRACKERS``.

    Raises:
        UserError: a service that fairseq does not have, or whose package is missing.
    """
    check_installed(list(services))
    return [replace(planned, job=_tracked(planned.job, services)) for planned in plan]


def _tracked(job: Job, services: Sequence[str]) -> Job:
    words: list[str] = []
    if job.command[0] == "fairseq-train":
        for service in services:
            if service == "mlflow":
                raise UserError("--track mlflow: fairseq has no MLflow; take tensorboard or wandb for translation")
            if service == "tensorboard":
                words += ["--tensorboard-logdir", str(job.folder / "tensorboard")]
            else:
                words += ["--wandb-project", os.environ.get("WANDB_PROJECT") or PROJECT]
    elif any(Path(word).name == "train.py" for word in job.command[:2]):
        words = ["--track", ",".join(services)]
    return replace(job, command=(*job.command, *words))


def set_environment(
    services: Sequence[str], title: str, output: Path, environment: MutableMapping[str, str] = os.environ
) -> None:
    """What the trainings' services find in their environment, where the user has not set it.

    Args:
        title: of the study.
        output: its folder, absolute.
    """
    if "wandb" in services:
        environment.setdefault("WANDB_RUN_GROUP", title)
        environment.setdefault("WANDB_DIR", str(output))
        if not environment.get("WANDB_API_KEY"):
            environment.setdefault("WANDB_MODE", "offline")
    if "mlflow" in services and not environment.get("MLFLOW_TRACKING_URI"):
        environment["MLFLOW_TRACKING_URI"] = (output / "mlruns").as_uri()
        environment.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        environment.setdefault("MLFLOW_EXPERIMENT_NAME", title)
        _make_experiment(environment)


def _make_experiment(environment: MutableMapping[str, str]) -> None:
    """Once, before trainings that begin at the same time each make one of their own."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=environment["MLFLOW_TRACKING_URI"])
    if client.get_experiment_by_name(environment["MLFLOW_EXPERIMENT_NAME"]) is None:
        client.create_experiment(environment["MLFLOW_EXPERIMENT_NAME"])
