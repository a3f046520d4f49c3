"""Work shared by one process for each GPU or, without one, each core. None of them outlives this one."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.queues import SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_work: Callable  # of a process, on one item


def devices(processes: int | None = None, cpu: bool = False) -> list[str]:
    """For each process the GPU it is to see, or "" for the CPU.

    Args:
        processes: how many; None: one for each GPU, or each core.
        cpu: leave GPUs alone.
    """
    import torch

    gpus = 0 if cpu else torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")[:gpus] or [""]
    return [names[number % len(names)] for number in range(processes or gpus or len(os.sched_getaffinity(0)))]


def shared(
    items: list[Item], seen: list[str], worker: Callable[[str], Callable[[Item], Result]]
) -> Iterator[tuple[Item, Result]]:
    """(item, result) as processes finish them. Close it (`contextlib.closing`) to end them in the midst of work.

    They are forks, which share what has been loaded and imported. Each uses one thread. Ctrl-C is left to this process;
    when it ends, in whatever way, they end at once.

    Args:
        items: to be worked on.
        seen: one entry for each process: the GPU it sees, or "".
        worker: called once in each process with its entry of `seen`; what it returns works on items.

    Raises:
        BrokenProcessPool: one was killed.
    """
    fork = multiprocessing.get_context("fork")
    waiting = fork.SimpleQueue()
    for device in seen:
        waiting.put(device)
    lifeline = os.pipe()  # nothing is ever written: its reader wakes when its only writer, this process, has ended
    pool = ProcessPoolExecutor(min(len(seen), len(items)), fork, _begin, (waiting, lifeline, worker))
    try:
        running = {pool.submit(_run, item): item for item in items}
        for done in as_completed(running):
            yield running.pop(done), done.result()
        pool.shutdown()
    finally:
        os.close(lifeline[1])
        pool.shutdown(cancel_futures=True)
        os.close(lifeline[0])


def _begin(waiting: SimpleQueue, lifeline: tuple[int, int], worker: Callable[[str], Callable]) -> None:
    import torch

    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.close(lifeline[1])
    threading.Thread(target=_end_with, args=(lifeline[0],), daemon=True).start()
    torch.set_num_threads(1)
    device = waiting.get()
    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    _work = worker(device)


def _end_with(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(1)


def _run(item: object) -> object:
    return _work(item)
