"""How a study's numbers are written: rounded to what their interval supports, with a true minus sign."""

import json
import math
from collections.abc import Iterable
from typing import Any

from scripts.studies.statistics import Finding, Interval

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"


def number(value: float, decimals: int) -> str:
    """``value`` rounded; a minus sign as long as the plus sign, and none before zero."""
    text = f"{abs(value):.{decimals}f}"
    return (MINUS if value < 0 and float(text) else "") + text


def signed(value: float, decimals: int) -> str:
    """A difference: always with its sign, but for zero."""
    text = number(value, decimals)
    return text if value < 0 or not float(text) else f"+{text}"


def decimals_for(half_widths: Iterable[float], otherwise: int = 1) -> int:
    """How many decimals numbers with such half-widths deserve: the first digit of the median half-width counts, and one
    more where that digit is 1 or 2; at least one decimal, at most three.

    Without any finite half-width (one seed) it is ``otherwise``.
    """
    known = sorted(half for half in half_widths if math.isfinite(half) and half > 0)
    if not known:
        return otherwise
    median = known[len(known) // 2]
    place = math.floor(math.log10(median))
    return min(max(-place + (median / 10**place < 3), 1), 3)


def brackets(interval: Interval, decimals: int | None = None) -> str:
    """``[low, high]``, or a dash where there is none."""
    if not interval.is_bounded:
        return DASH
    decimals = decimals_for([interval.half_width]) if decimals is None else decimals
    return f"[{number(interval.low, decimals)}, {number(interval.high, decimals)}]"


def difference(interval: Interval, decimals: int | None = None) -> str:
    """``+1.2 [0.4, 2.0]``, or the bare difference where there is no interval."""
    decimals = decimals_for([interval.half_width]) if decimals is None else decimals
    text = signed(interval.mean, decimals)
    return f"{text} {brackets(interval, decimals)}" if interval.is_bounded else text


def level(interval: Interval, decimals: int | None = None) -> str:
    """``61.5 ± 0.4``, or the bare number where there is no interval."""
    decimals = decimals_for([interval.half_width]) if decimals is None else decimals
    text = number(interval.mean, decimals)
    return f"{text} ± {number(interval.half_width, decimals)}" if interval.is_bounded else text


def finding_cells(found: Finding, noise: Interval | None, *, p: float) -> list[str]:
    """The five cells of a difference: mean, interval over seeds, p, n, the test set's own noise."""
    decimals = decimals_for([found.interval.half_width])
    return [
        signed(found.interval.mean, decimals),
        brackets(found.interval, decimals),
        p_value(p),
        str(found.interval.n),
        brackets(noise, decimals) if noise else DASH,
    ]


def p_value(p: float) -> str:
    """Two significant digits, from 0.1 on three: 0.031, and 0.125, the smallest that three seeds can give."""
    return f"{p:.{3 if p >= 0.1 else 2}g}" if p >= 1e-4 else "< 0.0001"


def capital(text: str) -> str:
    """The beginning of a sentence."""
    return text[:1].upper() + text[1:]


def setting(value: Any) -> str:
    """A setting's value: text as it is, anything else as JSON writes it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def listed(names: Iterable[str], last: str = "and") -> str:
    """``a, b and c``."""
    *most, final = list(names)
    return f"{', '.join(most)} {last} {final}" if most else final


def counted(count: int, one: str, many: str | None = None) -> str:
    """``1 seed``, ``5 seeds``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """``12 s``, ``9.5 min``, ``14.2 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 100 * 60 else f"{seconds / 3600:,.1f} h"


def size(count: float) -> str:
    """Bytes in decimal units: ``1.2 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
