"""Where a run computes: device, precision, memory layout, and the processes that share the work."""

import argparse
import ctypes
import faulthandler
import os
import platform
import re
import resource
import sys
from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from vision_reference.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Rank:
    """This process among all processes of the run.

    Attributes:
        rank: number of this process, from 0; rank 0 writes files and prints.
        world_size: number of processes.
        local_rank: number of this process on its machine; picks its GPU.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print ``text`` once for the whole run."""
        if self.is_main:
            print(text, flush=True)


@dataclass(frozen=True)
class Machine:
    """Where and how a run computes; the same for student and teacher."""

    rank: Rank
    device: torch.device
    memory_format: torch.memory_format
    amp_dtype: torch.dtype
    autocast: Callable[[], AbstractContextManager]

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Machine":
        """What the flags ask for, see ``choose_machine``."""
        return choose_machine(
            args.device,
            args.dist_url,
            amp=args.amp,
            amp_dtype=args.amp_dtype,
            channels_last=args.channels_last,
            require_gpu=args.require_gpu,
        )


def choose_machine(
    asked: str,
    dist_url: str,
    *,
    amp: bool,
    amp_dtype: str | None,
    channels_last: bool | None,
    require_gpu: bool = False,
) -> Machine:
    """Device, precision and memory layout from what is asked for and what is there; joins the other processes.

    Args:
        asked, dist_url, amp, amp_dtype, channels_last, require_gpu: as the flags of these names (``asked``:
            ``--device``) have them.

    Raises:
        UserError: a device or a precision that is not there, more processes than GPUs.
    """
    place = rank_from_environment()
    device = choose_device(asked, place)
    if require_gpu and device.type == "cpu":
        why = "--device cpu was given" if asked == "cpu" else f"{_no_gpu()}; see nvidia-smi and the driver"
        raise UserError(f"--require-gpu: there is no GPU to run on ({why}), or drop it to run on the CPU")
    broken_amx = device.type == "cpu" and amp and avoid_broken_amx()
    rank = join(place, device, dist_url)
    if device.type == "cpu":
        keep_freed_memory()
    if broken_amx:
        rank.say("note: this machine claims AMX but ends programs that use it: --amp does without")
    if device.type != torch.device(asked).type:
        apple = "; --device mps takes Apple's GPU" if torch.backends.mps.is_available() else ""
        rank.say(f"note: no GPU found, running on the CPU{apple}")
    if device.type == "mps" and amp:
        raise UserError("--amp scales gradients in float64 numbers, which Apple's GPUs do not have; drop --amp")
    # Cards before Ampere would emulate bf16: torch counts that as support unless asked not to.
    has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if amp_dtype == "bf16" and not has_bf16:
        raise UserError("this GPU has no bf16; use --amp-dtype fp16")
    chosen = torch.bfloat16 if amp_dtype == "bf16" or (amp_dtype is None and has_bf16) else torch.float16
    if amp and device.type == "cpu" and chosen == torch.bfloat16 and not multiplies_bf16_fast():
        rank.say("note: this CPU has no fast bf16 (AMX): --amp saves memory here but costs time")
    if channels_last is None:
        channels_last = device.type == "cpu" or amp
    return Machine(
        rank=rank,
        device=device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
        amp_dtype=chosen,
        autocast=partial(torch.autocast, device.type, dtype=chosen, enabled=amp),
    )


def _no_gpu() -> str:
    built = "finds none" if torch.version.cuda or torch.version.hip else "is built for CPUs alone"
    return f"torch {torch.__version__} {built}"


def choose_device(asked: str, place: Rank | None) -> torch.device:
    """The device of this process: the CPU where there is no GPU, otherwise the GPU asked for or this process's own.

    Args:
        asked: cpu, cuda, cuda:N or mps.
        place: this process among others; each of them has its own GPU, whether it sees all of its machine (torchrun)
            or only its own (SLURM with one GPU bound to each task).

    Raises:
        UserError: there is no GPU of that number, or torchrun started more processes than there are GPUs.
    """
    device = torch.device(asked)
    if device.type == "mps":
        if not torch.backends.mps.is_available():
            return torch.device("cpu")
        if place is not None and place.world_size > 1:
            raise UserError(f"--device mps is one GPU, but {place.world_size} processes run; start one")
        return torch.device("mps", 0)
    if device.type == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    if device.index is not None:
        if place is not None and place.world_size > 1:
            raise UserError(f"--device {asked} is one GPU, but {place.world_size} processes run; give --device cuda")
        if device.index >= visible:
            raise UserError(f"--device {asked}: {visible} GPUs are visible, cuda:0 to cuda:{visible - 1}")
        return device
    if (started := _started_here()) > visible:
        raise UserError(f"{started} processes on a machine with {visible} visible GPUs; start at most {visible}")
    return torch.device("cuda", place.local_rank % visible if place else 0)


def memory_in_use(device: torch.device) -> dict[str, float]:
    """Gigabytes (1e9 bytes): ``host`` of this process, and ``gpu`` that torch holds of ``device`` where that is one."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        host = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    else:  # the most that there was; macOS counts it in bytes
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    used = {"host": host / 1e9}
    if device.type == "cuda":
        used["gpu"] = torch.cuda.memory_reserved(device) / 1e9
    elif device.type == "mps":
        used["gpu"] = torch.mps.driver_allocated_memory() / 1e9
    return used


def usable_workers(asked: int) -> int:
    """``asked`` loader processes, but no more than this process's share of the cores: beyond it they are in the way."""
    cores = len(os.sched_getaffinity(0)) // max(1, _started_here())
    return min(asked, max(1, cores))


def _started_here() -> int:
    """How many processes torchrun started on this machine, which share its cores and GPUs; 1 without torchrun.

    SLURM gives each task its own.
    """
    count = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(count) if count.isdigit() else 1


def move_network(network: nn.Module, device: torch.device, memory_format: torch.memory_format) -> None:
    """Move ``network`` to ``device``, its weights in ``memory_format``; in place."""
    network.to(device, memory_format=memory_format)  # type: ignore[call-overload]  # torch's stubs do not know it


def keep_freed_memory() -> None:
    """Have the C library keep freed blocks of any size for the next step; does nothing where it is not glibc.

    glibc maps big blocks anew each time and returns them at every free, so that on a CPU each step pays for the page
    faults of all its activations and gradients.
    """
    trim_threshold, most_maps = -1, -4  # numbers of mallopt(3)
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(most_maps, 0)
        mallopt(trim_threshold, 2**31 - 1)


def avoid_broken_amx() -> bool:
    """Have oneDNN do without AMX where the machine claims it and then ends whoever uses it; whether that is so.

    Some virtual machines announce AMX to their guests and raise SIGILL at its first use. A child process multiplies two
    bf16 matrices to find out, before this process multiplies any: oneDNN reads its variable at its first use only.
    """
    if not _claims_amx() or "ONEDNN_MAX_CPU_ISA" in os.environ:
        return False
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        faulthandler.disable()  # what may follow is expected
        torch.set_num_threads(1)
        torch.nn.functional.linear(*torch.ones(2, 64, 64, dtype=torch.bfloat16))
        os._exit(0)
    broken = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    if broken:
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_FP16"
    return broken


def _claims_amx() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "amx_bf16" in cpuinfo.read_text()


def multiplies_bf16_fast() -> bool:
    """Whether this CPU multiplies bf16 matrices faster than fp32 ones; unknown kinds get the benefit of the doubt.

    Intel's do with AMX, where it works. Those with AVX-512 bf16 alone took 1.8 times as long as in fp32 (measured with
    torch 2.5.1: scripts/bench/vision_step.py prints the factor).
    """
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not cpuinfo.is_file():
        return True
    amx = _claims_amx() and os.environ.get("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX").endswith("AMX")
    return amx or "AuthenticAMD" in cpuinfo.read_text()


def rank_from_environment() -> Rank | None:
    """The place that torchrun (or SLURM's srun) gave this process, None where neither started it.

    What srun leaves out, where the processes meet, is put into MASTER_ADDR and MASTER_PORT.

    Raises:
        UserError: the variables that tell it are not numbers.
    """
    env = os.environ
    if "RANK" not in env and env.get("SLURM_STEP_ID", "").isdecimal():
        _meet_under_slurm(env)
    for number, count, local in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    ):
        if number not in env or count not in env or (number != "RANK" and "MASTER_ADDR" not in env):
            continue
        try:
            return Rank(int(env[number]), int(env[count]), int(env.get(local, 0)))
        except ValueError:
            told = ", ".join(f"{name}={env[name]}" for name in (number, count, local) if name in env)
            raise UserError(f"{told} in the environment are no numbers; unset them, or start with torchrun") from None
    return None


def _meet_under_slurm(env: MutableMapping[str, str]) -> None:
    """Where the tasks of an srun meet: the step's first machine, at a port that follows from job and step."""
    machines = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or ""
    job = env.get("SLURM_JOB_ID", "")
    if env.get("SLURM_STEP_NUM_TASKS", "1") == "1" or not machines or not job.isdecimal():
        return
    env.setdefault("MASTER_ADDR", first_machine(machines))
    # Below what systems give to outgoing connections (from 32768 on); two steps of one machine differ.
    env.setdefault("MASTER_PORT", str(10_000 + (31 * int(job) + int(env["SLURM_STEP_ID"])) % 20_000))
    env["SLURM_NTASKS"] = env["SLURM_STEP_NUM_TASKS"]  # of this srun, which may have asked for fewer than the job has


def first_machine(machines: str) -> str:
    """The first of a list as SLURM writes it: ``node[03-05,07],big1`` is node03, node04, node05, node07, big1."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", machines)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0] if first else machines)


def join(place: Rank | None, device: torch.device, dist_url: str) -> Rank:
    """Join the process group if this process belongs to one: nccl between GPUs, gloo between CPUs."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if place is None:
        return Rank()
    dist.init_process_group(
        backend="nccl" if device.type == "cuda" else "gloo",
        init_method=dist_url,
        rank=place.rank,
        world_size=place.world_size,
    )
    return place


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Element-wise sum of ``values`` (any shape, the same on all ranks); the input itself on one process."""
    if dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
    return values


def gather_objects(value: T) -> list[T]:
    """``value`` of every rank, in rank order, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_main(value: T) -> T:
    """Rank 0's ``value`` on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def barrier() -> None:
    """Wait until all ranks are here."""
    if dist.is_initialized():
        dist.barrier()


def share_buffers(module: nn.Module) -> None:
    """Give every rank the buffers of rank 0.

    Each rank keeps running batch-norm statistics of its own share of the data, and rank 0's are what is saved; without
    this the ranks would evaluate slightly different models.
    """
    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)
