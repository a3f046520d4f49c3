"""What is kept of a teacher's logits, how they are rebuilt from it, and how much is lost on the way.

Two forms: all classes, or the k largest logits with the log-sum-exp of the others at some temperatures, so that the
probability of these (the tail) is known.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# The tail's probability: spread evenly; left out, the others renormalized (Tan et al. 2019); that of one more class.
TAILS = ("uniform", "drop", "bucket")
REPORTED = (1.0, 2.0, 3.0, 64.0)  # the paper's temperatures
_CANDIDATES = (5, 10, 20, 50, 100, 200, 500)
_LOWEST_HALF = -65504.0
NOTHING = -1e30  # logit of what has no probability; finite, so that 0 times it is 0


def encode(logits: Tensor, top_k: int | None, temperatures: Sequence[float]) -> dict[str, Tensor]:
    """What is stored of ``logits`` (B, K): the dict of ``logits`` and, with ``top_k``, ``indices`` and ``rest``.

    The largest logit is subtracted from all of an image. That changes no probability, and float16 then has its finest
    steps where probabilities are large. The log-sum-exp is that of the classes left out: together with the k logits it
    gives the one over all classes, while the difference of two such sums would have lost a small tail to rounding.

    Args:
        logits: any floating type.
        top_k: how many to keep; None: all.
        temperatures: those that the log-sum-exp is kept for; unused without ``top_k``.

    Returns:
        ``logits`` (B, K or k) float16, largest first with ``top_k``; ``indices`` (B, k) int64; ``rest`` (B, number of
        temperatures) float32: log of the sum of exp(logit / T) over the classes beyond the k.
    """
    shifted = logits.double() - logits.double().amax(dim=1, keepdim=True)
    shifted.clamp_(min=_LOWEST_HALF)
    if top_k is None:
        return {"logits": shifted.half()}
    ordered, order = shifted.sort(dim=1, descending=True, stable=True)
    beyond = ordered[:, top_k:]
    rest = torch.stack([torch.logsumexp(beyond / temperature, dim=1) for temperature in temperatures], dim=1)
    return {"logits": ordered[:, :top_k].half(), "indices": order[:, :top_k], "rest": rest.float()}


def decode(
    logits: Tensor, indices: Tensor | None, rest: Tensor | None, *, classes: int, temperature: float, tail: str
) -> Tensor:
    """Logits z (B, K) such that softmax(z / T) is what the store knows of the teacher at temperature T.

    Args:
        logits, indices: as ``encode`` returns them; ``indices`` is None where all classes are stored.
        rest: (B,) at this temperature.
        classes: K.
        temperature: T.
        tail: one of ``TAILS``; makes a difference only where not all classes are stored.

    Returns:
        ``logits`` itself for all classes; else float64, ``NOTHING`` where there is no probability. With ``bucket``
        (B, K + 1): all classes beyond the k together are the last one, see ``losses.kd.kd_divergence``.
    """
    if indices is None:
        return logits
    assert rest is not None, "where there are indices there is what they leave out"
    logits = logits.double()
    filling = torch.full_like(logits[:, :1], NOTHING)
    if tail == "uniform":
        filling = temperature * (rest.double().unsqueeze(1) - math.log(classes - indices.shape[1]))
    decoded = filling.expand(-1, classes).scatter(1, indices, logits)
    return torch.cat([decoded, temperature * rest.double().unsqueeze(1)], dim=1) if tail == "bucket" else decoded


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
    teacher = [torch.log_softmax(logits.double() / temperature, dim=1) for temperature in REPORTED]
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
