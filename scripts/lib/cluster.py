"""Runs jobs on a Slurm cluster by way of submitit: those that are ready together are one job array.

The process that runs the study stays (on a login node, say, inside tmux) and submits what becomes ready; stopping it
cancels what it has submitted, and the next run goes on. A job that is preempted, or reaches its time, is put back into
the queue and goes on from its last checkpoint.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import submitit

from scripts.lib.jobs import ROOT, Job, Process, state_of
from vision_reference.errors import UserError

_OF_SUBMITIT = ("timeout_min", "gpus_per_node", "cpus_per_task", "mem_gb", "nodes", "tasks_per_node")
_MOST = 64  # jobs in the queue at a time, if the user says nothing


class OnNode(submitit.helpers.Checkpointable):
    """What a node runs: the job, with its lock and its record, as on this machine."""

    def __init__(self) -> None:
        self._process: Process | None = None

    def __call__(self, job: Job, inputs: dict[str, str | None]) -> int | str:
        """The exit status, or why the job could not be started."""
        try:
            if state_of(job, inputs).kind == "finished":  # by an earlier submission that stayed in the queue
                return 0
            self._process = Process(job, inputs, {})
        except UserError as error:
            return str(error)
        while (code := self._process.poll()) is None:
            time.sleep(0.2)
        return code

    def checkpoint(self, *args, **kwargs) -> submitit.helpers.DelayedSubmission:
        """Before the node is taken away: end the command, and ask to be run again."""
        if self._process is not None:
            self._process.ask_to_end()
            self._process.stop()
        return submitit.helpers.DelayedSubmission(OnNode(), *args, **kwargs)


class Submitted:
    """A job in the queue or on a node; as ``jobs.Process`` to the runner."""

    def __init__(self, job: Job, handle: submitit.Job) -> None:
        self.job = job
        self._handle = handle

    def poll(self) -> int | None:
        """The exit status once the job has ended, None before; 1, with a line in its log, where it could not tell."""
        if not self._handle.done():
            return None
        failure = self._handle.exception()
        result = None if failure else self._handle.result()
        if isinstance(result, int):
            return result
        why = result or f"the cluster ended the job ({self._handle.state}); see {self._handle.paths.stderr}"
        self.job.folder.mkdir(parents=True, exist_ok=True)
        with self.job.log_file.open("a") as log:
            log.write(f"{why}\n")
        return 1

    def ask_to_end(self) -> None:
        self._handle.cancel(check=False)

    def stop(self) -> None:
        """Nothing is left to wait for: the cluster ends what was cancelled."""


class Cluster:
    """Runs jobs through an executor of submitit, at most `most` at a time.

    Raises:
        UserError: the cluster cannot be reached.
    """

    def __init__(self, executor: submitit.Executor, most: int = _MOST) -> None:
        self._executor = executor
        self._most = most
        self._running = 0
        # Nodes unpickle jobs, for which they need this clone.
        paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))

    @property
    def room(self) -> int:
        return self._most - self._running

    def start(self, jobs: list[tuple[Job, dict[str, str | None]]]) -> Iterator[Submitted]:
        """Submit jobs, several as one array.

        Raises:
            UserError: sbatch refuses them.
        """
        if not jobs:
            return iter(())
        try:
            with self._executor.batch():
                handles = [self._executor.submit(OnNode(), job, inputs) for job, inputs in jobs]
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"--launcher slurm: {' '.join(str(error).split())}; see --slurm") from None
        self._running += len(jobs)
        return iter([Submitted(job, handle) for (job, _), handle in zip(jobs, handles, strict=True)])

    def ended(self, job: Job) -> None:
        self._running -= 1


def slurm(folder: Path, options: list[str], most: int | None) -> Cluster:
    """The cluster that this machine belongs to.

    Args:
        folder: for submitit's files.
        options: KEY=VALUE for sbatch.
        most: jobs at a time.

    Raises:
        UserError: there is no Slurm here, or an option that is none.
    """
    if most is not None and most < 1:
        raise UserError(f"--jobs {most} is below 1")
    parameters: dict[str, object] = {"slurm_array_parallelism": most or _MOST}
    for option in options:
        key, equals, value = option.partition("=")
        if not key or not equals:
            raise UserError(f"--slurm {option} is not of the form KEY=VALUE, such as partition=gpu")
        name = key if key in _OF_SUBMITIT or key.startswith("slurm_") else f"slurm_{key}"
        parameters[name] = int(value) if value.isdecimal() else value
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster="slurm")
        executor.update_parameters(**parameters)
    except RuntimeError as error:
        raise UserError(f"--launcher slurm: {error}; run it where sbatch and srun are") from None
    except (NameError, ValueError, TypeError, AssertionError) as error:
        raise UserError(f"--slurm: {' '.join(str(error).split())}") from None
    return Cluster(executor, most or _MOST)
