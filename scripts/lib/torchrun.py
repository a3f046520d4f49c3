"""torchrun, ended by a mistake with the one line that the command itself says, and with its exit status.

    python scripts/lib/torchrun.py --nproc_per_node 8 vision_reference/train.py --data-path DATA ...

All of torchrun's options work as they do there. torchrun itself follows that line with about 35 of its own: which
process failed first, its own traceback, and that a traceback of the process can be had. SIGUSR1, by which schedulers
warn, would end torchrun alone and leave its processes behind; here they are told, and how they end is how this ends.
SIGTERM and Ctrl-C go to the processes, too; torchrun gives them 30 seconds.
"""

import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

_WARNED = 128 + signal.SIGUSR1


def main(argv: list[str]) -> None:
    """Run torchrun; exit with the status of the process that failed first (128 and its number for a signal)."""
    warned = False

    def pass_on(*_: object) -> None:
        nonlocal warned
        warned = True
        processes = _children()
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGUSR1)
        if not processes:  # nothing has begun
            print("torchrun: stopped by SIGUSR1 before the processes were started", file=sys.stderr)
            sys.exit(_WARNED)

    signal.signal(signal.SIGUSR1, pass_on)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # lost connections are told once, without addresses in memory
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    for name in ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api"):  # the latter has its own
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        run.run(run.parse_args(argv))
    except SignalException as stop:  # the processes were told, and have ended
        sys.exit(128 + stop.sigval)
    except RendezvousError:
        if warned:  # the machine where they meet was warned, too, and was faster
            sys.exit(_WARNED)
        print(
            "torchrun: error: the machine where the processes meet has ended or cannot be reached any more; start the "
            "same commands again to go on",
            file=sys.stderr,
        )
        sys.exit(1)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        if code < 0 or code == 1:  # killed, or a fault of the program's own: which process it was is worth telling
            print(error, file=sys.stderr)
        sys.exit(code if code >= 0 else 128 - code)


def _children() -> list[int]:
    """Processes that this one has started; torchrun keeps no list that others may see."""
    found = []
    for thread in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # a thread that has ended
            found += [int(process) for process in thread.read_text().split()]
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
