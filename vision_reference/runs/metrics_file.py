"""The records of a run's epochs, one line of JSON each; a run that was interrupted goes on in the same file."""

import json
from pathlib import Path

from vision_reference.files import write_atomically


class MetricsFile:
    """One JSON record per epoch, in ``metrics.jsonl``.

    Args:
        path: the file.
        start_epoch: first epoch that this run will write; records of earlier epochs stay, others (of the run that was
            interrupted between its record and its checkpoint, or damaged ones) go.
    """

    def __init__(self, path: Path, start_epoch: int) -> None:
        self.path = path
        kept = [line for line in _lines(path) if -1 < epoch_of(line) < start_epoch]
        write_atomically(path, "".join(line + "\n" for line in kept).encode())

    def append(self, record: dict) -> None:
        """Add the record of an epoch."""
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def last_epoch(path: Path) -> int:
    """The highest epoch that ``metrics.jsonl`` has a record of; -1 if it has none or is missing."""
    return max(map(epoch_of, _lines(path)), default=-1)


def epoch_of(line: str) -> int:
    """The epoch of one record; -1 where it is damaged, as a crash may leave the last."""
    try:
        epoch = json.loads(line)["epoch"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return -1
    return epoch if isinstance(epoch, int) else -1


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines() if path.is_file() else []
