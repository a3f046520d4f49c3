"""``--track``: the record of each epoch also goes to TensorBoard, Weights & Biases or MLflow.

===========  =========================================================================================================
tensorboard  into ``tensorboard/`` in the run's folder; ``tensorboard --logdir DIR`` shows all runs below DIR
wandb        offline, into ``wandb/`` in the run's folder (``wandb sync`` uploads it later, from any machine), unless
             WANDB_API_KEY or WANDB_MODE is set; project WANDB_PROJECT, else "lskd"
mlflow       into ``mlruns/`` in the run's folder, unless MLFLOW_TRACKING_URI names another place or a server;
             experiment MLFLOW_EXPERIMENT_NAME, else "lskd"
===========  =========================================================================================================

Keys are taken from the environment, by the services' own libraries; nothing here writes, logs or prints them. A resumed
run goes on with the same run of each service: ``tracking.json`` in its folder keeps their names for it. A service that
fails while a run trains is told about once and then left out; the run goes on.
"""

import json
import os
import secrets
from collections.abc import Mapping
from importlib import util
from pathlib import Path
from typing import Any, Protocol

from vision_reference.errors import UserError
from vision_reference.files import write_atomically

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}  # --track to what it imports
STATE = "tracking.json"
_SECRETS = ("WANDB_API_KEY", "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_LONGEST = 500  # characters of a flag's value


def check_installed(names: list[str]) -> None:
    """Each service that ``--track`` names has its package.

    Raises:
        UserError: names the extra that brings it.
    """
    for name in names:
        if util.find_spec(PACKAGES[name]) is None:
            raise UserError(
                f"--track {name}: the package {PACKAGES[name]} is not installed; scripts/setup.sh installs it, or "
                'pip install "lskd[track]"'
            )


class Service(Protocol):
    """One service's view of a run."""

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        """The figures of epoch number ``epoch``."""

    def close(self, finished: bool) -> None:
        """The run is over: finished, or stopped."""


class Tracking:
    """All services of one run; a context manager, which closes them.

    Args:
        names: of the services; none does nothing.

    Raises:
        UserError: a package is missing.
    """

    def __init__(self, names: list[str]) -> None:
        check_installed(names)
        self._names = names
        self._services: dict[str, Service] = {}

    def begin(self, folder: Path, flags: Mapping[str, object], start_epoch: int, *, resumed: bool) -> None:
        """Begin a run with every service, or go on with the one that ``folder`` knows of.

        Args:
            folder: of the run; its name is the run's.
            flags: the command line.
            start_epoch: the first that will be logged.
            resumed: whether earlier epochs in this folder are this run's own.

        Raises:
            UserError: a service cannot be used.
        """
        if not self._names:
            return
        known = _read_state(folder) if resumed else {}
        kinds: dict[str, Any] = {"tensorboard": _TensorBoard, "wandb": _Wandb, "mlflow": _MLflow}
        config = {name: value for name, value in flags.items() if name != "given" and value is not None}
        for name in self._names:
            try:
                service = kinds[name](folder, config, start_epoch, known.get(name))
            except Exception as error:
                raise UserError(f"--track {name}: it cannot be used ({_without_secrets(error)})") from None
            self._services[name] = service
            if service.identity:
                known[name] = service.identity
            print(f"tracked by {name}: {service.place}", flush=True)
        write_atomically(folder / STATE, (json.dumps(known) + "\n").encode())

    def log(self, record: Mapping[str, float]) -> None:
        """The record of an epoch, as ``metrics.jsonl`` has it."""
        figures = {name: value for name, value in record.items() if name != "epoch"}
        for name, service in list(self._services.items()):
            try:
                service.log(int(record["epoch"]), figures)
            except Exception as error:  # the run is worth more than its record elsewhere
                del self._services[name]
                print(
                    f"note: --track {name} failed and is left out from now on ({_without_secrets(error)})", flush=True
                )

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for name, service in self._services.items():
            try:
                service.close(finished=kind is None)
            except Exception as error:
                print(f"note: --track {name} could not be closed ({_without_secrets(error)})", flush=True)


class _TensorBoard:
    identity = ""

    def __init__(self, folder: Path, config: dict, start_epoch: int, known: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.place = str(folder / "tensorboard")
        # What an earlier start, or another run, has logged of the epochs to come is hidden.
        self._writer = SummaryWriter(self.place, purge_step=start_epoch)
        text = "".join(f"    {name}: {value}\n" for name, value in sorted(config.items()))
        self._writer.add_text("flags", text, start_epoch)

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self, finished: bool) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, folder: Path, config: dict, start_epoch: int, known: str | None) -> None:
        import wandb

        mode: Any = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        self.identity = known or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "lskd",
            name=os.environ.get("WANDB_NAME") or folder.absolute().name,
            id=self.identity,
            resume="allow",
            dir=str(folder),
            mode=mode,
            config=config,
            settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True),
        )
        self._run.define_metric("*", step_metric="epoch")  # wandb's own steps could not be repeated after a stop
        self.place = f"{mode}, run {self.identity} in {folder / 'wandb'}"
        if mode == "offline":
            self.place += "; wandb sync uploads it"

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        self._run.log({"epoch": epoch, **figures})

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class _MLflow:
    def __init__(self, folder: Path, config: dict, start_epoch: int, known: str | None) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self.place = "the server of MLFLOW_TRACKING_URI"
        address = os.environ.get("MLFLOW_TRACKING_URI")
        if not address:
            # A database, which MLflow would rather have, needs more than its small package.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            self.place = str(folder / "mlruns")
            address = (folder.absolute() / "mlruns").as_uri()
        self._client = MlflowClient(tracking_uri=address)
        if known:
            self.identity = known
            self._client.update_run(known, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "lskd"
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        run = self._client.create_run(experiment, run_name=folder.absolute().name)
        self.identity = run.info.run_id
        parameters = [Param(name, str(value)[:_LONGEST]) for name, value in config.items()]
        for start in range(0, len(parameters), 100):  # as many as a request may have
            self._client.log_batch(self.identity, params=parameters[start : start + 100])

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._client.log_metric(self.identity, name, value, step=epoch)

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self.identity, "FINISHED" if finished else "KILLED")


def _read_state(folder: Path) -> dict[str, str]:
    try:
        state = json.loads((folder / STATE).read_bytes())
        return {str(name): str(value) for name, value in state.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _without_secrets(error: Exception) -> str:
    """The first line of an error, or all of a refused setting's, without what the environment keeps to itself."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = " ".join(" ".join(lines if isinstance(error, ValueError) else lines[:1]).split())[:300]
    for name in _SECRETS:
        if value := os.environ.get(name):
            text = text.replace(value, name)
    return text
