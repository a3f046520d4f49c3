"""Lets a batch of mixed language pairs tell, sentence by sentence, which data set each came from.

Stock `translation_multi_simple_epoch` mixes pairs in one batch and keeps no trace of them but the language tokens,
which need not be present. So each data set of the task is numbered (its route), and the number travels inside the
sentence's `id`, the one entry that every stock collater keeps and sorts along.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from fairseq.data import BaseWrapperDataset, FairseqDataset
from fairseq.data.multilingual.multilingual_data_manager import MultilingualDatasetManager
from torch import Tensor

from .language_tokens import LanguageTokens


def tokens_of_pair(
    manager: MultilingualDatasetManager, category: str, source_lang: str, target_lang: str
) -> LanguageTokens:
    """The language tokens that a multilingual task puts on the sentences of one pair in one category of its data."""
    source_spec, target_spec = manager.args.langtoks.get(category, (None, None))
    on_source = manager.get_encoder_langtok(source_lang, target_lang, source_spec)
    on_target = manager.get_decoder_langtok(target_lang, target_spec)
    if manager.args.lang_tok_replacing_bos_eos:
        return LanguageTokens(source_end=on_source, target_start=on_target)
    return LanguageTokens(source_prefix=on_source, target_prefix=on_target)


@dataclass(frozen=True)
class Route:
    """One data set of a multilingual task: its language pair ("en-de"), and the language tokens of its sentences."""

    pair: str
    tokens: LanguageTokens


class RoutedDataset(BaseWrapperDataset):
    """Numbers the sentences of one data set so that the batch tells where they came from."""

    def __init__(self, dataset: FairseqDataset, route: int, n_routes: int) -> None:
        super().__init__(dataset)
        self.route = route
        self.n_routes = n_routes

    def __getitem__(self, index):
        item = self.dataset[index]
        return {**item, "id": item["id"] * self.n_routes + self.route}

    def collater(self, samples, **kwargs):
        return self.dataset.collater(samples, **kwargs)


class RoutedDatasetManager(MultilingualDatasetManager):
    """The stock data manager, with every data set of the task numbered.

    Attributes:
        routes: one entry per data set, the extra categories of the training data included.
        sentences_of_pair: how many sentences the training data of each pair have, extra categories apart.
    """

    def __init__(self, args, lang_pairs, langs, dicts, sampling_method) -> None:
        super().__init__(args, lang_pairs, langs, dicts, sampling_method)
        categories = {"main": lang_pairs}
        for category, pairs in (args.extra_lang_pairs or {}).items():
            categories[category] = pairs.split(",")
        self.routes: list[Route] = []
        self._route_of_key: dict[str, int] = {}
        self.sentences_of_pair: dict[str, int] = {}
        self._target_sizes: dict[str, list[np.ndarray]] = {}
        for category, pairs in categories.items():
            for pair in pairs:
                # monolingual data is named by its only language
                source_lang, target_lang = pair.split("-") if "-" in pair else (pair, pair)
                self._route_of_key[self.get_dataset_key(category, source_lang, target_lang)] = len(self.routes)
                tokens = tokens_of_pair(self, category, source_lang, target_lang)
                self.routes.append(Route(f"{source_lang}-{target_lang}", tokens))

    def load_split_datasets(self, split, training, epoch=1, combine=False, shard_epoch=None, **kwargs):
        datasets, params = super().load_split_datasets(split, training, epoch, combine, shard_epoch, **kwargs)
        numbered = [(key, RoutedDataset(data, self._route_of_key[key], len(self.routes))) for key, data in datasets]
        # with language tokens in place of the end of sentence the pairs are wrapped once more
        pairs = [data if hasattr(data, "tgt_sizes") else getattr(data, "dataset", data) for _, data in datasets]
        self._target_sizes[split] = [pair.tgt_sizes for pair in pairs if hasattr(pair, "tgt_sizes")]
        if split == self.args.train_subset:
            self.sentences_of_pair = {
                f"{param['src']}-{param['tgt']}": len(data)
                for param, (_, data) in zip(params, datasets, strict=True)
                if param["data_category"] == "main"
            }
        return numbered, params

    def target_sizes(self, split: str) -> list[np.ndarray]:
        """Number of target tokens of each sentence, as binarized, for every data set of a split."""
        return self._target_sizes.get(split, [])

    def sentences_by_route(self, ids: Tensor) -> dict[Route, list[int]]:
        """Rows of a batch, ascending, for each route that has any.

        Args:
            ids: (B,) the batch's `id`.
        """
        rows: dict[Route, list[int]] = {}
        for row, sentence_id in enumerate(ids.tolist()):
            rows.setdefault(self.routes[sentence_id % len(self.routes)], []).append(row)
        return rows

    def indices(self, ids: Tensor) -> np.ndarray:
        """(B,) position of each sentence in the data set it came from, given the batch's (B,) `id`."""
        return ids.cpu().numpy() // len(self.routes)
