"""Keeps state of a task across a restart.

Stock fairseq saves a task's state with every checkpoint but never gives it back to a resumed training run. What it does
give back, on every worker, is the position of the data iterator: so the state travels with that.
"""

from __future__ import annotations

from typing import Any, Protocol

from fairseq.data.iterators import EpochBatchIterating


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def carrying(epoch_iterator: EpochBatchIterating, name: str, passenger: Stateful) -> EpochBatchIterating:
    """The same iterator; its own state now holds the passenger's, under `name`, both when saved and when restored.

    Not restored by `--reset-dataloader`, and left as it is by a checkpoint that has no such entry.
    """
    if "state_dict" in vars(epoch_iterator):
        # fairseq hands out one iterator for all epochs with --sampling-method RoundRobin
        return epoch_iterator
    stock_state_dict, stock_load_state_dict = epoch_iterator.state_dict, epoch_iterator.load_state_dict

    def state_dict() -> dict[str, Any]:
        return {**stock_state_dict(), name: passenger.state_dict()}

    def load_state_dict(state: dict[str, Any]) -> None:
        stock_load_state_dict(state)
        if name in state:
            passenger.load_state_dict(state[name])

    epoch_iterator.state_dict, epoch_iterator.load_state_dict = state_dict, load_state_dict
    return epoch_iterator
