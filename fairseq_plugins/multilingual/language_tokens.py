"""Turns a batch with one model's language tokens into the same sentences as another model expects them.

A multilingual student reads and writes language tokens that a bilingual expert has never seen. So that both predict the
same target token from the same words, the student's tokens are taken out of source, decoder input and target, the
expert's own (if it has any) are put in, and the columns are shifted accordingly.

Example, `--encoder-langtok tgt --decoder-langtok`, student to bilingual expert:

    source          __de__ we agree </s>          ->  we agree </s>
    decoder input   </s> __de__ wir stimmen zu    ->  </s> wir stimmen zu
    target          __de__ wir stimmen zu </s>    ->  wir stimmen zu </s>
                    column j + 1                  <-  column j
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Symbols(Protocol):
    """What is asked of a fairseq dictionary here."""

    def pad(self) -> int: ...

    def eos(self) -> int: ...


@dataclass(frozen=True)
class LanguageTokens:
    """The language tokens that a model expects with one language pair; None where it expects none.

    Attributes:
        source_prefix: token before the source sentence.
        source_end: token in place of the end-of-sentence symbol of the source (`--lang-tok-replacing-bos-eos`).
        target_prefix: token before the target sentence, which the model also predicts.
        target_start: first decoder input in place of the end-of-sentence symbol (`--lang-tok-replacing-bos-eos`).
    """

    source_prefix: int | None = None
    source_end: int | None = None
    target_prefix: int | None = None
    target_start: int | None = None


@dataclass(frozen=True)
class Layout:
    """How a batch is padded: the symbols' indices, and on which side of the sentence the padding stands."""

    pad: int
    eos: int
    left_pad_source: bool = True
    left_pad_target: bool = False


@dataclass(frozen=True)
class Batch:
    """B sentences: source (B, S), decoder input (B, T) and target (B, T)."""

    source: Tensor
    decoder_input: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.target)

    def pick(self, sentences: Tensor) -> Batch:
        """Some of the sentences, given by row; the batch itself where that is all of them."""
        if len(sentences) == len(self):
            return self
        return Batch(self.source[sentences], self.decoder_input[sentences], self.target[sentences])


def batch_of(sample: dict[str, Any]) -> Batch:
    """Source, decoder input and target of a batch as fairseq collates it."""
    return Batch(sample["net_input"]["src_tokens"], sample["net_input"]["prev_output_tokens"], sample["target"])


def layout_of(dictionary: Symbols, options: Any) -> Layout:
    """How a task with these options (`left_pad_source`, `left_pad_target`) pads its batches."""
    return Layout(dictionary.pad(), dictionary.eos(), options.left_pad_source, options.left_pad_target)


def _index_of_token(tokens: Tensor, k: int, pad: int, left_pad: bool) -> Tensor:
    """(B, 1) column of the k-th token that is not padding; counted from the end for negative k."""
    if left_pad == (k < 0):
        return tokens.new_full((len(tokens), 1), k if k >= 0 else tokens.size(1) + k)
    count = tokens.ne(pad).sum(dim=1, keepdim=True)
    return tokens.size(1) - count + k if left_pad else count + k


def _replace(tokens: Tensor, k: int, token: int, pad: int, left_pad: bool) -> Tensor:
    return tokens.scatter(1, _index_of_token(tokens, k, pad, left_pad), token)


def _remove(tokens: Tensor, k: int, pad: int, left_pad: bool) -> Tensor:
    """(B, S) to (B, S - 1): without the k-th token of each row."""
    removed = _index_of_token(tokens, k, pad, left_pad)
    columns = torch.arange(tokens.size(1) - 1, device=tokens.device)
    return torch.where(columns < removed, tokens[:, :-1], tokens[:, 1:])


def _insert(tokens: Tensor, k: int, token: int, pad: int, left_pad: bool) -> Tensor:
    """(B, S) to (B, S + 1): with `token` as the k-th token of each row."""
    new = _index_of_token(tokens, k, pad, left_pad)
    columns = torch.arange(tokens.size(1) + 1, device=tokens.device)
    blank = tokens.new_full((len(tokens), 1), pad)
    moved = torch.where(columns < new, torch.cat([tokens, blank], dim=1), torch.cat([blank, tokens], dim=1))
    return moved.scatter(1, new, token)


def realign(batch: Batch, layout: Layout, present: LanguageTokens, wanted: LanguageTokens) -> tuple[Batch, Tensor, int]:
    """Takes the language tokens `present` in a batch out and puts the `wanted` ones in.

    Args:
        batch: all its sentences have the same language tokens.
        layout: padding of the batch, kept as it is.

    Returns:
        The new batch; a (B, T_new) mask of the target tokens that are words or end of sentence, neither padding nor
        language token; and the shift: column j of the new target holds what column j + shift of the old one held.
    """
    source_side: dict[str, Any] = {"pad": layout.pad, "left_pad": layout.left_pad_source}
    target_side: dict[str, Any] = {"pad": layout.pad, "left_pad": layout.left_pad_target}
    source, decoder_input, target = batch.source, batch.decoder_input, batch.target

    if present.source_prefix is not None:
        source = _remove(source, 0, **source_side)
    if wanted.source_prefix is not None:
        source = _insert(source, 0, wanted.source_prefix, **source_side)
    if present.source_end != wanted.source_end:
        end = layout.eos if wanted.source_end is None else wanted.source_end
        source = _replace(source, -1, end, **source_side)

    if present.target_prefix is not None:
        target = _remove(target, 0, **target_side)
        decoder_input = _remove(decoder_input, 1, **target_side)
    words = target.ne(layout.pad)
    if wanted.target_prefix is not None:
        target = _insert(target, 0, wanted.target_prefix, **target_side)
        decoder_input = _insert(decoder_input, 1, wanted.target_prefix, **target_side)
        first = _index_of_token(target, 0, **target_side)
        words = target.ne(layout.pad).scatter(1, first, False)
    if present.target_start != wanted.target_start:
        start = layout.eos if wanted.target_start is None else wanted.target_start
        decoder_input = _replace(decoder_input, 0, start, **target_side)

    shift = int(present.target_prefix is not None) - int(wanted.target_prefix is not None)
    return Batch(source, decoder_input, target), words, shift
