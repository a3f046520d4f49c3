"""Jobs on a cluster, with submitit's executor for one machine in Slurm's place."""

import json
import os
import sys

import pytest

submitit = pytest.importorskip("submitit")

from scripts.lib import jobs  # noqa: E402
from scripts.lib.cluster import Cluster, OnNode, slurm  # noqa: E402
from vision_reference.errors import UserError  # noqa: E402


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setattr(jobs, "_POLL_SECONDS", 0.05)
    executor = submitit.LocalExecutor(tmp_path / "cluster", python=sys.executable)
    executor.update_parameters(timeout_min=1)
    return Cluster(executor, most=2)


def shell(name, program, tmp_path, after=()):
    return jobs.Job(name, tmp_path / name, ("sh", "-c", program), after)


def test_jobs_run_on_nodes_in_order_and_failures_are_isolated(cluster, tmp_path):
    todo = [
        shell("teacher", f"echo teacher >> {tmp_path}/order", tmp_path),
        shell("student", f"echo student >> {tmp_path}/order", tmp_path, after=("teacher",)),
        shell("bad", "echo the reason; exit 3", tmp_path),
        shell("child", "true", tmp_path, after=("bad",)),
    ]
    failures = {failure.job.name: failure for failure in jobs.run(todo, cluster)}
    assert list(failures) == ["bad", "child"]
    assert failures["bad"].reason.startswith("failed (exit status 3): the reason; see ")
    assert (tmp_path / "order").read_text().split() == ["teacher", "student"]
    record = json.loads((tmp_path / "student" / "run.json").read_text())
    assert record["finished"] is True
    assert record["inputs"] == {"teacher": json.loads((tmp_path / "teacher" / "run.json").read_text())["made"]}
    assert cluster.room == 2
    assert jobs.states(todo)["student"].kind == "finished"


def test_a_job_that_loses_its_node_is_ended_and_asked_for_again(tmp_path):
    job = shell("long", "sleep 60", tmp_path)
    node = OnNode()
    node._process = jobs.Process(job, {}, {})
    again = node.checkpoint(job, {})
    assert node._process.code == -15
    assert isinstance(again.function, OnNode)
    assert again.args == (job, {})
    assert jobs.states([job])["long"].kind == "begun"


def test_mistakes_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="--launcher slurm: .*; run it where sbatch and srun are"):
        slurm(tmp_path, ["partition=gpu"], None)
    with pytest.raises(UserError, match="is not of the form KEY=VALUE"):
        slurm(tmp_path, ["partition"], None)


def test_options_reach_slurm(tmp_path, monkeypatch):
    for name in ("srun", "sbatch"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    executor = slurm(tmp_path, ["partition=gpu", "timeout_min=600", "gpus_per_node=1"], 7)._executor._executor
    parameters = executor.parameters
    assert (parameters["partition"], parameters["time"], parameters["gpus_per_node"]) == ("gpu", 600, 1)
    assert parameters["array_parallelism"] == 7
    with pytest.raises(UserError, match="--slurm: "):
        slurm(tmp_path, ["nonsense_option=3"], None)


def test_a_job_that_an_earlier_submission_has_finished_is_not_run_again(tmp_path):
    job = shell("once", f"echo again >> {tmp_path}/runs", tmp_path)
    assert OnNode()(job, {}) == 0
    made = jobs.load_record(job)["made"]
    assert OnNode()(job, {}) == 0
    assert (tmp_path / "runs").read_text() == "again\n"
    assert jobs.load_record(job)["made"] == made


def test_what_sbatch_refuses_is_one_line(tmp_path, monkeypatch):
    for name, program in (
        ("srun", ""),
        ("sbatch", "echo sbatch: error: invalid partition specified: gpuu >&2; exit 1"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    cluster = slurm(tmp_path / "submitit", ["partition=gpuu"], 2)
    with pytest.raises(UserError, match="invalid partition specified: gpuu.*; see --slurm"):
        cluster.start([(shell("a", "true", tmp_path), {})])
