"""What a student learns from labels: cross entropy, smoothed or with its largest logit held down."""

import torch
import torch.nn.functional as F
from torch import Tensor

UNLABELLED = -1  # the class number of an image without a label, as `images.folders` has it


def labelled_loss(
    logits: Tensor, targets: Tensor, label_smoothing: float, max_suppression: float = 0.0
) -> tuple[Tensor, Tensor]:
    """``label_loss`` of the images that have a label, and their share of the batch.

    Args:
        logits: (B, K), any floating type.
        targets: (B,) class numbers, ``UNLABELLED`` for an image without a label.
        label_smoothing, max_suppression: see ``label_loss``.

    Returns:
        Scalars: the mean over the labelled images, 0 where there is none; and the share, from 0 to 1.
    """
    logits = logits.to(loss_type(logits))
    labelled = targets != UNLABELLED
    loss = F.cross_entropy(logits, targets, ignore_index=UNLABELLED, label_smoothing=label_smoothing, reduction="sum")
    if max_suppression:
        loss = loss + max_suppression * ((logits.amax(dim=1) - logits.mean(dim=1)) * labelled).sum()
    return loss / labelled.sum().clamp(min=1), labelled.to(loss.dtype).mean()


def label_loss(logits: Tensor, targets: Tensor, label_smoothing: float, max_suppression: float = 0.0) -> Tensor:
    """Cross entropy with label smoothing, or with the largest logit held down instead of the true one.

    Label smoothing replaces the one-hot target by ``(1 - alpha) * y + alpha / K``, which is the same as adding
    ``alpha * (z_true - mean(z))`` to the plain cross entropy. MaxSup (Zhou et al. 2025, arXiv 2502.15798, section 3)
    adds ``alpha * (max(z) - mean(z))``: where the network is right the two are equal, where it is wrong smoothing
    pushes the true logit down further while MaxSup pushes down the wrong one that leads.

    Args:
        logits: (B, K), any floating type.
        targets: (B,) class numbers, or (B, K) class probabilities (mixed images).
        label_smoothing: alpha of label smoothing, from 0 to 1.
        max_suppression: alpha of MaxSup, from 0 to 1.

    Returns:
        Scalar mean over the batch, float32 (float64 for float64 input).
    """
    logits = logits.to(loss_type(logits))
    loss = F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    if max_suppression:
        loss = loss + max_suppression * (logits.amax(dim=1) - logits.mean(dim=1)).mean()
    return loss


def loss_type(logits: Tensor) -> torch.dtype:
    """Type in which a loss of ``logits`` is returned: float64 for float64, else float32."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32
