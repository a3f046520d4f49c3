"""How much of a teacher is lost in a store, and what other sizes of it would lose."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_reference.soft_labels.codec import TAILS, decode, encode

REPORTED = (1.0, 2.0, 3.0, 64.0)  # the paper's temperatures
_CANDIDATES = (5, 10, 20, 50, 100, 200, 500)


def error_rows(classes: int, top_k: int | None) -> dict[str, tuple[int | None, str]]:
    """The rows of ``error_sums``, what is stored and then what other k would give: name to k and tail.

    Of the tails those that are distributions over the classes, which bucket is not.
    """
    kept = {} if top_k is None else {"stored": top_k}
    kept |= {f"top-{k}": k for k in _CANDIDATES if k < classes and k != top_k}
    rows: dict[str, tuple[int | None, str]] = {} if top_k is not None else {"stored": (None, TAILS[0])}
    return rows | {f"{name} {tail}": (k, tail) for name, k in kept.items() for tail in TAILS[:2]}


def error_sums(logits: Tensor, top_k: int | None) -> Tensor:
    """How far a teacher rebuilt from a store would be from the teacher itself, summed over B images.

    In nats: KL(teacher || rebuilt), but for a dropped tail KL(rebuilt || teacher), because the other direction is
    infinite where something has no probability.

    Args:
        logits: (B, K), any floating type.
        top_k: as for ``encode``.

    Returns:
        (rows, temperatures) float64 on the CPU: ``error_rows`` by ``REPORTED``.
    """
    classes, sums = logits.shape[1], []
    logits = logits.double()
    teacher = [torch.log_softmax(logits / temperature, dim=1) for temperature in REPORTED]
    for k, tail in error_rows(classes, top_k).values():
        parts = encode(logits, k, REPORTED)
        for number, temperature in enumerate(REPORTED):
            rest = parts["rest"][:, number] if k else None
            rebuilt = decode(
                parts["logits"], parts.get("indices"), rest, classes=classes, temperature=temperature, tail=tail
            )
            rebuilt = torch.log_softmax(rebuilt.double() / temperature, dim=1)
            given, found = (rebuilt, teacher[number]) if tail == "drop" else (teacher[number], rebuilt)
            sums.append(F.kl_div(found, given, reduction="sum", log_target=True))
    return torch.stack(sums).view(-1, len(REPORTED)).cpu()


def error_table(rows: Mapping[str, Sequence[float]], images: int) -> str:
    """The table of mean errors over ``images`` views, one line per row of ``error_rows``."""
    head = [
        f"KL between the teacher and what a store knows of it, in nats, mean over {images} views",
        "(uniform: KL(teacher || stored); drop: KL(stored || teacher), the other being infinite)",
        f"{'':<16}" + "".join(f"{f'T = {temperature:g}':>12}" for temperature in REPORTED),
    ]
    return "\n".join(head + [f"{name:<16}" + "".join(f"{value:>12.3g}" for value in row) for name, row in rows.items()])
