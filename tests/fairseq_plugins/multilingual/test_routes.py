"""Every way of loading multilingual data tells, for each sentence of a batch, which language pair it belongs to."""

import pytest

LOADERS = {
    "concatenated": [],
    "temperature": ["--sampling-method", "temperature", "--sampling-temperature", 5],
    "uniform": ["--sampling-method", "uniform"],
    "round robin": ["--sampling-method", "RoundRobin"],
    "virtual epochs": ["--sampling-method", "temperature", "--virtual-epoch-size", 50, "--virtual-data-size", 100],
    "separate collaters": ["--lang-tok-replacing-bos-eos"],
    "shared sides": ["--enable-reservsed-directions-shared-datasets"],
}


def batches(task, training):
    dataset = task.dataset("train" if training else "valid")
    return task.get_batch_iterator(dataset, max_tokens=200, seed=1, epoch=1).next_epoch_itr(shuffle=True)


def mixed_pairs(task, training=True):
    """Number of language pairs in each batch, after checking every sentence's words against its pair."""
    dictionary, counts = task.target_dictionary, []
    for sample in batches(task, training):
        routes = task.data_manager.sentences_by_route(sample["id"])
        assert sorted(row for rows in routes.values() for row in rows) == list(range(len(sample["id"])))
        for route, rows in routes.items():
            assert rows == sorted(rows)
            source_lang, target_lang = route.pair.split("-")
            for row in rows:
                for side, lang in (("target", target_lang), ("src_tokens", source_lang)):
                    tokens = sample["target"][row] if side == "target" else sample["net_input"][side][row]
                    words = [dictionary[token] for token in tokens if token > 3]
                    assert {word[0] for word in words if not word.startswith("__")} == {lang[0]}
        counts.append(len(routes))
    return counts


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
def test_pair_of_each_sentence_is_known_however_batches_are_sampled(toy, setup, loader):
    task, _, _ = setup([*toy.multilingual, *toy.tiny, *toy.training, *toy.task, *loader])
    assert max(mixed_pairs(task)) > 1


def test_pair_of_each_sentence_is_known_without_language_tokens_and_in_validation(toy, setup):
    argv = [toy.data, "--lang-pairs", "en-de,de-en,ru-en", "--langs", "de,en,ru"]
    task, _, _ = setup([*argv, *toy.tiny, *toy.training, *toy.task])
    task.load_dataset("valid", epoch=1)
    assert max(mixed_pairs(task)) == max(mixed_pairs(task, training=False)) == 3


def test_pair_of_each_sentence_is_known_with_extra_and_sharded_data(toy, setup):
    extra = ["--extra-data", f"{{'mined': '{toy.data}'}}", "--extra-lang-pairs", "{'mined': 'en-fr'}"]
    argv = [f"{toy.data}:{toy.data}", *toy.multilingual[1:], "--langtoks", "{'mined': (None, 'tgt.mined')}"]
    argv += ["--langtoks-specs", "main,mined", *extra]
    task, _, _ = setup([*argv, *toy.tiny, *toy.training, *toy.task])
    assert max(mixed_pairs(task)) == 4
    tokens = {route.tokens.source_prefix for route in task.data_manager.routes if route.pair == "en-fr"}
    assert None in tokens
    assert len(tokens) == 2
