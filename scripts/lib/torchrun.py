"""torchrun, ended by a mistake with the one line that the command itself says, and with its exit status.

    python scripts/lib/torchrun.py --nproc_per_node 8 vision_reference/train.py --data-path DATA ...

All of torchrun's options work as they do there. torchrun itself follows that line with about 35 of its own: which
process failed first, its own traceback, and that a traceback of the process can be had.
"""

import logging
import os
import sys


def main(argv: list[str]) -> None:
    """Run torchrun; exit with the status of the process that failed first (128 and its number for a signal)."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # lost connections are told once, without addresses in memory
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        run.run(run.parse_args(argv))
    except RendezvousError:
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


if __name__ == "__main__":
    main(sys.argv[1:])
