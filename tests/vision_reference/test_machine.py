"""Which device, precision and share of a machine a process gets; GPUs and AMX are imitated."""

import os
import signal

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vision_reference import machine, metrics
from vision_reference.arguments import parse_args
from vision_reference.distillation import distillation_loss
from vision_reference.errors import UserError
from vision_reference.losses import kd
from vision_reference.losses.wide import widest_type
from vision_reference.machine import (
    Rank,
    choose_device,
    choose_machine,
    first_machine,
    rank_from_environment,
    usable_workers,
)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
    for name in [*names, *(name for name in os.environ if name.startswith("SLURM_"))]:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def gpus(monkeypatch):
    """Imitates so many visible GPUs, with or without bf16 of their own."""

    def imitate(count, bf16=True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation
        )

    return imitate


def test_each_process_of_torchrun_has_a_gpu_of_its_own(gpus, monkeypatch):
    gpus(4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    devices = [choose_device("cuda", Rank(4 + local, 8, local)) for local in range(4)]
    assert devices == [torch.device("cuda", number) for number in range(4)]


def test_slurm_tasks_that_see_one_gpu_each_take_it(gpus):
    gpus(1)
    assert [choose_device("cuda", Rank(task, 4, task)).index for task in range(4)] == [0, 0, 0, 0]


def test_slurm_tasks_that_see_all_gpus_take_one_each(gpus):
    gpus(4)
    assert [choose_device("cuda", Rank(task, 4, task)).index for task in range(4)] == [0, 1, 2, 3]


def test_one_gpu_of_several_can_be_chosen(gpus):
    gpus(2)
    assert choose_device("cuda:1", None) == torch.device("cuda", 1)
    assert choose_device("cuda", None) == torch.device("cuda", 0)
    assert choose_device("cpu", None) == torch.device("cpu")


def test_without_a_gpu_everything_runs_on_the_cpu(gpus):
    gpus(0)
    assert {choose_device(asked, None).type for asked in ("cuda", "cuda:3", "cpu")} == {"cpu"}


@pytest.fixture
def apple(monkeypatch):
    """Imitates Apple's GPU."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


def chosen(device, amp=False):
    return choose_machine(device, "env://", amp=amp, amp_dtype=None, channels_last=None)


def test_apples_gpu_is_taken_where_there_is_one(gpus, apple, capsys):
    gpus(0)
    assert choose_device("mps", None) == torch.device("mps", 0)
    assert chosen("mps").device.type == "mps"
    assert not capsys.readouterr().out
    assert chosen("cuda").device.type == "cpu"
    assert "no GPU found, running on the CPU; --device mps takes Apple's GPU" in capsys.readouterr().out
    with pytest.raises(UserError, match="--device mps is one GPU, but 2 processes run"):
        choose_device("mps", Rank(0, 2, 0))
    with pytest.raises(UserError, match="--amp scales gradients in float64"):
        chosen("mps", amp=True)


def test_without_apples_gpu_the_cpu_stands_in(gpus, capsys):
    gpus(0)
    assert chosen("mps").device.type == "cpu"
    assert "note: no GPU found, running on the CPU\n" in capsys.readouterr().out


class NoFloat64(TorchDispatchMode):
    """Fails as Apple's GPUs do where an operation gives float64."""

    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for part in found if isinstance(found, tuple | list) else (found,):
            if isinstance(part, torch.Tensor) and part.dtype == torch.float64:
                raise TypeError("the MPS framework doesn't support float64")
        return found


@pytest.mark.parametrize("name", sorted(kd.LOSSES))
def test_apples_gpus_train_without_float64(name, monkeypatch):
    for module in (kd, metrics):
        monkeypatch.setattr(module, "widest_type", lambda device: torch.float32)
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 5, generator=generator).unbind()
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    settings = {"temperature": 2.0, "kd_weight": 0.5, "label_smoothing": 0.1, "kd_loss": kd.LOSSES[name]}
    exact = distillation_loss(student.double(), labels, teacher.double(), **settings)
    with NoFloat64():
        averages = metrics.TrainingAverages(torch.device("cpu"))
        student.requires_grad_()
        losses = distillation_loss(student, labels, teacher, **settings)
        losses.total.backward()
        averages.add(losses, student, labels)
    assert averages.means()["kd"] == pytest.approx(exact.kd.item(), rel=1e-4)
    assert student.grad.isfinite().all()


def test_the_widest_type_is_the_devices():
    assert widest_type(torch.device("mps")) == torch.float32
    assert {widest_type(torch.device(kind)) for kind in ("cpu", "cuda")} == {torch.float64}


def test_gpus_that_are_not_there_are_refused(gpus, monkeypatch):
    gpus(2)
    with pytest.raises(UserError, match="--device cuda:2: 2 GPUs are visible, cuda:0 to cuda:1"):
        choose_device("cuda:2", None)
    with pytest.raises(UserError, match="--device cuda:1 is one GPU, but 2 processes run"):
        choose_device("cuda:1", Rank(0, 2, 0))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    with pytest.raises(UserError, match="8 processes on a machine with 2 visible GPUs"):
        choose_device("cuda", Rank(0, 8, 0))


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:", "tpu"])
def test_other_names_of_devices_are_refused(name, capsys):
    with pytest.raises(SystemExit):
        parse_args(["--device", name])
    assert f"'{name}' is not cpu, cuda, cuda:N or mps" in capsys.readouterr().err


def test_emulated_bf16_does_not_count(gpus):
    def chosen(amp_dtype=None):
        return choose_machine("cuda", "env://", amp=True, amp_dtype=amp_dtype, channels_last=None).amp_dtype

    gpus(1, bf16=False)
    assert chosen() == torch.float16
    with pytest.raises(UserError, match="this GPU has no bf16; use --amp-dtype fp16"):
        chosen("bf16")
    gpus(1, bf16=True)
    assert chosen() == torch.bfloat16


@pytest.mark.parametrize(
    ("cores", "processes", "asked", "workers"),
    [(64, 8, 16, 8), (64, 1, 16, 16), (64, 1, 100, 64), (4, 8, 16, 1), (4, None, 16, 4), (64, 8, 0, 0)],
)
def test_processes_of_one_machine_share_its_cores(monkeypatch, cores, processes, asked, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert usable_workers(asked) == workers


def test_the_place_of_a_process_is_what_its_launcher_says(monkeypatch):
    assert rank_from_environment() is None
    for name, value in {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}.items():
        monkeypatch.setenv(name, value)
    assert rank_from_environment() is None  # one task of a job that does not train together
    monkeypatch.setenv("MASTER_ADDR", "node")
    assert rank_from_environment() == Rank(5, 8, 1)
    for name, value in {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    assert rank_from_environment() == Rank(2, 3, 2)
    monkeypatch.setenv("RANK", "two")
    with pytest.raises(UserError, match="RANK=two, WORLD_SIZE=3, LOCAL_RANK=2 in the environment are no numbers"):
        rank_from_environment()


SRUN = {
    **{"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "2", "SLURM_JOB_ID": "1234567"},
    **{"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "4", "SLURM_JOB_NODELIST": "login1"},
    "SLURM_STEP_NODELIST": "gpu-[007-008,012],big1",
}


def test_the_tasks_of_an_srun_meet_without_being_told_where(monkeypatch):
    # so that what is put there is gone afterwards
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in SRUN.items():
        monkeypatch.setenv(name, value)
    assert rank_from_environment() == Rank(3, 4, 1)
    assert os.environ["MASTER_ADDR"] == "gpu-007"
    port = int(os.environ["MASTER_PORT"])
    assert 10_000 <= port < 30_000
    del os.environ["MASTER_PORT"]
    monkeypatch.setenv("SLURM_STEP_ID", "3")  # another one on the same machines
    rank_from_environment()
    assert int(os.environ["MASTER_PORT"]) != port
    monkeypatch.setenv("MASTER_PORT", "29511")  # what is given stays
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    assert rank_from_environment() == Rank(3, 4, 1)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("10.0.0.1", "29511")


@pytest.mark.parametrize("changed", [{"SLURM_STEP_NUM_TASKS": "1"}, {"SLURM_STEP_ID": ""}, {"SLURM_JOB_ID": ""}])
def test_one_task_and_a_batch_script_are_alone(monkeypatch, changed):
    for name, value in {**SRUN, **changed}.items():
        monkeypatch.setenv(name, value)
    assert rank_from_environment() is None
    assert "MASTER_ADDR" not in os.environ


@pytest.mark.parametrize(
    ("machines", "first"),
    [
        ("node1", "node1"),
        ("a,b", "a"),
        ("n[3-5]", "n3"),
        ("n[03,05-07],m1", "n03"),
        ("r[1-2]n[04-05]-ib,x", "r1n04-ib"),
    ],
)
def test_the_first_machine_of_slurms_list(machines, first):
    assert first_machine(machines) == first


def test_a_gpu_that_is_required_is_missed_in_one_line(gpus):
    gpus(0)
    options = {"amp": False, "amp_dtype": None, "channels_last": None, "require_gpu": True}
    with pytest.raises(UserError, match=r"--require-gpu: there is no GPU to run on \(torch .*\), or drop it"):
        choose_machine("cuda", "env://", **options)
    with pytest.raises(UserError, match="--device cpu was given"):
        choose_machine("cpu", "env://", **options)
    gpus(1)
    assert choose_machine("cuda", "env://", **options).device.type == "cuda"


@pytest.fixture
def claims_amx(monkeypatch):
    monkeypatch.setattr(machine, "_claims_amx", lambda: True)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)


def test_where_a_product_ends_the_process_amx_is_left_alone(claims_amx, monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *_: os.kill(os.getpid(), signal.SIGILL))
    assert machine.avoid_broken_amx()
    assert os.environ.pop("ONEDNN_MAX_CPU_ISA") == "AVX512_CORE_FP16"


def test_where_it_works_nothing_is_changed(claims_amx, monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *_: None)
    assert not machine.avoid_broken_amx()
    assert "ONEDNN_MAX_CPU_ISA" not in os.environ


def test_a_choice_of_the_user_stands(claims_amx, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("nothing is left to find out"))
    assert not machine.avoid_broken_amx()
