"""The criterion works from features where it can: the same training as from logits, and logits wherever unsure."""

import logging
import math

import pytest
import torch
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss
from fairseq.distributed import LegacyDistributedDataParallel, ModuleProxyWrapper
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fairseq_plugins.criterions import label_smoothed_kd_cross_entropy as criterions
from fairseq_plugins.losses.soft_labels import ProjectedLogits, SoftLabels, TopKLogits
from fairseq_plugins.losses.word_level import distil
from fairseq_plugins.teachers.output_layer import adaptive_lprobs, plain_output_layer

MIXED = [0, 61, 121, 5, 70, 130, 3]
UNTIED = [
    *("--arch", "transformer_tiny", "--encoder-layers", "1", "--decoder-layers", "1", "--encoder-embed-dim", "16"),
    *("--decoder-embed-dim", "16", "--encoder-ffn-embed-dim", "16", "--decoder-ffn-embed-dim", "16"),
]


@pytest.fixture
def from_logits(monkeypatch):
    """Call it, and from then on the criterion takes every student for one without a plain output layer."""
    return lambda: monkeypatch.setattr(criterions, "plain_output_layer", lambda model: (None, "asked for"))


def student(toy, setup, *options, tiny=None):
    teachers = ["--teachers", f"en-de={toy.de},en-ru={toy.ru}"]
    return setup([*toy.multilingual, *(tiny or toy.tiny), *toy.training, *toy.task, *teachers, *options])


def outcome(task, model, criterion, sample, soft_labels=None):
    """Loss, what is logged, and all gradients by name."""
    labels = task.soft_labels(sample) if soft_labels is None else soft_labels
    model.zero_grad()
    loss, size, logged = criterion(model, {**sample, "soft_labels": labels})
    loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return loss.detach(), size, {key: float(value) for key, value in logged.items()}, gradients


def assert_same(one, other):
    assert float(one[0]) == pytest.approx(float(other[0]), rel=1e-5)
    assert one[1] == other[1]
    assert one[2] == pytest.approx(other[2], rel=1e-5)
    assert one[3].keys() == other[3].keys()
    for name, gradient in one[3].items():
        torch.testing.assert_close(gradient, other[3][name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def stored(labels, tail, k, temperature):
    """What a store would hold of soft labels."""
    logits = labels.logits.dense()
    top = logits.topk(k, dim=1)
    rest = torch.logsumexp(logits.float().scatter(1, top.indices, -torch.inf) / temperature, dim=1)
    kept = TopKLogits(top.indices.int(), top.values.half(), rest, logits.size(1), tail)
    return SoftLabels(labels.sentences, labels.positions, kept, labels.strength)


@pytest.mark.parametrize("tiny", [None, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--kd-temperature", 2, "--report-accuracy"],
        ["--kd-temperature", 3, "--kd-weight", 0.5, "--ignore-prefix-size", 2, "--report-accuracy"],
        ["--kd-weight", 1, "--sentence-avg", "--label-smoothing", 0],
    ],
    ids=["T=1", "T=2", "prefix left out", "teacher alone"],
)
def test_both_ways_give_the_same_loss_log_and_gradients(toy, setup, batch, from_logits, tiny, options):
    task, model, criterion = student(toy, setup, *options, tiny=tiny)
    sample = batch(task, MIXED)
    assert sample["target"].eq(1).any(), "there should be padding"
    features = outcome(task, model.eval(), criterion, sample)
    from_logits()
    assert_same(features, outcome(task, model, criterion, sample))


@pytest.mark.parametrize("tail", ["drop", "uniform"])
def test_both_ways_learn_the_same_from_stored_outputs(toy, setup, batch, from_logits, tail):
    task, model, criterion = student(toy, setup, "--kd-temperature", 2)
    sample = batch(task, MIXED)
    labels = [stored(each, tail, 5, 2.0) for each in task.soft_labels(sample)]
    features = outcome(task, model.eval(), criterion, sample, labels)
    from_logits()
    assert_same(features, outcome(task, model, criterion, sample, labels))


def test_batch_that_no_teacher_speaks_about_has_the_stock_loss(toy, setup, batch):
    task, model, criterion = student(toy, setup)
    sample = batch(task, [121, 130])
    found = outcome(task, model.eval(), criterion, sample, [])
    model.zero_grad()
    loss, _, logged = criterion(model, sample)
    loss.backward()
    assert "kd_loss" not in logged
    assert float(found[0]) == pytest.approx(loss.item(), rel=1e-6)
    for name, gradient in found[3].items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-4, atol=1e-6)


def test_loss_token_by_token_adds_up_to_the_loss(toy, setup, batch):
    task, model, criterion = student(toy, setup)
    sample = batch(task, MIXED)
    sample["soft_labels"] = task.soft_labels(sample)
    loss, _, _ = criterion(model.eval(), sample)
    by_token, _, _ = criterion(model, sample, reduce=False)
    assert by_token.shape == (sample["target"].numel(), 1)
    assert by_token.sum().item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("extras", [[], ["--update-freq", 3]], ids=["", "update-freq"])
def test_both_ways_give_the_same_training_curve(toy, train, from_logits, tmp_path, extras):
    argv = [*toy.multilingual, *toy.tiny, *toy.training, *toy.task, "--teachers", f"en-de={toy.de},en-ru={toy.ru}"]
    argv += ["--kd-temperature", 2, "--clip-norm", 1, "--max-update", 15, "--report-accuracy", *extras]
    runs = {}
    for way in ("features", "logits"):
        if way == "logits":
            from_logits()
        folder = tmp_path / way
        logs = train([*argv, "--save-dir", folder])
        weights = torch.load(folder / "checkpoint_last.pt", weights_only=False)["model"]
        runs[way] = logs["train_inner"], logs["valid"], weights
    for one, other in zip(*(runs[way][0] + runs[way][1] for way in runs), strict=True):
        assert one.keys() == other.keys()
        for name in one:
            if not name.endswith(("wps", "ups", "wall")):
                assert float(one[name]) == pytest.approx(float(other[name]), rel=1e-4, abs=2e-3), name
    assert float(runs["features"][0][-1]["loss"]) < float(runs["features"][0][0]["loss"]) - 0.5
    for name, weight in runs["features"][2].items():
        # attention does not depend on its keys' bias, whose gradient is nothing but rounding that Adam blows up
        if name.endswith(("k_proj.bias", "_float_tensor")):
            continue
        torch.testing.assert_close(weight, runs["logits"][2][name], rtol=1e-3, atol=1e-4)


class OwnProbabilities:
    """Mixin for a model that takes its logits for something else."""

    def get_normalized_probs(self, net_output, log_probs, sample=None):
        return super().get_normalized_probs((2 * net_output[0], net_output[1]), log_probs, sample)


@pytest.mark.parametrize(
    ("tiny", "said"),
    [
        ([*UNTIED, "--adaptive-softmax-cutoff", "10,20"], "adaptive softmax"),
        (["--arch", "lstm", "--encoder-embed-dim", 8, "--decoder-embed-dim", 8], "LSTMModel"),
        ([*UNTIED[2:], "--arch", "transformer_align", "--encoder-attention-heads", 2], "TransformerAlignModel"),
    ],
)
def test_students_that_end_otherwise_have_no_plain_output_layer(toy, setup, tiny, said):
    _, model, _ = setup([*toy.multilingual, *tiny, *toy.training, *toy.task])
    layer, reason = plain_output_layer(model)
    assert layer is None
    assert said in reason


def test_a_student_with_adaptive_softmax_learns_from_log_probabilities(toy, setup, batch, train, tmp_path):
    tiny = [*UNTIED, "--adaptive-softmax-cutoff", "10,20"]
    task, model, criterion = student(toy, setup, "--kd-temperature", 2, tiny=tiny)
    sample = batch(task, MIXED)
    loss, _, _, gradients = outcome(task, model.eval(), criterion, sample)
    softmax = model.decoder.adaptive_softmax
    assert {name for name, _ in softmax.named_parameters()} <= {name.split("softmax.")[-1] for name in gradients}
    # fairseq's own log-probabilities, which have no gradient
    with torch.no_grad():
        features = model(**sample["net_input"])[0]
        lprobs = softmax.get_log_prob(features, None)
        torch.testing.assert_close(adaptive_lprobs(softmax, features.flatten(0, 1)), lprobs.flatten(0, 1))
        label, _ = label_smoothed_nll_loss(lprobs.flatten(0, 1), sample["target"].flatten(), 0.1, 1, reduce=False)
        blended = distil(
            lprobs.flatten(0, 1),
            label.squeeze(1),
            task.soft_labels(sample),
            sentences=len(MIXED),
            kd_weight=0.9,
            temperature=2.0,
        )
        expected = blended.loss.sum()
    torch.testing.assert_close(loss, expected)
    argv = [*toy.multilingual, *tiny, *toy.training, *toy.task, "--teachers", f"en-de={toy.de},en-ru={toy.ru}"]
    logs = train([*argv, "--max-update", 12, "--disable-validation", "--no-save", "--save-dir", tmp_path])
    assert float(logs["train_inner"][-1]["loss"]) < float(logs["train_inner"][0]["loss"])


def test_a_student_with_its_own_way_to_probabilities_is_taught_from_them_and_the_log_says_so(toy, setup, batch, caplog):
    task, model, criterion = student(toy, setup)
    type_of_model = type(model)
    sample = batch(task, MIXED)
    with caplog.at_level(logging.INFO):
        plain = outcome(task, model.eval(), criterion, sample)
        outcome(task, model, criterion, sample)
        assert caplog.text.count("distillation loss from decoder features") == 1
        caplog.clear()
        model.__class__ = type("Sharper", (OwnProbabilities, type_of_model), {})
        _, _, criterion = student(toy, setup)
        own = outcome(task, model, criterion, sample)
    assert caplog.text.count("distillation loss from logits: Sharper") == 1
    assert not math.isclose(own[0], plain[0], rel_tol=1e-3)


def test_replaced_or_watched_output_layers_are_left_alone(toy, setup):
    _, model, _ = student(toy, setup)
    layer = model.decoder.output_projection
    assert plain_output_layer(model) == (layer, "")
    hook = layer.register_forward_hook(lambda *_: None)
    assert plain_output_layer(model)[0] is None
    hook.remove()

    class Quantized(nn.Linear):
        pass

    model.decoder.output_projection = Quantized(16, len(layer.weight))
    layer, reason = plain_output_layer(model)
    assert layer is None
    assert "Quantized" in reason


@pytest.fixture
def process_group(tmp_path):
    """Of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


def pytorch_ddp(model, process_group):
    return DistributedDataParallel(model, process_group=process_group)


def pytorch_ddp_that_looks(model, process_group):
    return DistributedDataParallel(model, process_group=process_group, find_unused_parameters=True)


@pytest.mark.parametrize(
    ("wrapper", "tiny", "plain"),
    [
        (LegacyDistributedDataParallel, None, True),
        (LegacyDistributedDataParallel, UNTIED, True),
        (pytorch_ddp, None, True),
        (pytorch_ddp, UNTIED, True),
        (pytorch_ddp_that_looks, None, True),
        (pytorch_ddp_that_looks, UNTIED, False),
    ],
)
def test_wrapped_students_learn_the_same_and_from_features_where_the_wrapper_does_not_mind(
    toy, setup, batch, process_group, wrapper, tiny, plain
):
    task, model, criterion = student(toy, setup, tiny=tiny)
    sample = batch(task, MIXED)
    alone = outcome(task, model.eval(), criterion, sample)
    if wrapper is pytorch_ddp:
        # stock fairseq's encoder holds weights that no training step uses, which this wrapper would wait for
        for name, weight in model.named_parameters():
            weight.requires_grad_(name in alone[3])
    wrapped = ModuleProxyWrapper(wrapper(model, process_group=process_group)).train()
    layer, reason = plain_output_layer(wrapped)
    assert layer is (model.decoder.output_projection if plain else None)
    assert plain or "--find-unused-parameters" in reason
    for _ in range(2):  # a parameter whose gradient PyTorch's wrapper missed would show at the second batch
        model.zero_grad()
        loss, _, _ = criterion(wrapped, {**sample, "soft_labels": task.soft_labels(sample)})
        loss.backward()
        if wrapper is LegacyDistributedDataParallel:
            wrapped.all_reduce_grads()
    assert loss.item() == pytest.approx(float(alone[0]), rel=1e-6)
    for name, gradient in alone[3].items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-5)


def test_a_student_with_sharded_parameters_has_no_plain_output_layer():
    class FullyShardedDataParallel(nn.Module):
        pass

    assert "FullyShardedDataParallel" in plain_output_layer(FullyShardedDataParallel())[1]


def test_a_single_plain_teacher_hands_over_features_and_an_ensemble_probabilities(toy, setup, batch):
    task, _, _ = student(toy, setup)
    for labels in task.soft_labels(batch(task, MIXED)):
        assert isinstance(labels.logits, ProjectedLogits)
    argv = [*toy.multilingual, *toy.tiny, *toy.training, *toy.task, "--teachers", f"en-de={toy.de}:{toy.de2}"]
    task, _, _ = setup(argv)
    (labels,) = task.soft_labels(batch(task, MIXED))
    torch.testing.assert_close(labels.logits.exp().sum(1), torch.ones(len(labels.positions)))
