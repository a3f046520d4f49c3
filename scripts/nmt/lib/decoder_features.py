"""What a translation model makes of reference translations: decoder features and logits before each target token.

The decoder is given the reference up to a token (teacher forcing), as in training, and its features there are the input
of its output layer. Nothing is searched for, so this says nothing about translations that the model would write itself.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fairseq import utils
from fairseq.data import Dictionary, LanguagePairDataset, data_utils
from fairseq.tasks.translation import load_langpair_dataset
from torch import Tensor

import fairseq_plugins.inference_only  # noqa: F401  without it fairseq 0.12.2 cannot run a loaded model on torch 2
from fairseq_plugins.losses.soft_labels import ProjectedLogits, SoftLabels
from fairseq_plugins.multilingual.binarized import check_binarized
from fairseq_plugins.multilingual.language_tokens import Batch, LanguageTokens, Layout, batch_of
from fairseq_plugins.teachers.expert import Teacher, load_teacher
from fairseq_plugins.teachers.vocabularies import Vocabulary, load_dictionary
from scripts.nmt.lib.lang_pair import LangPair
from scripts.nmt.lib.progress import Progress
from scripts.nmt.lib.user_error import UserError
from vision_reference.machine import choose_device

LEAST = 5  # places that a mean over an entry's places is made of
_ROWS = 1024  # tokens whose logits over the whole vocabulary are worked on at a time


@dataclass(frozen=True)
class References:
    """One split of one language pair.

    Attributes:
        pair, folder, subset: which.
        dataset: its sentences.
        vocabulary: of the folder.
    """

    pair: LangPair
    folder: Path
    subset: str
    dataset: LanguagePairDataset
    vocabulary: Vocabulary

    @property
    def dictionary(self) -> Dictionary:
        return self.dataset.tgt_dict

    def counts(self) -> np.ndarray:
        """(V,) how often each entry of the target dictionary occurs, ends of sentences included."""
        counts = np.zeros(len(self.dictionary), dtype=np.int64)
        for sentence in range(len(self.dataset)):
            counts += np.bincount(self.dataset.tgt[sentence].numpy(), minlength=len(counts))
        return counts


def open_references(folder: Path, pair: LangPair, subset: str) -> References:
    """Raises UserError if the folder does not hold this split of this pair, or files of it are cut short."""
    paths = [folder / f"dict.{language}.txt" for language in pair]
    if missing := next((path for path in paths if not path.is_file()), None):
        raise UserError(f"there is no {missing}: --data-bin names a folder that prepare.py or fairseq-preprocess made")
    vocabulary = Vocabulary(pair.source, pair.target, *map(str, paths))
    check_binarized([str(folder)], subset, [str(pair)])
    try:
        dataset = load_langpair_dataset(
            data_path=str(folder),
            split=subset,
            src=pair.source,
            src_dict=load_dictionary(vocabulary.source_path),
            tgt=pair.target,
            tgt_dict=load_dictionary(vocabulary.target_path),
            combine=False,
            dataset_impl=None,
            upsample_primary=1,
            left_pad_source=True,
            left_pad_target=False,
            max_source_positions=sys.maxsize,
            max_target_positions=sys.maxsize,
        )
    except FileNotFoundError:
        raise UserError(f"{folder} holds no {subset} set of {pair}; name one that it has with --subset") from None
    return References(pair, folder, subset, dataset, vocabulary)


def load(checkpoint: str, references: References, device: str = "cuda") -> Teacher:
    """The model in `checkpoint`, an expert or a multilingual student, on `device` (the CPU where there is no GPU).

    Raises UserError if it does not fit the data.
    """
    teacher = load_teacher(checkpoint, references.vocabulary)
    teacher.to(choose_device(device, None), torch.float32)
    return teacher


def walk(
    teacher: Teacher, references: References, *, max_tokens: int, title: str
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields targets (R,), features (R, D) and logits (R, V), float32, of every target token, a few hundred at a time.

    Sentences that the model cannot read are left out.

    Raises:
        UserError: the model has no plain output layer, hence no features, or its outputs are not finite.
    """
    dataset = references.dataset
    with Progress(title, int(np.sum(dataset.tgt_sizes)), "token") as progress:
        for sentences in batches_of(dataset, np.arange(len(dataset)), max_tokens):
            _, batch, labels = ask(teacher, dataset, sentences)
            if not isinstance(labels.logits, ProjectedLogits):
                raise UserError(f"{title}: this model does not end in one plain linear layer, so it has no features")
            targets = batch.target[labels.sentences, labels.positions].cpu().numpy()
            for rows, logits in rows_of_logits(
                labels, f"{title}: the logits are not finite; the checkpoint is damaged"
            ):
                yield targets[rows], labels.logits[rows].features.float().cpu().numpy(), logits.float().cpu().numpy()
            progress.add(int(sum(dataset.tgt_sizes[sentence] for sentence in sentences)))


def batches_of(dataset: LanguagePairDataset, sentences: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """`sentences` (S,), those of similar length together; one above `max_tokens` is a batch of its own."""
    sentences = sentences[np.lexsort((dataset.src_sizes[sentences], dataset.tgt_sizes[sentences]))]
    sizes = np.maximum(dataset.src_sizes, dataset.tgt_sizes)[sentences].astype(np.int64)
    sizes = np.minimum(sizes, max_tokens)
    places = data_utils.batch_by_size(np.arange(len(sizes)), sizes.__getitem__, sizes, max_tokens)
    return [sentences[batch] for batch in places]


def ask(
    teacher: Teacher, dataset: LanguagePairDataset, sentences: Sequence[int]
) -> tuple[np.ndarray, Batch, SoftLabels]:
    """The given B sentences as the collater orders them: their numbers (B,), the batch, and what the teacher says."""
    sample = dataset.collater([dataset[int(sentence)] for sentence in sentences])
    device = next(teacher.members.parameters()).device
    batch = batch_of(utils.apply_to_sample(lambda tensor: tensor.to(device), sample))
    layout = Layout(dataset.tgt_dict.pad(), dataset.tgt_dict.eos())
    everyone = torch.arange(len(batch), device=device)
    return sample["id"].numpy(), batch, teacher.soft_labels(batch, everyone, layout, LanguageTokens())


def rows_of_logits(labels: SoftLabels, refusal: str) -> Iterator[tuple[slice, Tensor]]:
    """The logits (R, V) over the whole vocabulary, a few hundred rows at a time, with the rows that they are.

    Raises:
        UserError: they are not finite; `refusal` says so.
    """
    for begin in range(0, len(labels.sentences), _ROWS):
        rows = slice(begin, begin + _ROWS)
        part = labels.logits[rows]
        logits = part.dense() if isinstance(part, ProjectedLogits) else part
        if not logits.isfinite().all():
            raise UserError(refusal)
        yield rows, logits


def by_frequency(references: References, least: int = LEAST) -> np.ndarray:
    """Entries that occur at least `least` times in the references, the most frequent first; none of fairseq's special
    symbols."""
    counts = references.counts()
    counts[: references.dictionary.nspecial] = 0
    return np.argsort(-counts, kind="stable")[: int((counts >= least).sum())]


def frequent_tokens(references: References, count: int) -> np.ndarray:
    """The first `count` entries of `by_frequency`. Raises UserError where there are fewer."""
    found = by_frequency(references)[:count]
    if len(found) < count:
        raise UserError(
            f"{len(found)} target tokens occur at least {LEAST} times in {references.subset} of {references.pair}, not "
            f"{count}: ask for fewer with --classes, or take a larger --subset"
        )
    return found


def of_classes(
    teacher: Teacher, references: References, classes: np.ndarray, *, max_tokens: int, title: str
) -> tuple[np.ndarray, np.ndarray]:
    """Mean feature of each class (K, D), and the mean probability (K, K) that the model gives the classes.

    A class is an entry of the target dictionary; its images, so to speak, are the places where the reference has it.
    Probabilities are those of the whole vocabulary, of which the columns of the K classes are kept.

    Args:
        classes: (K,) entries of the target dictionary.
    """
    number = np.full(len(references.dictionary), -1)
    number[classes] = np.arange(len(classes))
    sums, probabilities, counts = 0.0, np.zeros((len(classes), len(classes))), np.zeros(len(classes))
    for targets, features, logits in walk(teacher, references, max_tokens=max_tokens, title=title):
        rows = np.flatnonzero(number[targets] >= 0)
        own = number[targets[rows]]
        one_hot = np.eye(len(classes))[own]
        lprobs = torch.log_softmax(torch.from_numpy(logits[rows]).double(), dim=1)
        sums = sums + one_hot.T @ features[rows].astype(np.float64)
        probabilities += one_hot.T @ lprobs[:, classes.tolist()].exp().numpy()
        counts += one_hot.sum(axis=0)
    if not counts.all():
        name = references.dictionary[int(classes[int(np.argmin(counts))])]
        raise UserError(f"{title}: token {name} occurs in sentences only that this model cannot read")
    return sums / counts[:, None], probabilities / counts[:, None]
