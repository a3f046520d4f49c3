"""A trained model, with all that it needs to translate plain text, from its checkpoint and what lies beside that.

Nothing in the checkpoint is executed: the plugin's safe reader reads it, and its options are taken as literals.
"""

import argparse
import copy
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq_plugins.multilingual.kept_vocabulary import (
    SENTENCEPIECE_MODEL,
    dictionary_name,
    find_sentencepiece_model,
)
from scripts.nmt.lib.lang_pair import LangPair, parse_pairs
from scripts.nmt.lib.quiet_fairseq import import_fairseq, quiet
from scripts.nmt.lib.user_error import UserError

BILINGUAL = ("translation", "translation_kd")
MULTILINGUAL = ("translation_multi_simple_epoch", "multilingual_translation_kd")


@dataclass(frozen=True)
class Recorded:
    """What a checkpoint says of itself.

    Attributes:
        state: the whole file, tensors on the CPU, options as fairseq's own loader hands them on.
        options: of the task it was trained on.
        pairs: the language pairs it was trained on, in the order of training.
    """

    path: Path
    state: dict[str, Any] = field(repr=False)
    options: argparse.Namespace = field(repr=False)
    pairs: tuple[LangPair, ...]

    @property
    def is_multilingual(self) -> bool:
        return task_name(self.options) in MULTILINGUAL

    @property
    def data_bin(self) -> Path:
        """Where training found its data."""
        return Path(str(self.options.data).split(":")[0])

    def choose(self, source: str | None, target: str) -> LangPair:
        """The pair into `target`, from `source` where several lead there. Raises UserError with the pairs it knows."""
        found = [pair for pair in self.pairs if pair.target == target and source in (None, pair.source)]
        if len(found) == 1:
            return found[0]
        known = ", ".join(map(str, self.pairs))
        if not found:
            wanted = f"{source}-{target}" if source else f"a pair into {target}"
            raise UserError(f"{self.path} was not trained on {wanted}; it knows {known}")
        sources = " or ".join(pair.source for pair in found)
        raise UserError(f"{self.path} translates into {target} from {sources}: say which with --from")

    def require(self, pairs: list[LangPair]) -> None:
        """Raises UserError if the model was not trained on one of `pairs`."""
        for pair in pairs:
            if pair not in self.pairs:
                known = ", ".join(map(str, self.pairs))
                raise UserError(f"{self.path} was trained on {known}, not on {pair}; name only these pairs")


def as_dict(options: Any) -> dict[str, Any]:
    """Options of a task or a model by name, be they a Namespace or, with a dataclass, a config."""
    return dict(vars(options)) if isinstance(options, argparse.Namespace) else dict(options)


def task_name(options: argparse.Namespace) -> str | None:
    return getattr(options, "_name", None) or getattr(options, "task", None)


def read_recorded(path: Path) -> Recorded:
    """Raises UserError if there is no checkpoint of a translation task at `path`, or one that is unsafe or damaged."""
    if not path.is_file():
        instead = path / "checkpoint_best.pt"
        hint = f"; did you mean {instead}?" if instead.is_file() else "; give a .pt file written by fairseq-train"
        raise UserError(f"no checkpoint at {path}{hint}")
    import_fairseq()
    from fairseq import checkpoint_utils
    from fairseq.dataclass.utils import omegaconf_no_object_check
    from omegaconf import OmegaConf

    from fairseq_plugins.inference_only.checkpoints import read_checkpoint
    from fairseq_plugins.multilingual.stock_options import as_namespace

    state = read_checkpoint(str(path))
    state.pop("last_optimizer_state", None)  # by far the largest part, and of no use here
    try:
        with quiet():
            if state.get("cfg"):
                with omegaconf_no_object_check():
                    state["cfg"] = OmegaConf.create(state["cfg"])
            state = checkpoint_utils._upgrade_state_dict(state)
            options = state["cfg"].task
            name = task_name(options)
            if name not in BILINGUAL + MULTILINGUAL:
                raise UserError(f"{path} was trained on task {name}; allowed are {', '.join(BILINGUAL + MULTILINGUAL)}")
            if name in BILINGUAL:
                options = argparse.Namespace(**options) if OmegaConf.is_config(options) else options
                pairs = [LangPair(options.source_lang, options.target_lang)]
            else:
                options = copy.deepcopy(options) if isinstance(options, argparse.Namespace) else as_namespace(options)
                options._name = name
                listed = options.lang_pairs
                pairs = parse_pairs(listed if isinstance(listed, str) else ",".join(listed))
    except UserError:
        raise
    except Exception as problem:  # options of a wrong type make fairseq stumble in many ways
        raise UserError(
            f"{path}: its options cannot be read ({type(problem).__name__}: {_first_line(problem)})"
        ) from None
    return Recorded(path, state, options, tuple(pairs))


@dataclass(frozen=True)
class Vocabulary:
    """Files that a model needs beside its checkpoint: a folder with the dictionaries, and the sentencepiece model."""

    dictionaries: Path
    sentencepiece: Path


def find_vocabulary(recorded: Recorded, pair: LangPair) -> Vocabulary:
    """Beside the checkpoint, where training leaves it, or else in the data folder that the checkpoint names.

    Raises UserError if the files are in neither.
    """
    names = [dictionary_name(language) for language in pair]
    beside = (recorded.path.parent, recorded.path.resolve().parent)  # the checkpoint may be a symbolic link
    for folder in (*beside, recorded.data_bin):
        model = folder / SENTENCEPIECE_MODEL if folder in beside else find_sentencepiece_model(folder)
        if model and model.is_file() and all((folder / name).is_file() for name in names):
            return Vocabulary(folder, model)
    raise UserError(
        f"{', '.join([*names, SENTENCEPIECE_MODEL])} are neither beside {recorded.path} nor in {recorded.data_bin}, "
        "where it was trained: copy them beside the checkpoint"
    )


def build_task(recorded: Recorded, pair: LangPair, dictionaries: Path):
    """The stock fairseq task that translates `pair` as the model was trained to, dictionaries from that folder.

    Raises UserError if the dictionaries are missing, or are not those of the model.
    """
    from fairseq.tasks.translation import TranslationConfig, TranslationTask
    from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask

    from fairseq_plugins.teachers.vocabularies import load_dictionary

    for name in map(dictionary_name, pair):
        kept, given = recorded.path.parent / name, dictionaries / name
        if kept.is_file() and given.is_file() and kept.read_bytes() != given.read_bytes():
            raise UserError(
                f"{given} is not the dictionary that {recorded.path} was trained with ({kept}): the data was prepared "
                "anew; give the data of the training"
            )
    options = recorded.options
    if recorded.is_multilingual:
        options = copy.deepcopy(options)
        options.data = str(dictionaries)
        options.source_lang, options.target_lang = pair
        # fairseq evaluates these two, and takes what is no text for its own default
        options.left_pad_source, options.left_pad_target = str(options.left_pad_source), str(options.left_pad_target)
        for name in ("source_dict", "target_dict", "fixed_dictionary", "lang_dict"):
            named = getattr(options, name)
            if named and not Path(named).is_file():
                raise UserError(
                    f"{recorded.path} was trained with --{name.replace('_', '-')} {named}, which is missing"
                )
        try:
            with quiet():
                task = TranslationMultiSimpleEpochTask.setup_task(options)
        except (ValueError, AssertionError, FileNotFoundError) as problem:
            raise UserError(f"{recorded.path}: {_first_line(problem)}") from None
    else:
        source, target = (load_dictionary(str(dictionaries / dictionary_name(language))) for language in pair)
        limits = {name: getattr(options, name) for name in ("max_source_positions", "max_target_positions")}
        config = TranslationConfig(source_lang=pair.source, target_lang=pair.target, left_pad_source=True, **limits)
        task = TranslationTask(config, source, target)
    for side, dictionary in (("encoder", task.source_dictionary), ("decoder", task.target_dictionary)):
        weights = recorded.state["model"].get(f"{side}.embed_tokens.weight")
        if weights is not None and len(weights) != len(dictionary):
            raise UserError(
                f"the dictionaries in {dictionaries} are not those of {recorded.path}: they make {len(dictionary):,} "
                f"entries with the language tokens, the model has {len(weights):,}"
            )
    return task


def build_model(recorded: Recorded, task):
    """The network with its weights, on the CPU, in evaluation mode.

    Raises UserError for architectures that do more than a network has to, and for weights that do not fit.
    """
    from fairseq import checkpoint_utils
    from fairseq.models import ARCH_MODEL_NAME_REGISTRY
    from omegaconf import OmegaConf, open_dict

    from fairseq_plugins.teachers.expert import MODELS

    options = recorded.state["cfg"].model
    arch = getattr(options, "_name", None) or getattr(options, "arch", None)
    if ARCH_MODEL_NAME_REGISTRY.get(arch) not in MODELS:
        raise UserError(f"{recorded.path} has --arch {arch}; allowed are the architectures of {', '.join(MODELS)}")
    with open_dict(options) if OmegaConf.is_config(options) else nullcontext():
        # pretrained embeddings are in the checkpoint by now, and their files need not be here
        options.encoder_embed_path = options.decoder_embed_path = None
    try:
        with quiet():
            (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task(
                [str(recorded.path)], task=task, state=recorded.state
            )
    except Exception as problem:  # weights or options that fairseq cannot make a model of: it stumbles in many ways
        raise UserError(
            f"{recorded.path} cannot be rebuilt from its options and weights: {type(problem).__name__}: "
            f"{_first_line(problem)}"
        ) from None
    return model.eval()


def _first_line(problem: BaseException) -> str:
    return str(problem).splitlines()[0] if str(problem) else type(problem).__name__
