"""Gives a stock task that only knows argparse the dataclass that fairseq-hydra-train needs.

The options are read off the stock parser, so that their names, defaults and help texts stay stock fairseq's.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass
from enum import Enum
from typing import Any, Optional  # omegaconf 2.0 cannot read `str | None`

from fairseq.data.indexed_dataset import get_available_dataset_impl
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask
from fairseq.utils import FileContentsAction
from omegaconf import II


def _actions(add_args: Callable[[argparse.ArgumentParser], None]) -> list[argparse.Action]:
    parser = argparse.ArgumentParser(add_help=False)
    add_args(parser)
    return parser._actions


def _type_of(action: argparse.Action) -> Any:
    if isinstance(action.default, bool):
        return bool
    if action.choices is not None:
        return Optional[ChoiceEnum(list(action.choices))]  # noqa: UP045
    # all else stays text until `as_namespace`: lists and dicts are written as on the command line
    return Optional[action.type if action.type in (int, float) else str]  # noqa: UP045


def options_dataclass(name: str, add_args: Callable[[argparse.ArgumentParser], None]) -> type[FairseqDataclass]:
    """A config dataclass with one field for every argument that `add_args` adds to a parser."""
    fields = []
    for action in _actions(add_args):
        metadata = {"help": action.help}
        short = [option for option in action.option_strings if not option.startswith("--")]
        if short:
            metadata["argparse_alias"] = short[0]
        fields.append((action.dest, _type_of(action), field(default=action.default, metadata=metadata)))
    return make_dataclass(name, fields, bases=(FairseqDataclass,))


# classes made while the program runs are beyond a type checker
_StockOptions: Any = options_dataclass("_StockOptions", TranslationMultiSimpleEpochTask.add_args)

_DatasetImpl: Any = ChoiceEnum(get_available_dataset_impl())


@dataclass
class MultilingualTranslationOptions(_StockOptions):
    """Options of stock `translation_multi_simple_epoch`, and those of other groups that it reads."""

    seed: int = II("common.seed")
    dataset_impl: Optional[_DatasetImpl] = II("dataset.dataset_impl")  # noqa: RUF009, UP045
    train_subset: str = II("dataset.train_subset")


def as_namespace(cfg: Any) -> argparse.Namespace:
    """The values of a `MultilingualTranslationOptions` config as the stock task's own parser would have left them."""
    namespace = argparse.Namespace(seed=cfg.seed, dataset_impl=cfg.dataset_impl, train_subset=cfg.train_subset)
    for action in _actions(TranslationMultiSimpleEpochTask.add_args):
        value = getattr(cfg, action.dest)
        if isinstance(value, Enum):
            value = value.value
        if isinstance(value, str) and isinstance(action, FileContentsAction):
            action(None, namespace, value)
            continue
        if isinstance(value, str) and action.type is not None:
            convert: Any = action.type
            value = convert(value)
        setattr(namespace, action.dest, value)
    return namespace
