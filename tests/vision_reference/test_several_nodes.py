"""Two nodes on one machine, each with a torchrun of its own: the results of one node, also where one node is lost."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "vision_reference" / "train.py"
# A network with running statistics and random numbers; in the update LOST_AT it takes its torchrun and itself away.
NETWORK = """
import os, signal
from torch import nn

class Lost(nn.Module):
    updates = 0

    def forward(self, images):
        self.updates += self.training
        if str(self.updates) == os.environ.get("LOST_AT"):
            for process in (os.getppid(), os.getpid()):
                os.kill(process, signal.SIGKILL)
        return images

def small(num_classes):
    layers = [nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5)]
    return nn.Sequential(Lost(), *layers, nn.Linear(900, num_classes))
"""
LINE = (
    "train.py: error: another process of this run has ended or cannot be reached any more; the same command with "
    "--resume auto goes on after the last finished epoch\n"
)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def two_nodes(flags, folder, lost_at=None):
    """Exit statuses and what was printed: of the node where the processes meet, which may be lost, and the other."""
    port = free_port()
    nodes, files = [], [folder / f"node{number}" for number in range(2)]
    for number, file in enumerate(files):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", number]
        command += ["--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{port}"]
        command += ["--rdzv_id", "run1", TRAIN, *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if lost_at and number == 0:
            environment["LOST_AT"] = str(lost_at)
        with file.open("w") as output:
            nodes.append(subprocess.Popen(list(map(str, command)), env=environment, stdout=output, stderr=output))
        while not number and nodes[0].poll() is None:  # the meeting point is the first node's
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
    return [node.wait(timeout=300) for node in nodes], [file.read_text() for file in files]


def outcome(folder, metrics):
    records = [{key: value for key, value in record.items() if "second" not in key} for record in metrics(folder)]
    return torch.load(folder / "checkpoint.pth", weights_only=True)["model"], records


def test_two_nodes_are_one_and_where_one_is_lost_the_run_goes_on(train, metrics, tmp_path, monkeypatch):
    (tmp_path / "own_things.py").write_text(NETWORK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    flags = [*train.flags, "--model", "own_things:small", "--epochs", "2", "--output-dir"]
    train(*flags, tmp_path / "one", processes=2)
    flags = [*flags, tmp_path / "two", "--resume", "auto"]

    statuses, printed = two_nodes(flags, tmp_path, lost_at=5)  # an epoch has three updates
    assert statuses[0] == -signal.SIGKILL
    assert statuses[1] not in (0, -signal.SIGKILL)
    assert printed[1].count(LINE) == 1, printed[1]
    assert "Traceback" not in printed[1].partition(LINE)[0]
    assert len(metrics(tmp_path / "two")) == 1

    statuses, printed = two_nodes(flags, tmp_path)
    assert statuses == [0, 0], "".join(printed)
    (ours, records), (expected, straight) = (outcome(tmp_path / name, metrics) for name in ("two", "one"))
    assert records == straight
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
