"""Moving average of the weights, as torchvision's recipe keeps it."""

import argparse

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def adjusted_decay(decay: float, *, batch_size: int, world_size: int, steps: int, epochs: int) -> float:
    """Decay of one update of the average, adjusted so that runs of any batch size and length forget alike.

    ``1 - decay`` is scaled by ``world_size * batch_size * steps / epochs`` and limited to 1 (no memory at all), as
    torchvision's recipe does.

    Args:
        decay: from 0 to 1, as given by --model-ema-decay.
        batch_size: images per process and step.
        world_size: number of processes.
        steps: training steps from one update to the next.
        epochs: length of the run.
    """
    forgotten = (1 - decay) * world_size * batch_size * steps / max(1, epochs)
    return 1 - min(1.0, forgotten)


def build_ema(model: nn.Module, args: argparse.Namespace, world_size: int) -> AveragedModel:
    """Moving average of the parameters and buffers of ``model``, on its device.

    Buffers are averaged like weights, so that the batch-norm statistics fit them. The first update copies.
    """
    decay = adjusted_decay(
        args.model_ema_decay,
        batch_size=args.batch_size,
        world_size=world_size,
        steps=args.model_ema_steps,
        epochs=args.epochs,
    )
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
