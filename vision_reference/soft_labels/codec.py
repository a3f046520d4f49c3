"""What is kept of a teacher's logits, and how they are rebuilt from it; how much is lost: ``analysis.stored_error``.

Two forms: all classes, or the k largest logits with the log-sum-exp of the others at some temperatures, so that the
probability of these (the tail) is known.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# The tail's probability: spread evenly; left out, the others renormalized (Tan et al. 2019); that of one more class.
TAILS = ("uniform", "drop", "bucket")
_LOWEST_HALF = -65504.0
NOTHING = -1e30  # logit of what has no probability; finite, so that 0 times it is 0


def encode(logits: Tensor, top_k: int | None, temperatures: Sequence[float]) -> dict[str, Tensor]:
    """What is stored of ``logits`` (B, K): the dict of ``logits`` and, with ``top_k``, ``indices`` and ``rest``.

    The largest logit is subtracted from all of an image. That changes no probability, and float16 then has its finest
    steps where probabilities are large. The log-sum-exp is that of the classes left out: together with the k logits it
    gives the one over all classes, while the difference of two such sums would have lost a small tail to rounding.

    Args:
        logits: worked out in their own precision, float32 at least.
        top_k: how many to keep; None: all.
        temperatures: those that the log-sum-exp is kept for; unused without ``top_k``.

    Returns:
        ``logits`` (B, K or k) float16, largest first with ``top_k``; ``indices`` (B, k) int64; ``rest`` (B, number of
        temperatures) float32: log of the sum of exp(logit / T) over the classes beyond the k, -inf if there are none.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    shifted = (logits - logits.amax(dim=1, keepdim=True)).clamp_(min=_LOWEST_HALF)
    if top_k is None:
        return {"logits": shifted.half()}
    largest, indices = shifted.topk(top_k, dim=1)
    beyond = shifted.scatter_(1, indices, -torch.inf)
    rest = torch.stack([torch.logsumexp(beyond / temperature, dim=1) for temperature in temperatures], dim=1)
    return {"logits": largest.half(), "indices": indices, "rest": rest.float()}


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
