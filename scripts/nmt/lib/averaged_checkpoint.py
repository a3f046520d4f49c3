"""The mean of a training's last checkpoints, a little better than the last one at no cost in use.

Practitioners of fairseq average the last five or ten epochs' (Vaswani et al. 2017, section 6.1).
"""

import re
from pathlib import Path

from fairseq_plugins.files import atomic_file
from scripts.nmt.lib.quiet_fairseq import import_fairseq
from scripts.nmt.lib.user_error import UserError

_EPOCH = re.compile(r"checkpoint(\d+)\.pt")


def last_checkpoints(folder: Path, count: int) -> list[Path]:
    """The epoch checkpoints `checkpoint<N>.pt` with the `count` highest N, ascending.

    Raises UserError if there are fewer.
    """
    epochs = {int(found[1]): path for path in folder.glob("checkpoint*.pt") if (found := _EPOCH.fullmatch(path.name))}
    if len(epochs) < count:
        held = f"only {len(epochs)}" if epochs else "none"
        raise UserError(
            f"--average {count}: {folder} holds {held} of the checkpoint<epoch>.pt; train with "
            f"KEEP_CHECKPOINTS={count} (fairseq-train --keep-last-epochs {count} in place of --no-epoch-checkpoints)"
        )
    return [epochs[epoch] for epoch in sorted(epochs)[-count:]]


def average(paths: list[Path]) -> Path:
    """Write the mean of the checkpoints beside them, as `checkpoint_mean_<first>-<last>.pt`; returns its path.

    Raises UserError if they are not of one network, or the file cannot be written.
    """
    import_fairseq()
    import torch

    from fairseq_plugins.inference_only.checkpoints import read_checkpoint

    sums: dict[str, torch.Tensor] = {}
    for path in paths:
        state = read_checkpoint(str(path))
        weights = state["model"]
        if sums and {name: one.shape for name, one in weights.items()} != {
            name: one.shape for name, one in sums.items()
        }:
            raise UserError(f"{path} is of another network than {paths[0]}; average checkpoints of one training")
        for name, weight in weights.items():
            sums[name] = sums[name] + weight.double() if name in sums else weight.double()
    state.pop("last_optimizer_state", None)
    # the last one's whole numbers are kept: they count, and their mean is no count
    state["model"] = {
        name: (sums[name] / len(paths)).to(weight.dtype) if weight.is_floating_point() else weight
        for name, weight in state["model"].items()
    }
    first, last = (_EPOCH.fullmatch(path.name)[1] for path in (paths[0], paths[-1]))
    target = paths[-1].with_name(f"checkpoint_mean_{first}-{last}.pt")
    try:
        with atomic_file(target) as file:
            torch.save(state, file)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}") from None
    return target
