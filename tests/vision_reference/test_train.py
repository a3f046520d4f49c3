"""The trainer: equal to a plain loop step by step, exact under resume and any number of processes, clear in errors."""

import json
import os
import random
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.models import mobilenet_v3_small, resnet18, shufflenet_v2_x0_5
from torchvision.transforms import functional as TF

from vision_reference import arguments
from vision_reference import train as training
from vision_reference.arguments import parse_args
from vision_reference.distillation import Teacher
from vision_reference.images.folders import image_folder
from vision_reference.images.pipelines import Normalize, training_pipeline
from vision_reference.images.presets import PRESETS
from vision_reference.images.samplers import EvalBatchSampler, TrainBatchSampler
from vision_reference.images.torch_loader import ImageDataset, TorchvisionLoader
from vision_reference.learner import build_learner
from vision_reference.loaders import MixingLoader, TeacherLoader
from vision_reference.machine import Machine, Rank
from vision_reference.metrics import Outcomes
from vision_reference.networks import by_name, heads
from vision_reference.networks.checkpoints import load_checkpoint
from vision_reference.runs.metrics_file import MetricsFile, last_epoch
from vision_reference.soft_labels import codec
from vision_reference.train import evaluate, train_one_epoch

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
MODEL = "shufflenet_v2_x0_5"
PLAIN = Machine(Rank(), CPU, torch.contiguous_format, torch.bfloat16, nullcontext)


def loader_of(folder, batch_size, *, train, seed=1):
    samples, _ = image_folder(folder / ("train" if train else "val"))
    preset = PRESETS["digits"]
    dataset = ImageDataset(samples, training_pipeline(preset, crop_size=32) if train else TF.pil_to_tensor)
    sampler = (
        TrainBatchSampler(len(samples), batch_size, seed=seed) if train else EvalBatchSampler(len(samples), batch_size)
    )
    return TorchvisionLoader(
        dataset,
        sampler,
        workers=0,
        normalize=Normalize(preset.mean, preset.std),
        device=CPU,
        memory_format=torch.contiguous_format,
    )


class InFloat64:
    """A loader whose images are float64, so that two ways of computing the same do not drift apart by rounding."""

    def __init__(self, loader):
        self.loader, self.step_sizes = loader, loader.step_sizes

    def __len__(self):
        return len(self.loader)

    def epoch(self, number, first=0):
        return (batch._replace(images=batch.images.double()) for batch in self.loader.epoch(number, first))


def small_network(seed, classes=4):
    torch.manual_seed(seed)
    return shufflenet_v2_x0_5(num_classes=classes)


def smooth_network(seed):
    """Convolution, batch norm and a smooth activation in float64: rounding errors stay as small as they begin."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.Tanh(), nn.AvgPool2d(5), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(72, 4)).double()


def weights(folder, name="checkpoint.pth"):
    return torch.load(Path(folder) / name, weights_only=True)["model"]


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    differing = [name for name in first if not torch.equal(first[name], second[name])]
    assert not differing


@pytest.mark.parametrize(
    "flags", ["--label-smoothing 0.1", "--teacher x --teacher-weights y --kd-temperature 2 --kd-weight 0.7"]
)
def test_training_equals_a_plain_pytorch_loop_step_by_step(few_digits, flags):
    args = parse_args(["--epochs", "2", "--lr", "0.05", "--wd", "1e-3", "--label-smoothing", "0.1", *flags.split()])
    student = smooth_network(0)
    teacher_network = smooth_network(9) if args.teacher else None
    learner = build_learner(student, args, PLAIN.rank, CPU, torch.bfloat16)
    loader = InFloat64(loader_of(few_digits, 16, train=True))
    teacher = Teacher(teacher_network, CPU, torch.contiguous_format, nullcontext) if args.teacher else None
    taught = TeacherLoader(loader, teacher) if teacher else loader

    plain = smooth_network(0).train()
    optimizer = torch.optim.SGD(plain.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    for epoch in range(2):
        expected_loss, images_seen = 0.0, 0
        for images, labels, _ in loader.epoch(epoch):
            logits = plain(images)
            loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
            if args.teacher:
                with torch.no_grad():
                    p = F.softmax(teacher_network(images) / 2, dim=1)
                q = F.log_softmax(logits / 2, dim=1)
                loss = 0.7 * 4 * (p * (p.log() - q)).sum(dim=1).mean() + 0.3 * loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            expected_loss += loss.item() * len(images)
            images_seen += len(images)
        figures = train_one_epoch(learner, taught, PLAIN, args, epoch)
        assert images_seen == 83
        assert figures["loss"] == pytest.approx(expected_loss / 83, rel=1e-9)
        for (name, ours), theirs in zip(student.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9, msg=name)


def test_evaluation_equals_counting_by_hand(few_digits):
    network = small_network(3).eval()
    loader = loader_of(few_digits, 10, train=False)
    outcomes = Outcomes()
    result = evaluate(network, loader, PLAIN, 0.0, outcomes=outcomes)
    top1 = top5 = 0
    loss = 0.0
    samples, _ = image_folder(few_digits / "val")
    right = outcomes.gather().tolist()
    with torch.no_grad():
        for path, label in samples:
            pixels = TF.pil_to_tensor(Image.open(path)).float() / 255
            logits = network(((pixels - 0.5) / 0.5).unsqueeze(0))[0]
            ranking = logits.argsort(descending=True).tolist()
            top1 += ranking[0] == label
            assert right.pop(0) == (ranking[0] == label)
            top5 += label in ranking[:5]
            loss -= F.log_softmax(logits.double(), dim=0)[label].item()
    assert result["acc1"] == pytest.approx(100 * top1 / 37, abs=1e-9)
    assert result["acc5"] == pytest.approx(100 * top5 / 37, abs=1e-9)
    assert result["loss"] == pytest.approx(loss / 37, rel=1e-4)


def test_batches_do_not_depend_on_the_number_of_workers(few_digits):
    alone = loader_of(few_digits, 16, train=True).epoch(1)
    samples, _ = image_folder(few_digits / "train")
    preset = PRESETS["digits"]
    parallel = TorchvisionLoader(
        ImageDataset(samples, training_pipeline(preset, crop_size=32)),
        TrainBatchSampler(len(samples), 16, seed=1),
        workers=2,
        normalize=Normalize(preset.mean, preset.std),
        device=CPU,
        memory_format=torch.channels_last,
    )
    list(parallel.epoch(0))
    for (images, labels, indices), (others, other_labels, other_indices) in zip(alone, parallel.epoch(1), strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)
        assert torch.equal(indices, other_indices)
        assert labels.tolist() == [samples[index][1] for index in indices.tolist()]
        assert others.is_contiguous(memory_format=torch.channels_last)


def test_mixed_images_and_their_labels_are_mixed_alike_and_repeatably(few_digits):
    def mixed(**methods):
        loader = MixingLoader(loader_of(few_digits, 16, train=True), num_classes=4, seed=1, rank=0, **methods)
        return list(loader.epoch(3))

    plain = loader_of(few_digits, 16, train=True).epoch(3)
    for batch, (original, labels, indices) in zip(mixed(mixup_alpha=0.2, cutmix_alpha=0.0), plain, strict=True):
        images, targets = batch.images, batch.targets
        assert torch.equal(batch.indices, indices)
        onehot = F.one_hot(labels, 4).float()
        partner = onehot.roll(1, 0)
        differs = (onehot != partner).any(dim=1)
        share = ((targets * onehot).sum(dim=1))[differs][0]
        torch.testing.assert_close(targets, share * onehot + (1 - share) * partner)
        torch.testing.assert_close(images, share * original + (1 - share) * original.roll(1, 0), rtol=1e-4, atol=1e-5)
    both = mixed(mixup_alpha=0.2, cutmix_alpha=1.0)
    for batch, again in zip(both, mixed(mixup_alpha=0.2, cutmix_alpha=1.0), strict=True):
        assert torch.equal(batch.images, again.images)
        assert torch.equal(batch.targets, again.targets)


@pytest.fixture(scope="module")
def teacher_run(train, tmp_path_factory):
    """A teacher of two epochs."""
    folder = tmp_path_factory.mktemp("teacher")
    train("--model", "resnet18", "--epochs", 2, "--label-smoothing", 0.1, "--output-dir", folder)
    return folder


@pytest.fixture(scope="module")
def student_flags(teacher_run):
    return ["--model", "shufflenet_v2_x0_5", "--teacher", "resnet18", "--teacher-weights", teacher_run / "best.pth"]


@pytest.fixture(scope="module")
def straight_run(train, student_flags, tmp_path_factory):
    """A student of four epochs, trained without a stop."""
    folder = tmp_path_factory.mktemp("straight")
    text = train(*student_flags, "--epochs", 4, "--model-ema", "--model-ema-steps", 2, "--output-dir", folder)
    return folder, text


def test_the_files_of_a_run_are_those_the_readme_names(straight_run, metrics):
    folder, text = straight_run
    assert sorted(file.name for file in folder.iterdir()) == [
        "args.json", "best.pth", "checkpoint.pth", "environment.json", "log.txt", "metrics.jsonl", "model_3.pth",
        "outcomes.npy",
    ]  # fmt: skip
    records = metrics(folder)
    outcomes = np.load(folder / "outcomes.npy")
    assert (outcomes.dtype, 100 * outcomes.mean()) == (np.uint8, pytest.approx(records[-1]["val_acc1"]))
    assert [record["epoch"] for record in records] == [0, 1, 2, 3]
    for record in records:
        assert {
            "epoch", "lr", "train_loss", "kd_loss", "ce_loss", "train_acc1", "val_loss", "val_acc1", "val_acc5",
            "images_per_second", "seconds",
        } <= record.keys()  # fmt: skip
        assert record["train_loss"] == pytest.approx(record["kd_loss"], rel=1e-6)  # --kd-weight is 1
    assert "kd " in text
    assert "ETA" in text
    checkpoint = torch.load(folder / "checkpoint.pth", weights_only=True)  # plain torch, no allow-list
    assert checkpoint["epoch"] == 3
    assert checkpoint["arch"] == "shufflenet_v2_x0_5"
    assert {"model", "optimizer", "lr_scheduler", "scaler", "model_ema", "best", "rng", "args"} <= checkpoint.keys()
    assert not any("teacher" in name for name in checkpoint["model"])
    assert checkpoint["args"]["kd_temperature"] == 1.0


def test_stopped_and_resumed_equals_straight_bit_for_bit(train, student_flags, straight_run, tmp_path, metrics):
    flags = [*student_flags, "--epochs", 4, "--model-ema", "--model-ema-steps", 2, "--output-dir", tmp_path]
    script = (
        "import sys, vision_reference.train as t\n"
        "real = t.train_one_epoch\n"
        "def dies(*a):\n"
        "    if a[4] == 2: sys.exit(9)\n"
        "    return real(*a)\n"
        "t.train_one_epoch = dies\n"
        "t.main(t.parse_args(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", script, *train.flags, *map(str, flags)]
    # As many threads as the run in this process has: sums depend on how they are split.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    died = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert died.returncode == 9, died.stderr
    assert len(metrics(tmp_path)) == 2
    with (tmp_path / "metrics.jsonl").open("a") as file:  # as if it had died between a record and its checkpoint
        file.write(json.dumps({"epoch": 2, "val_acc1": -1}) + '\n{"epoch": 3, "va')
    train(*flags, "--resume", "auto")
    straight, _ = straight_run
    assert_same_weights(weights(straight), weights(tmp_path))
    ema, other = (torch.load(f / "checkpoint.pth", weights_only=True)["model_ema"] for f in (straight, tmp_path))
    assert_same_weights(ema, other)
    timeless = [
        [{k: v for k, v in record.items() if "second" not in k} for record in metrics(folder)]
        for folder in (straight, tmp_path)
    ]
    assert timeless[0] == timeless[1]


class Stopped(Exception):
    pass


def tiny_network_with_dropout(name, num_classes):
    """Draws on all three global generators in every step of training."""

    class NumpyDropout(nn.Module):
        def forward(self, x):
            return x * (np.random.rand() + random.random()) if self.training else x

    dropout = nn.Sequential(nn.Dropout(0.5), NumpyDropout())
    layers = [nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, dropout, nn.Linear(900, num_classes))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("loader", ["torchvision", "dali"])
def test_a_resumed_run_draws_what_an_undisturbed_one_draws(train, tmp_path, monkeypatch, workers, loader):
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    monkeypatch.setattr(by_name, "build_model", tiny_network_with_dropout)
    monkeypatch.setattr(heads, "check_input_sizes", lambda *_: None)
    flags = ["--workers", workers, "--loader", loader, "--mixup-alpha", 0.2, "--epochs", 3, "--lr", 0.01]
    flags += ["--model-ema", "--model-ema-steps", 2, "--model-ema-decay", 0.99]
    train(*flags, "--output-dir", tmp_path / "straight")
    with monkeypatch.context() as patch:

        def stops(learner, loader, machine, args, epoch, *more):
            if epoch == 1:
                raise Stopped
            return train_one_epoch(learner, loader, machine, args, epoch, *more)

        patch.setattr(training, "train_one_epoch", stops)
        with pytest.raises(Stopped):
            train(*flags, "--output-dir", tmp_path / "stopped")
    train(*flags, "--output-dir", tmp_path / "stopped", "--resume", "auto")
    straight, stopped = (
        torch.load(tmp_path / run / "checkpoint.pth", weights_only=True) for run in ("straight", "stopped")
    )
    for part in ("model", "model_ema"):
        assert_same_weights(straight[part], stopped[part])


def test_a_finished_run_is_left_alone(train, student_flags, straight_run):
    folder, _ = straight_run
    before = (folder / "checkpoint.pth").stat().st_mtime_ns
    assert "nothing to do" in train(*student_flags, "--epochs", 4, "--output-dir", folder, "--resume", "auto")
    assert (folder / "checkpoint.pth").stat().st_mtime_ns == before


def test_going_on_with_other_flags_is_said(train, teacher_run, tmp_path):
    shutil.copy(teacher_run / "checkpoint.pth", tmp_path)
    flags = ["--model", "resnet18", "--label-smoothing", 0.1, "--output-dir", tmp_path, "--resume", "auto"]
    text = train(*flags, "--epochs", 3, "--lr", 0.01)
    assert "note: going on with other flags than before: --epochs 2 -> 3, --lr 0.05 -> 0.01\n" in text


def test_accuracy_is_the_same_number_on_one_two_and_three_processes(train, straight_run, tmp_path):
    folder, _ = straight_run
    flags = ["--model", "shufflenet_v2_x0_5", "--test-only", "--resume", folder / "best.pth", "--output-dir", tmp_path]
    lines = []
    for processes in (None, 2, 3):
        text = train(*flags, processes=processes)
        lines += [line for line in text.splitlines() if line.startswith("Test:")]
    assert len(lines) == 3
    assert len({line.partition("Acc@1")[2] for line in lines}) == 1
    best = torch.load(folder / "best.pth", weights_only=True)
    assert best["epoch"] in range(4)


def test_two_processes_train_as_one_does_on_the_same_global_batches(train, in_processes, tmp_path, metrics):
    # No batch norm and no dropout: then the processes' gradients add up to those of the whole batch.
    script = tmp_path / "linear.py"
    script.write_text(
        "import torchvision, vision_reference.networks.by_name as m, vision_reference.train as t\n"
        "from torch import nn\n"
        "m.build_model = lambda name, classes: nn.Sequential(nn.Flatten(), nn.Linear(3072, classes))\n"
        "t.heads.check_input_sizes = lambda *a: None\n"
        "t.main(t.parse_args())\n"
    )
    results = {}
    for processes, batch in ((1, 14), (2, 7)):  # the last batch has 13 images: 7 and 6
        out = tmp_path / str(processes)
        flags = [*train.flags, "--batch-size", batch, "--epochs", 2, "--output-dir", out, "--lr", 0.01]
        statuses = in_processes([script, *flags], processes, tmp_path / "printed")
        assert not any(statuses), (tmp_path / "printed").read_text()
        results[processes] = (weights(out), metrics(out)[-1])
    one, two = results[1], results[2]
    for name, tensor in one[0].items():
        torch.testing.assert_close(tensor, two[0][name], rtol=1e-4, atol=1e-6)
    for figure in ("train_loss", "train_acc1", "val_loss", "val_acc1"):
        assert one[1][figure] == pytest.approx(two[1][figure], rel=1e-4)
    assert np.array_equal(*(np.load(tmp_path / processes / "outcomes.npy") for processes in "12"))


def test_distilling_over_two_processes_resumes_exactly(train, student_flags, tmp_path):
    train(*student_flags, "--epochs", 2, "--output-dir", tmp_path / "straight", processes=2)
    train(*student_flags, "--epochs", 1, "--output-dir", tmp_path / "stopped", processes=2)
    train(*student_flags, "--epochs", 2, "--output-dir", tmp_path / "stopped", "--resume", "auto", processes=2)
    assert_same_weights(weights(tmp_path / "straight"), weights(tmp_path / "stopped"))
    rng = torch.load(tmp_path / "stopped" / "checkpoint.pth", weights_only=True)["rng"]
    assert len(rng) == 2
    assert not torch.equal(rng[0]["torch"], rng[1]["torch"])


def test_the_teachers_file_and_weights_are_untouched_by_training(train, student_flags, teacher_run, tmp_path):
    before = (teacher_run / "best.pth").read_bytes()
    train(*student_flags, "--epochs", 1, "--output-dir", tmp_path)
    assert (teacher_run / "best.pth").read_bytes() == before


def test_bf16_channels_last_clipping_mixing_and_erasing_work_together_with_a_teacher(
    train, student_flags, tmp_path, metrics
):
    flags = "--amp --amp-dtype bf16 --clip-grad-norm 1 --mixup-alpha 0.2 --cutmix-alpha 1 --random-erase 0.2"
    schedule = "--lr-scheduler cosineannealinglr --lr-warmup-epochs 1 --lr-warmup-per-step --label-smoothing 0.1"
    more = "--ra-sampler --backend tensor --use-v2 --keep-checkpoints 0 --opt adamw --lr 1e-3"
    distillation = ["--kd-weight", 0.5, "--kd-temperature", 3]
    train(
        *student_flags,
        *distillation,
        *flags.split(),
        *schedule.split(),
        *more.split(),
        "--epochs",
        2,
        "--output-dir",
        tmp_path,
    )
    last = metrics(tmp_path)[-1]
    assert last["train_loss"] == pytest.approx(0.5 * last["kd_loss"] + 0.5 * last["ce_loss"], rel=1e-5)
    assert not list(tmp_path.glob("model_*.pth"))


def test_fp16_training_scales_its_gradients_and_clips_them_unscaled(few_digits):
    args = parse_args(["--amp", "--amp-dtype", "fp16", "--clip-grad-norm", "0.001", "--epochs", "1", "--lr", "1"])
    args.momentum = args.weight_decay = 0.0
    network = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4))
    before = network[1].weight.detach().clone()
    learner = build_learner(network, args, Rank(), CPU, torch.float16)
    assert learner.scaler.is_enabled()
    loader = loader_of(few_digits, 83, train=True)
    train_one_epoch(learner, loader, PLAIN, args, 0)
    moved = torch.cat([(network[1].weight - before).flatten(), network[1].bias.detach() * 0]).norm().item()
    assert 0 < moved <= 0.001 * 1.01  # one step of rate 1: the clipped gradient itself


def test_init_weights_give_a_student_its_start_and_another_class_count_a_new_head(train, tmp_path):
    torch.manual_seed(0)
    source = mobilenet_v3_small(num_classes=7)
    torch.save({"state_dict": {"module." + k: v for k, v in source.state_dict().items()}}, tmp_path / "w.pth.tar")
    flags = ["--model", "mobilenet_v3_small", "--init-weights", tmp_path / "w.pth.tar", "--lr", 0, "--wd", 0]
    train(*flags, "--epochs", 1, "--output-dir", tmp_path)
    trained = weights(tmp_path)
    assert trained["classifier.3.weight"].shape == (4, 1024)
    assert torch.equal(trained["features.0.0.weight"], source.state_dict()["features.0.0.weight"])
    assert torch.equal(trained["classifier.0.weight"], source.state_dict()["classifier.0.weight"])


def test_scaled_learning_rate_is_linear_in_the_global_batch():
    args = parse_args(["--lr", "0.1", "--batch-size", "128", "--scale-lr"])
    learner = build_learner(nn.Linear(2, 2), args, Rank(world_size=8), CPU, torch.bfloat16)
    assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 128 * 8 / 256)
    args = parse_args(["--lr", "0.1", "--batch-size", "128"])
    learner = build_learner(nn.Linear(2, 2), args, Rank(world_size=8), CPU, torch.bfloat16)
    assert learner.optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model resnet19", "unknown model 'resnet19'; allowed: torchvision's classification models, such as resnet"),
        ("--teacher resnet18", "--teacher needs --teacher-weights"),
        ("--kd-temperature 2", "--kd-temperature was given without --teacher"),
        ("--kd-temperature 0", "argument --kd-temperature: '0' is not a number from 0.01 to 1000"),
        ("--kd-weight 1.5", "argument --kd-weight: '1.5' is not a number from 0 to 1"),
        ("--label-smoothing -1", "argument --label-smoothing: '-1' is not a number from 0 to 1"),
        ("--lr-scheduler poly", "argument --lr-scheduler: invalid choice: 'poly' (choose from 'steplr', 'multisteplr'"),
        ("--opt lion", "argument --opt: invalid choice: 'lion' (choose from 'sgd', 'sgd_nesterov'"),
        ("--resume nowhere.pth", "no file 'nowhere.pth'"),
        ("--init-weights nowhere.pth", "there is no file 'nowhere.pth', nor is it a name such as"),
        ("--weights ResNet18_Weights.NONE", "torchvision has no weights 'ResNet18_Weights.NONE'"),
        ("--weights ResNet50_Weights.IMAGENET1K_V1", "are not weights of resnet18"),
        ("--model vit_b_16", "takes 224x224 images only, not 32x32"),
        ("--data-path /nowhere", "no folder /nowhere/val; --data-path needs train/ and val/"),
        ("--nonsense 1", "unrecognized arguments: --nonsense 1"),
    ],
)
def test_a_mistake_is_told_in_one_line(train, tmp_path, flags, message):
    text = train("--epochs", 1, "--output-dir", tmp_path, *flags.split(), expect=2)
    errors = [line for line in text.splitlines() if line.startswith("train.py: error:")]
    assert len(errors) == 1, text
    assert message in errors[0]


def test_mistakes_in_the_data_are_told_in_one_line(train, tmp_path, blank_images):
    both = {"train/cat": 3, "val/cat": 2}
    cases = [
        ({"train/cat": 3}, "no folder"),
        ({**both, "train/dog": 0, "val/dog": 1}, "no images in the folder of dog"),
        ({**both, "train/dog": 2, "val/eel": 1}, "only in train/: dog; only in val/: eel"),
    ]
    for number, (counts, message) in enumerate(cases):
        folder = blank_images(tmp_path / str(number), counts)
        text = train("--epochs", 1, "--output-dir", tmp_path, "--data-path", folder, expect=2)
        assert message in text.splitlines()[-1]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_ends_the_run_with_its_path(train, tmp_path, blank_images, workers):
    folder = blank_images(tmp_path / "data", {"train/cat": 4, "train/dog": 4, "val/cat": 2, "val/dog": 2})
    (folder / "train" / "dog" / "2.png").write_bytes(b"not an image")
    text = train("--epochs", 1, "--output-dir", tmp_path, "--data-path", folder, "--workers", workers, expect=2)
    last = text.strip().splitlines()[-1]
    assert last.startswith("train.py: error: unreadable image")
    assert str(folder / "train" / "dog" / "2.png") in last


def test_a_teacher_of_another_class_count_or_network_is_refused(train, tmp_path, digits, teacher_run):
    flags = ["--epochs", 1, "--output-dir", tmp_path, "--teacher-weights", teacher_run / "best.pth"]
    text = train(*flags, "--teacher", "resnet18", "--data-path", digits, expect=2)
    assert "the file has 4 classes, the model 10" in text
    text = train(*flags, "--teacher", "resnet34", expect=2)
    assert "resnet18" in text.splitlines()[-1]
    assert "resnet34" in text.splitlines()[-1]


def test_a_diverging_run_stops_and_keeps_the_last_good_checkpoint(train, tmp_path):
    text = train("--epochs", 3, "--lr", "1e30", "--output-dir", tmp_path, expect=2)
    assert "the loss is" in text.splitlines()[-1]
    assert not (tmp_path / "checkpoint.pth").exists()


def test_help_explains_distillation():
    args = [sys.executable, "-m", "vision_reference.train", "--help"]
    text = subprocess.run(args, capture_output=True, text=True, check=True).stdout
    for piece in ("--teacher NAME", "--kd-temperature T", "L * T^2 * KL(teacher^T || student^T)", "rule of thumb"):
        assert piece in text


def test_resnet_weights_of_the_authors_evaluate(train, tmp_path):
    network = resnet18(num_classes=4)
    state = {"module." + name: tensor for name, tensor in network.state_dict().items()}
    torch.save(
        {"arch": "resnet18", "state_dict": state, "best_acc1": torch.tensor([71.5]), "epoch": 90},
        tmp_path / "a.pth.tar",
    )
    text = train("--model", "resnet18", "--test-only", "--resume", tmp_path / "a.pth.tar", "--output-dir", tmp_path)
    assert "Acc@1" in text


def test_max_suppression_trains_is_recorded_and_excludes_label_smoothing(train, tmp_path):
    flags = ["--model", "shufflenet_v2_x0_5", "--max-suppression", "0.1", "--lr", "0.01"]
    train(*flags, "--epochs", "1", "--output-dir", tmp_path)
    assert load_checkpoint(tmp_path / "checkpoint.pth")["args"]["max_suppression"] == 0.1
    text = train(*flags, "--label-smoothing", "0.1", "--output-dir", tmp_path / "both", expect=2)
    assert text.strip().count("\n") == 0
    assert "--max-suppression" in text


class Breaks(nn.Module):
    """A network whose ``where`` is not finite any more once ``steps`` batches have passed."""

    def __init__(self, where, steps, classes=4):
        super().__init__()
        self.where, self.left = where, steps
        self.layer = nn.Linear(3072, classes)
        self.register_buffer("running_mean", torch.zeros(1))

    def forward(self, x):
        if self.training:
            self.left -= 1
            if not self.left and self.where == "weights":
                self.running_mean.fill_(torch.nan)
        logits = self.layer(x.flatten(1))
        return logits * torch.inf if not self.training and self.where == "logits" else logits


@pytest.mark.parametrize(
    ("where", "message"),
    [("weights", "the last update of epoch 0 diverged"), ("logits", "after epoch 0 the validation loss is no finite")],
)
def test_a_run_that_diverges_in_its_last_update_leaves_no_checkpoint(train, tmp_path, monkeypatch, where, message):
    monkeypatch.setattr(by_name, "build_model", lambda *_: Breaks(where, 6))
    monkeypatch.setattr(heads, "check_input_sizes", lambda *_: None)
    text = train("--epochs", 2, "--lr", 0.001, "--output-dir", tmp_path, expect=2)
    assert f"{message}" in text.splitlines()[-1]
    assert "lower --lr" in text.splitlines()[-1]
    assert not list(tmp_path.glob("*.pth"))


def test_a_teacher_that_answers_nothing_finite_is_blamed_for_it(train, tmp_path):
    teacher = small_network(0)
    teacher.conv5[1].bias.data += 10
    teacher.fc.weight.data[1] = 3e38
    torch.save(teacher.state_dict(), tmp_path / "t.pth")
    flags = ["--model", MODEL, "--teacher", MODEL, "--teacher-weights", tmp_path / "t.pth", "--epochs", 1]
    text = train(*flags, "--output-dir", tmp_path / "run", expect=2)
    assert "the teacher's logits were not finite in 6 steps of epoch 0" in text.splitlines()[-1]
    assert "--lr" not in text.splitlines()[-1]


DAMAGE = {
    "epoch": ("third", "its epoch is not what training writes there"),
    "rng": ([{"python": 3}], "the states of the random generators are damaged"),
    "optimizer": ({"state": 3, "param_groups": []}, "the optimizer in"),
    "lr_scheduler": ({"last_epoch": "soon"}, "the lr_scheduler in"),
    "best": ({"acc1": "high", "acc5": 1.0, "epoch": 0}, "its best result is"),
    "model": ([1, 2], "its model is not what training writes there"),
    "model_ema": ({"module.fc.bias": torch.zeros(4)}, "the model_ema in"),
    "description": ({"val_crop_size": -3}, "its val_crop_size is '-3'"),
}


@pytest.fixture(scope="module")
def averaged_run(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("averaged")
    train("--model", MODEL, "--epochs", 1, "--lr", 0.01, "--model-ema", "--output-dir", folder)
    return folder


@pytest.mark.parametrize("part", [*DAMAGE, "momentum", "nan momentum"])
def test_a_damaged_part_of_a_checkpoint_is_named(train, averaged_run, tmp_path, part):
    checkpoint = load_checkpoint(averaged_run / "checkpoint.pth")
    value, message = DAMAGE.get(part, (None, "its momentum_buffer does not fit the weights"))
    if part == "momentum":
        checkpoint["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(7)
    elif part == "nan momentum":
        checkpoint["optimizer"]["state"][0]["momentum_buffer"][0] = torch.nan
    else:
        checkpoint[part] = value
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    flags = [
        "--model",
        MODEL,
        "--epochs",
        2,
        "--model-ema",
        "--output-dir",
        tmp_path,
        "--resume",
        "auto",
    ]
    assert message in train(*flags, expect=2).splitlines()[-1]


def test_going_back_over_later_epochs_needs_to_be_asked_for(train, averaged_run, tmp_path, metrics):
    shutil.copytree(averaged_run, tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 1}\n{"epoch": 2}\n')
    flags = ["--model", MODEL, "--epochs", 2, "--lr", 0.01, "--output-dir", tmp_path / "run"]
    text = train(*flags, "--resume", tmp_path / "run" / "model_0.pth", expect=2)
    assert "later epochs" in text.splitlines()[-1]
    train(*flags, "--resume", tmp_path / "run" / "model_0.pth", "--overwrite")
    assert [json.loads(line)["epoch"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()] == [
        0,
        1,
    ]


def test_damaged_records_do_not_end_a_run_and_good_ones_stay(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"epoch": 0}\n\xff\xfe\n{"epoch": "one"}\n[' * 1 + b"[" * 100000 + b'\n{"epoch": 1}\n3\n{"epoch": 2}\n{"ep'
    )
    assert last_epoch(path) == 2
    MetricsFile(path, 2)
    assert path.read_text() == '{"epoch": 0}\n{"epoch": 1}\n'


@pytest.mark.parametrize(
    "flags",
    [
        "--seed -1",
        "--ra-magnitude 31",
        "--augmix-severity 11",
        "--kd-temperature inf",
        "--kd-temperature 1e300",
        "--val-crop-size 0",
        "--train-crop-size 99999",
        "--seed 18446744073709551616",
        "--momentum 1e308",
        "--lr nan",
        "--lr inf",
        "--mixup-alpha 1e308",
        "--lr-gamma 1e999",
        "--epochs -1",
        "--clip-grad-norm 0",
        "--kd-weight nan",
        "--model-ema-decay 1.1",
    ],
)
def test_numbers_out_of_range_are_refused_by_the_parser(flags, capsys):
    with pytest.raises(SystemExit) as end:
        parse_args(flags.split())
    assert end.value.code == 2
    assert f"argument {flags.split()[0]}: '" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flag",
    ["--soft-labels", "--teacher", "--teacher-weights", "--init-weights", "--weights", "--data-path", "--output-dir"],
)
def test_an_empty_value_of_an_unset_variable_is_refused(flag, capsys):
    for empty in ("", "  "):
        with pytest.raises(SystemExit):
            parse_args([flag, empty])
        assert f"argument {flag}: it is empty; is a variable unset?" in capsys.readouterr().err


def test_what_was_given_is_known_apart_from_defaults():
    assert parse_args(["--lr", "0.1", "-b", "8", "--no-channels-last", "--amp"]).given == [
        "amp", "batch_size", "channels_last", "lr",
    ]  # fmt: skip


def test_the_parser_knows_the_tails_of_the_codec():
    assert arguments.TAILS == codec.TAILS


def test_help_and_mistakes_are_answered_without_importing_torch():
    program = (
        "import sys, runpy\nsys.argv = ['train.py', *sys.argv[1:]]\n"
        "try:\n    runpy.run_path('vision_reference/train.py', run_name='__main__')\n"
        "finally:\n    print('torch' in sys.modules)"
    )
    for flags in (["--help"], ["--test-only"], ["--lr", "x"]):
        done = subprocess.run([sys.executable, "-c", program, *flags], capture_output=True, text=True, cwd=ROOT)
        assert done.stdout.splitlines()[-1] == "False"
        assert done.returncode == (0 if flags == ["--help"] else 2)


def test_a_fault_in_training_ends_the_process_though_workers_wait(train, tmp_path):
    script = f"""
import vision_reference.train as training

training.distillation_loss = lambda *_, **__: 1 / 0
training.main(training.parse_args({[*train.flags, "--workers", "1", "--output-dir", str(tmp_path)]!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"
