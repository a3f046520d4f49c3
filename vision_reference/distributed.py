"""What a run over several processes needs: who am I, sums over ranks, one voice on the screen."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn


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


def rank_from_environment() -> Rank | None:
    """The place that torchrun (or SLURM) gave this process, None where neither started it."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return Rank(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0)))
    if "SLURM_PROCID" in env and "SLURM_NTASKS" in env and "MASTER_ADDR" in env:
        return Rank(int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"]), int(env.get("SLURM_LOCALID", 0)))
    return None


def start(device: torch.device, dist_url: str) -> Rank:
    """Join the process group if this process belongs to one: nccl between GPUs, gloo between CPUs."""
    rank = rank_from_environment()
    if rank is None:
        return Rank()
    if device.type == "cuda":
        torch.cuda.set_device(rank.local_rank)
    dist.init_process_group(
        backend="nccl" if device.type == "cuda" else "gloo",
        init_method=dist_url,
        rank=rank.rank,
        world_size=rank.world_size,
    )
    return rank


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Element-wise sum of ``values`` (any shape, the same on all ranks); the input itself on one process."""
    if dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
    return values


def gather_objects(value: object) -> list:
    """``value`` of every rank, in rank order, on every rank."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_main(value: object) -> object:
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
