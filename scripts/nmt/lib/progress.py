"""How far a long work has come: a bar on a terminal, a plain line now and then in a log."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Counts what is done of `total`; used as a context manager. Writes to stderr."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = self.skipped = 0
        self.bar = tqdm(total=total, desc=what, unit=unit, file=sys.stderr) if sys.stderr.isatty() else None
        self.started = self.said = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()

    def skip(self, count: int) -> None:
        """`count` were done by an earlier run, which tells nothing about the speed of this one."""
        self.skipped += count
        if self.bar is not None:
            self.bar.initial += count
            self.bar.update(count)

    def add(self, count: int) -> None:
        """`count` more are done."""
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
            return
        now = time.monotonic()
        if now - self.said > _SECONDS_BETWEEN_LINES and self.done:
            self.said = now
            left = (now - self.started) / self.done * (self.total - self.skipped - self.done)
            print(
                f"{self.what}: {self.skipped + self.done:,} of {self.total:,} {self.unit}s, about {left:,.0f} s to go",
                file=sys.stderr,
                flush=True,
            )
