"""How far a long work has come."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
_SECONDS_BETWEEN_LINES = 10


def progress(
    steps: Iterable[T], title: str, *, total: int | None = None, unit: str = "batch", scale: int = 1
) -> Iterable[T]:
    """``steps`` with a bar on a terminal; elsewhere with a line every ten seconds and a last one. On stderr.

    What takes less than ten seconds leaves no line.

    Args:
        total: number of steps, where ``len`` does not tell it.
        unit, scale: what is counted, and how many of it a step is, such as images.
    """
    if total is None:
        assert isinstance(steps, Sized), "give total"
        total = len(steps)
    if sys.stderr.isatty():
        return tqdm(steps, title, total, unit=unit, unit_scale=scale if scale > 1 else False, leave=False)
    return _with_lines(steps, title, total, unit, scale)


def _with_lines(steps: Iterable[T], title: str, total: int, unit: str, scale: int) -> Iterator[T]:
    units = unit + ("es" if unit.endswith("ch") else "s")
    begin = last = time.monotonic()
    for number, step in enumerate(steps, 1):
        yield step
        now = time.monotonic()
        if now - last > _SECONDS_BETWEEN_LINES or (number == total and last > begin):  # short work needs no line
            last, rate = now, number / max(now - begin, 1e-9)
            left = int((total - number) / rate)
            print(
                f"{title}: {100 * number // total} %, {rate * scale:,.0f} {units}/s, "
                f"ETA {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}",
                file=sys.stderr,
                flush=True,
            )
