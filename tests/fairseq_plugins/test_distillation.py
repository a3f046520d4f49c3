"""A student's loss in real batches, against each expert asked on its own by stock fairseq."""

import math
from types import SimpleNamespace

import pytest
import torch
from fairseq import checkpoint_utils, metrics

PAIRS = ["en-de", "en-ru", "en-fr"]
TRAINING_SENTENCES = 60  # of each pair, in the order of the pairs
MIXED = [0, 61, 121, 5, 70, 130, 3]
CRITERION = ["--criterion", "label_smoothed_kd_cross_entropy"]


def stock_expert(path):
    """An expert and its own task as stock fairseq loads them."""
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(path)])
    task.load_dataset("train")
    return task, model.eval()


def expert_lprobs(path, index):
    """(words + end, vocabulary) float64 log-probabilities for one training sentence, asked alone."""
    task, model = stock_expert(path)
    dataset = task.dataset("train")
    sample = dataset.collater([dataset[index]])
    with torch.no_grad():
        logits = model(**sample["net_input"])[0][0].double()
    return torch.log_softmax(logits, -1), sample["target"][0]


def expected_loss(task, model, sample, teacher_of, *, temperature, weight, epsilon=0.1, prefix=0):
    """The blended loss summed token by token in float64 from its definition."""
    with torch.no_grad():
        logits = model(**sample["net_input"])[0].double()
    size = logits.size(-1)
    eps_i = epsilon / (size - 1)
    n_routes = len(PAIRS)
    total = kd_total = 0.0
    for row, target in enumerate(sample["target"]):
        pair = PAIRS[int(sample["id"][row]) % n_routes]
        taught = teacher_of.get(pair)
        teacher = taught and expert_lprobs(taught, int(sample["id"][row]) // n_routes)
        words = [column for column, token in enumerate(target.tolist()) if token != 1]
        # the student's targets begin with a language token, the expert's do not
        first = 1 if task.args.decoder_langtok and not task.args.lang_tok_replacing_bos_eos else 0
        for nth, column in list(enumerate(words))[prefix:]:
            lprobs = torch.log_softmax(logits[row, column], -1)
            nll = -lprobs[target[column]]
            label = (1 - epsilon - eps_i) * nll - eps_i * lprobs.sum()
            if teacher is None or nth < first:
                total += label.item()
                continue
            teacher_rows, teacher_target = teacher
            assert teacher_target[nth - first] == target[column]
            log_p = torch.log_softmax(teacher_rows[nth - first] / temperature, -1)
            log_q = torch.log_softmax(logits[row, column] / temperature, -1)[: len(log_p)]
            kd = temperature**2 * (log_p.exp() * (log_p - log_q)).sum().item()
            total += weight * kd + (1 - weight) * label.item()
            kd_total += kd
    return total, kd_total


def teachers_flag(**paths):
    return ["--teachers", ",".join(f"en-{lang}={path}" for lang, path in paths.items())]


def loss_of(task, model, criterion, sample):
    loss, size, logged = criterion(model, {**sample, "soft_labels": task.soft_labels(sample)})
    return loss, size, logged


FORMATS = {
    "tokens on both sides": ["--encoder-langtok", "tgt", "--decoder-langtok"],
    "token on the source": ["--encoder-langtok", "tgt"],
    "token on the target": ["--decoder-langtok"],
    "in place of end of sentence": ["--encoder-langtok", "tgt", "--decoder-langtok", "--lang-tok-replacing-bos-eos"],
    "source padded right": ["--encoder-langtok", "src", "--decoder-langtok", "--left-pad-source", "False"],
    "target padded left": ["--encoder-langtok", "tgt", "--decoder-langtok", "--left-pad-target", "True"],
    "no tokens at all": [],
}


@pytest.mark.parametrize("flags", FORMATS.values(), ids=FORMATS)
def test_each_sentence_of_a_mixed_batch_is_taught_by_its_own_expert_alone(toy, setup, batch, flags):
    student = [toy.data, "--lang-pairs", ",".join(PAIRS), *flags, *toy.tiny, *toy.training, *toy.task]
    task, model, criterion = setup([*student, *teachers_flag(de=toy.de, ru=toy.ru), "--kd-temperature", 2])
    sample = batch(task, MIXED)
    loss, size, logged = loss_of(task, model.eval(), criterion, sample)
    expected, kd_expected = expected_loss(
        task, model, sample, {"en-de": toy.de, "en-ru": toy.ru}, temperature=2.0, weight=0.9
    )
    assert loss.item() == pytest.approx(expected, rel=2e-5)
    assert logged["kd_loss"].item() == pytest.approx(kd_expected, rel=2e-5)
    assert size == sample["ntokens"]


@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 0.9), (3.0, 0.5)])
def test_bilingual_student_learns_from_its_teacher_with_padding_in_the_batch(toy, setup, batch, temperature, weight):
    argv = [toy.data, "-s", "en", "-t", "de", *toy.tiny, *toy.training, "--task", "translation_kd", *CRITERION]
    kd = ["--teacher", toy.de, "--kd-temperature", temperature, "--kd-weight", weight]
    task, model, criterion = setup([*argv, *kd])
    sample = batch(task, range(6))
    assert sample["target"].eq(1).any()
    loss, _, logged = loss_of(task, model.eval(), criterion, sample)
    total = kd_total = 0.0
    logits = model(**sample["net_input"])[0].detach().double()
    for row, index in enumerate(sample["id"].tolist()):
        log_p, target = expert_lprobs(toy.de, index)
        for column, word in enumerate(target.tolist()):
            lprobs = torch.log_softmax(logits[row, column], -1)
            eps_i = 0.1 / (len(lprobs) - 1)
            label = -(1 - 0.1 - eps_i) * lprobs[word] - eps_i * lprobs.sum()
            p = torch.log_softmax(log_p[column] / temperature, -1)
            q = torch.log_softmax(logits[row, column] / temperature, -1)
            kd = temperature**2 * (p.exp() * (p - q)).sum().item()
            total += weight * kd + (1 - weight) * label.item()
            kd_total += kd
    assert loss.item() == pytest.approx(total, rel=2e-5)
    assert logged["kd_loss"].item() == pytest.approx(kd_total, rel=2e-5)


def test_ignored_prefix_drops_the_language_token_from_the_loss(toy, setup, batch):
    student = [*toy.multilingual, *toy.tiny, *toy.training, *toy.task, "--ignore-prefix-size", 1]
    task, model, criterion = setup([*student, *teachers_flag(de=toy.de)])
    sample = batch(task, MIXED)
    loss, _, _ = loss_of(task, model.eval(), criterion, sample)
    expected, _ = expected_loss(task, model, sample, {"en-de": toy.de}, temperature=1.0, weight=0.9, prefix=1)
    assert loss.item() == pytest.approx(expected, rel=2e-5)


def test_swapping_two_experts_changes_the_loss_as_predicted(toy, setup, batch):
    student = [*toy.multilingual, *toy.tiny, *toy.training, *toy.task]

    def loss_with(**paths):
        task, model, criterion = setup([*student, *teachers_flag(**paths), "--kd-allow-other-pair"])
        sample = batch(task, MIXED)
        return loss_of(task, model.eval(), criterion, sample)[0].item(), (task, model, sample)

    right, (_, model, sample) = loss_with(de=toy.de, ru=toy.ru)
    swapped, _ = loss_with(de=toy.ru, ru=toy.de)
    assert swapped != pytest.approx(right, rel=1e-3)

    # what the wrong expert says about a sentence, from its own pair's data re-labelled with the other language
    (model_ru,), _, _ = checkpoint_utils.load_model_ensemble_and_task([str(toy.ru)])
    (model_de,), _, _ = checkpoint_utils.load_model_ensemble_and_task([str(toy.de)])
    predicted = right
    logits = model(**sample["net_input"])[0].detach().double()
    for row, target in enumerate(sample["target"]):
        pair = PAIRS[int(sample["id"][row]) % 3]
        if pair == "en-fr":
            continue
        source = sample["net_input"]["src_tokens"][row]
        words = target[target.ne(1)][1:]
        bare = source[source.ne(1)][1:][None]
        shifted = torch.cat([torch.tensor([2]), words[:-1]])[None]
        own, other = (model_de, model_ru) if pair == "en-de" else (model_ru, model_de)
        log_q = torch.log_softmax(logits[row, 1 : 1 + len(words)], -1)
        for expert, sign in ((own.eval(), -1), (other.eval(), 1)):
            with torch.no_grad():
                log_p = torch.log_softmax(expert(bare, torch.tensor([bare.size(1)]), shifted)[0][0].double(), -1)
            predicted += sign * 0.9 * (log_p.exp() * (log_p - log_q[:, : log_p.size(1)])).sum().item()
    assert swapped == pytest.approx(predicted, rel=2e-5)


def test_pair_without_expert_gets_exactly_the_label_loss(toy, setup, batch):
    task, model, criterion = setup([*toy.multilingual, *toy.tiny, *toy.training, *toy.task, *teachers_flag(de=toy.de)])
    sample = batch(task, [125, 130, 140])
    loss, _, logged = loss_of(task, model.eval(), criterion, sample)
    plain, _, _ = criterion(model, sample)
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=0)
    assert logged["kd_ntokens"] == 0


@pytest.mark.parametrize("pairs", ["en-de,en-ru", "de-en,ru-en", "en-de,de-en,en-ru,ru-en"])
def test_one_to_many_many_to_one_and_many_to_many_find_the_expert_of_each_direction(toy, setup, batch, pairs):
    into = dict.fromkeys(pairs.split(","), toy.de)
    flags = ["--lang-pairs", pairs, "--langs", "de,en,ru", "--encoder-langtok", "tgt", "--decoder-langtok"]
    teachers = ["--teachers", ",".join(f"{pair}={path}" for pair, path in into.items())]
    teachers += ["--kd-allow-other-pair"]
    task, _, _ = setup([toy.data, *flags, *toy.tiny, *toy.training, *toy.task, *teachers])
    asked = {}
    for pair, teacher in task.teachers.items():

        def remember(question, strength, pair=pair, answer=teacher.answer):
            asked[pair] = sample["target"][question.sentences, question.positions].tolist()
            return answer(question, strength)

        teacher.answer = remember
    n = len(into)
    sample = batch(task, [60 * k + i for i in range(2) for k in range(n)])
    task.soft_labels(sample)
    assert asked.keys() == into.keys()
    dictionary = task.target_dictionary
    for pair, tokens in asked.items():
        words = {dictionary[token][0] for token in tokens if token != dictionary.eos()}
        assert words == {pair.split("-")[1][0]}


def test_ensemble_averages_the_probabilities_of_its_members(toy, setup, batch):
    argv = [toy.data, "-s", "en", "-t", "de", *toy.tiny, *toy.training, "--task", "translation_kd", *CRITERION]
    task, _, _ = setup([*argv, "--teacher", f"{toy.de}:{toy.de2}"])
    sample = batch(task, [4])
    (labels,) = task.soft_labels(sample)
    one, two = (expert_lprobs(path, 4)[0].exp() for path in (toy.de, toy.de2))
    torch.testing.assert_close(labels.logits.double().exp(), (one + two) / 2, rtol=1e-4, atol=1e-7)


def test_expert_of_another_architecture_is_asked_with_the_padding_it_expects(toy, setup, batch, train, tmp_path):
    argv = [toy.data, "-s", "en", "-t", "de", *toy.training, "--max-update", 2, "--save-dir", tmp_path]
    small = ["--arch", "lstm", "--encoder-embed-dim", 8, "--decoder-embed-dim", 8, "--decoder-out-embed-dim", 8]
    train([*argv, *small, "--task", "translation", "--criterion", "label_smoothed_cross_entropy"])
    path = tmp_path / "checkpoint_last.pt"
    task, _, _ = setup([*toy.multilingual, *toy.tiny, *toy.training, *toy.task, *teachers_flag(de=path)])
    sample = batch(task, MIXED)
    (labels,) = task.soft_labels(sample)
    for row in set(labels.sentences.tolist()):
        found = torch.log_softmax(labels.logits[labels.sentences == row].double(), -1)
        expected, _ = expert_lprobs(path, int(sample["id"][row]) // len(PAIRS))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_gradients_reach_the_student_and_never_the_teacher(toy, setup, batch):
    task, model, criterion = setup([*toy.multilingual, *toy.tiny, *toy.training, *toy.task, *teachers_flag(de=toy.de)])
    members = task.teachers["en-de"].members
    before = {name: weight.clone() for name, weight in members.state_dict().items()}
    model.train()
    loss, _, _ = loss_of(task, model, criterion, batch(task, MIXED))
    loss.backward()
    assert not any(weight.requires_grad or weight.grad is not None for weight in members.parameters())
    assert not members.training
    assert all(torch.equal(weight, before[name]) for name, weight in members.state_dict().items())
    assert model.decoder.embed_tokens.weight.grad.abs().sum() > 0


def test_teacher_is_no_part_of_model_or_criterion(toy, setup):
    argv = [*toy.multilingual, *toy.tiny, *toy.training, *toy.task]
    _, model, criterion = setup([*argv, *teachers_flag(de=toy.de)])
    _, plain_model, _ = setup(argv)
    assert not list(criterion.parameters())
    assert model.state_dict().keys() == plain_model.state_dict().keys()


def test_teacher_does_not_change_the_students_initial_weights(toy, setup):
    argv = [*toy.multilingual, *toy.tiny, *toy.training, *toy.task]
    _, model, _ = setup([*argv, *teachers_flag(de=toy.de)])
    noise = torch.rand(3)
    _, plain_model, _ = setup(argv)
    assert torch.equal(noise, torch.rand(3))
    weights = dict(model.named_parameters())
    for name, weight in plain_model.named_parameters():
        assert torch.equal(weight, weights[name])


def test_teacher_follows_the_students_precision(toy, setup):
    task, model, _ = setup([*toy.multilingual, *toy.tiny, *toy.training, *toy.task, *teachers_flag(de=toy.de)])
    for precision in (torch.bfloat16, torch.float16, torch.float32):
        task.begin_epoch(1, model.to(precision))
        assert {weight.dtype for weight in task.teachers["en-de"].members.parameters()} == {precision}


def test_bfloat16_student_and_teacher_give_a_float32_loss_close_to_full_precision(toy, setup, batch):
    task, model, criterion = setup([*toy.multilingual, *toy.tiny, *toy.training, *toy.task, *teachers_flag(de=toy.de)])
    sample = batch(task, MIXED)
    full = loss_of(task, model.eval(), criterion, sample)[0]
    task.begin_epoch(1, model.bfloat16())
    half, _, _ = loss_of(task, model, criterion, sample)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(full.item(), rel=0.02)


def test_loss_does_not_depend_on_sentence_order_or_on_padding(toy, setup, batch):
    task, model, criterion = setup([*toy.multilingual, *toy.tiny, *toy.training, *toy.task, *teachers_flag(de=toy.de)])
    together = batch(task, MIXED)
    loss = loss_of(task, model.eval(), criterion, together)[0].item()
    assert loss_of(task, model, criterion, batch(task, MIXED[::-1]))[0].item() == pytest.approx(loss, rel=1e-6)
    alone = sum(loss_of(task, model, criterion, batch(task, [index]))[0].item() for index in MIXED)
    assert alone == pytest.approx(loss, rel=1e-5)


def test_sentences_too_long_for_the_teacher_are_learned_from_labels(toy, setup, batch):
    task, _, _ = setup([*toy.multilingual, *toy.tiny, *toy.training, *toy.task, *teachers_flag(de=toy.de)])
    sample = batch(task, range(10))
    lengths = sample["target"].ne(1).sum(1)
    task.teachers["en-de"].max_target = limit = int(lengths.max())
    (labels,) = task.soft_labels(sample)
    assert set(labels.sentences.tolist()) == set(lengths.lt(limit).nonzero().flatten().tolist())
    assert 0 < len(set(labels.sentences.tolist())) < 10


def test_multilingual_expert_is_asked_with_its_own_language_tokens(toy, setup, batch, train, tmp_path):
    expert = [toy.data, "--lang-pairs", "en-de,en-ru", "--encoder-langtok", "src", "--decoder-langtok"]
    stock = ["--task", "translation_multi_simple_epoch", "--criterion", "label_smoothed_cross_entropy"]
    train([*expert, *stock, *toy.tiny, *toy.training, "--max-update", 3, "--save-dir", tmp_path])
    path = tmp_path / "checkpoint_last.pt"
    task, _, _ = setup([*toy.multilingual, *toy.tiny, *toy.training, *toy.task, *teachers_flag(de=path)])
    (labels,) = task.soft_labels(batch(task, [7]))

    expert_task, _, _ = setup([*expert, *stock, *toy.tiny, *toy.training])
    (model,), _ = checkpoint_utils.load_model_ensemble([str(path)], task=expert_task)
    logits = model.eval()(**batch(expert_task, [7])["net_input"])[0].detach()
    # not the language token that begins its target, and no prediction of one
    asked = labels.logits.dense()
    base = asked.size(1)
    torch.testing.assert_close(asked, logits[0, 1:, :base])
    assert base == logits.size(2) - 3


def test_metrics_summed_over_workers_and_accumulated_batches_equal_those_of_the_whole(toy, setup, batch):
    task, model, criterion = setup([*toy.multilingual, *toy.tiny, *toy.training, *toy.task, *teachers_flag(de=toy.de)])
    model.eval()

    def reduced(*parts):
        logged = [loss_of(task, model, criterion, batch(task, part))[2] for part in parts]
        with metrics.aggregate(new_root=True) as found:
            task.reduce_metrics(logged, criterion)
        return {name: found.get_smoothed_value(name) for name in ("loss", "nll_loss", "kd_loss", "kd_agreement", "ppl")}

    whole = reduced(MIXED)
    assert whole == pytest.approx(reduced(MIXED[:2], MIXED[2:5], MIXED[5:]), abs=1e-3)
    # base 2, over taught tokens only
    loss, _, logged = loss_of(task, model, criterion, batch(task, MIXED))
    assert whole["kd_loss"] == pytest.approx((logged["kd_loss"] / logged["kd_ntokens"]).item() / math.log(2), abs=1e-3)
    assert whole["loss"] == pytest.approx(loss.item() / logged["ntokens"] / math.log(2), abs=1e-3)
    assert 0 <= whole["kd_agreement"] <= 100


@pytest.mark.parametrize("sampling", [[], ["--sampling-method", "RoundRobin"]], ids=["", "one iterator for all epochs"])
def test_loaders_look_up_in_workers_what_the_training_process_would_have_to_ask_its_gpu(toy, setup, sampling):
    argv = [*toy.multilingual, *sampling, *toy.tiny, *toy.training, *toy.task, "--ignore-prefix-size", 1]
    task, _, _ = setup([*argv, *teachers_flag(de=toy.de, ru=toy.ru)])
    dataset = task.dataset("train")
    for _ in range(2):
        loader = task.get_batch_iterator(dataset, max_tokens=60, seed=1, num_workers=1).next_epoch_itr()
    sample = next(iter(loader))
    given = task.soft_labels(sample)
    looked_up = {name: value for name, value in sample.items() if name != "teaching"}
    taught = 0
    for one, other in zip(given, task.soft_labels(looked_up), strict=True):
        taught += len(one.positions)
        assert torch.equal(one.sentences, other.sentences)
        assert torch.equal(one.positions, other.positions)
        assert torch.equal(one.logits.features, other.logits.features)
    assert 0 < taught + len(sample["teaching"].untaught) == sample["target"][:, 1:].ne(1).sum()
    task.load_dataset("valid")
    plain = task.get_batch_iterator(task.dataset("valid"), max_tokens=60, seed=1).next_epoch_itr()
    assert "teaching" not in next(iter(plain))


def test_a_teacher_that_has_no_say_any_more_leaves_its_words_to_their_labels(toy, setup, batch):
    task, model, criterion = setup([*toy.multilingual, *toy.tiny, *toy.training, *toy.task, *teachers_flag(de=toy.de)])
    task.selection.strategy, task.selection.margin = "threshold", 0.0
    task.selection.teacher_bleu["en-de"], task.selection.student_bleu["en-de"] = 1.0, 50.0
    sample = task.lookup(lambda sentences: batch(task, MIXED))(MIXED)
    optimizer = SimpleNamespace(backward=lambda loss: None)
    loss, _, logged = task.train_step(sample, model.eval(), criterion, optimizer, 0)
    plain, _, _ = criterion(model.eval(), batch(task, MIXED))
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    assert logged["kd_ntokens"] == 0
