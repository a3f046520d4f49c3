"""The job script for SLURM, with an srun and an scontrol that only look like SLURM's."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "scripts" / "slurm" / "train.sbatch")
SCONTROL = """
echo "$*" >> {folder}/scontrol
if [ "$1" = show ]; then echo node7; sleep 0.2; echo node8; else exit {refuses}; fi
"""
# As SLURM, which tells a step's tasks but not what these have started; once the training has begun.
WARNS = """
"$@" &
until grep -q "Epoch 1/" {folder}/run/log.txt 2>> {folder}/waiting; do sleep 0.2; kill -0 $! || exit 1; done
kill -USR1 $!
wait $!
"""


@pytest.fixture
def submit(tmp_path):
    """Runs the job script where ``srun`` does what it is told; what it did, and the calls of srun and scontrol."""

    def run(srun, *arguments, refuses=0, **settings):
        commands = {"srun": f'echo "$*" >> {{folder}}/srun\n{srun}', "scontrol": SCONTROL}
        (tmp_path / "bin").mkdir()
        for name, text in commands.items():
            file = tmp_path / "bin" / name
            file.write_text("#!/bin/bash\n" + text.format(folder=tmp_path, refuses=refuses))
            file.chmod(0o755)
        path = os.pathsep.join((str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]))
        environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "SLURM_JOB_ID": "4711", **settings}
        command = ["bash", SCRIPT, *map(str, arguments)]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
        calls = [(tmp_path / name).read_text() if (tmp_path / name).exists() else "" for name in commands]
        return done, *calls

    return run


@pytest.mark.parametrize(("status", "queued"), [(0, ""), (2, ""), (143, ""), (138, "requeue 4711\n")])
def test_a_job_is_queued_again_where_it_was_warned_and_only_there(submit, status, queued):
    done, _, scontrol = submit(f"exit {status}", "--data-path", "DATA")
    assert (done.returncode, done.stderr, scontrol) == (status, "", queued)


def test_a_warning_that_reaches_the_script_too_does_not_end_it(submit):
    done, _, scontrol = submit("kill -USR1 $PPID; exit 138", "--data-path", "DATA")
    assert (done.returncode, scontrol) == (138, "requeue 4711\n")


def test_where_it_cannot_be_queued_again_a_line_says_what_to_do(submit):
    done, _, _ = submit("exit 138", "--data-path", "DATA", refuses=1)
    assert done.stderr == "train.sbatch: the job could not be queued again; submit the same command, it goes on\n"


def test_machines_meet_at_the_first_one(submit):
    machines = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4"}
    _, srun, scontrol = submit("exit 0", "--data-path", "DA TA", **machines)
    assert scontrol == "show hostnames node[7-8]\n"
    launcher, _, arguments = srun.partition(" vision_reference/train.py ")
    expected = "--nnodes 2 --nproc_per_node 4 --rdzv_backend c10d --rdzv_endpoint node7:29500 --rdzv_id 4711"
    assert shlex.split(launcher)[1:] == ["scripts/lib/torchrun.py", *expected.split()]
    assert arguments == "--resume auto --data-path DA TA\n"


def test_warned_a_training_saves_within_its_epoch_and_is_queued_again(submit, tmp_path):
    digits = [sys.executable, str(ROOT / "scripts" / "demo" / "digits.py"), "--output", str(tmp_path / "digits")]
    subprocess.run(digits, check=True, capture_output=True)
    flags = ["--data-path", tmp_path / "digits", "--output-dir", tmp_path / "run", "--preset", "digits"]
    flags += ["--model", "resnet8", "--device", "cpu", "--workers", 1, "--batch-size", 8, "--epochs", 1000]
    port = str(os.getpid() % 10_000 + 15_000)
    done, _, scontrol = submit(WARNS, *flags, SLURM_GPUS_ON_NODE="2", RDZV_PORT=port, SLURMD_NODENAME="127.0.0.1")
    assert (done.returncode, scontrol) == (138, "requeue 4711\n"), done.stdout + done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("train.py: stopped by SIGUSR1; the same command with --resume auto goes on after ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert (tmp_path / "run" / "within_epoch.pth").exists()
