"""Where a run computes, how precisely, and in which memory layout."""

import argparse
import ctypes
import faulthandler
import os
import platform
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from vision_reference import distributed
from vision_reference.errors import UserError


@dataclass(frozen=True)
class Machine:
    """Where and how a run computes; the same for student and teacher."""

    rank: distributed.Rank
    device: torch.device
    memory_format: torch.memory_format
    amp_dtype: torch.dtype
    autocast: Callable[[], AbstractContextManager]


def choose_machine(args: argparse.Namespace) -> Machine:
    """Device, precision and memory layout from the flags and from what is there; joins the other processes.

    Raises:
        UserError: a precision that this device does not have.
    """
    device = torch.device("cuda" if args.device == "cuda" and torch.cuda.is_available() else "cpu")
    broken_amx = device.type == "cpu" and args.amp and avoid_broken_amx()
    rank = distributed.start(device, args.dist_url)
    if device.type == "cuda":
        device = torch.device("cuda", rank.local_rank)
    if device.type == "cpu":
        keep_freed_memory()
    if broken_amx:
        rank.say("note: this machine claims AMX but ends programs that use it: --amp does without")
    if args.device != device.type:
        rank.say("note: no GPU found, running on the CPU")
    has_bf16 = device.type == "cpu" or torch.cuda.is_bf16_supported()
    if args.amp_dtype == "bf16" and not has_bf16:
        raise UserError("this GPU has no bf16; use --amp-dtype fp16")
    amp_dtype = torch.bfloat16 if args.amp_dtype == "bf16" or (args.amp_dtype is None and has_bf16) else torch.float16
    if args.amp and device.type == "cpu" and amp_dtype == torch.bfloat16 and not multiplies_bf16_fast():
        rank.say("note: this CPU has no fast bf16 (AMX): --amp saves memory here but costs time")
    channels_last = device.type == "cpu" or args.amp if args.channels_last is None else args.channels_last
    return Machine(
        rank=rank,
        device=device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
        amp_dtype=amp_dtype,
        autocast=partial(torch.autocast, device.type, dtype=amp_dtype, enabled=args.amp),
    )


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
