"""Images without labels beside the training set: what they weigh, and that they are seen, stored and resumed alike."""

import hashlib
import os
import shutil
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vision_reference.arguments import parse_args
from vision_reference.data import Source, list_samples
from vision_reference.distillation import Teacher, distillation_loss
from vision_reference.errors import UserError
from vision_reference.images.fingerprint import describe_data
from vision_reference.images.folders import UNLABELLED, unlabelled_images
from vision_reference.learner import build_learner
from vision_reference.loaders import TeacherLoader
from vision_reference.losses import labels as of_labels
from vision_reference.losses.kd import kd_divergence
from vision_reference.losses.labels import label_loss, labelled_loss
from vision_reference.machine import Machine, Rank
from vision_reference.networks.by_name import build_model
from vision_reference.train import open_data, train_one_epoch

CPU = torch.device("cpu")
MODEL = "resnet8"
PLAIN = Machine(Rank(), CPU, torch.contiguous_format, torch.bfloat16, nullcontext)


@pytest.fixture(scope="module")
def pictures(digits, tmp_path_factory):
    """31 images in nested folders, none of them among ``few_digits``."""
    root = tmp_path_factory.mktemp("unlabelled")
    for label in range(4, 8):
        for number, file in enumerate(sorted((digits / "train" / str(label)).iterdir())[: 8 - label // 7]):
            folder = root / ("" if number % 3 == 0 else "a/b" if number % 3 == 1 else "c")
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, folder / f"{label}-{number}.png")
    (root / "c" / "notes.txt").write_text("no image")
    return root


def problem(seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.tensor([2, UNLABELLED, 0, UNLABELLED, UNLABELLED, 4])


@pytest.mark.parametrize("kd_weight", [1.0, 0.7])
@pytest.mark.parametrize(("smoothing", "suppression"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.1)])
def test_each_image_counts_once_and_one_without_a_label_has_the_teachers_term_alone(kd_weight, smoothing, suppression):
    student, teacher, targets = problem()
    total, ce = 0.0, []
    for z, t, label in zip(student, teacher, targets.tolist(), strict=True):
        total += kd_weight * kd_divergence(z.unsqueeze(0), t.unsqueeze(0), 2.0).item()
        if label != UNLABELLED:
            lprobs = torch.log_softmax(z, dim=0)
            ce.append(
                -((1 - smoothing) * lprobs[label] + smoothing * lprobs.mean()) + suppression * (z.max() - z.mean())
            )
    losses = distillation_loss(
        student,
        targets,
        teacher,
        temperature=2.0,
        kd_weight=kd_weight,
        label_smoothing=smoothing,
        max_suppression=suppression,
        unlabelled=True,
    )
    assert losses.total.item() == pytest.approx((total + (1 - kd_weight) * sum(ce).item()) / 6, rel=1e-12)
    assert losses.ce.item() == pytest.approx(sum(ce).item() / 3, rel=1e-12)
    # However a batch is shared by processes or micro-batches, parts that count by their images add up to it.
    parts = [
        len(targets[part])
        / 6
        * distillation_loss(
            student[part],
            targets[part],
            teacher[part],
            temperature=2.0,
            kd_weight=kd_weight,
            label_smoothing=smoothing,
            max_suppression=suppression,
            unlabelled=True,
        ).total
        for part in (slice(0, 1), slice(1, 2), slice(2, 6))
    ]
    assert sum(parts).item() == pytest.approx(losses.total.item(), rel=1e-12)


def test_gradient_equals_finite_differences_and_is_finite_without_any_label():
    student, teacher, targets = problem()

    def loss(z, labels=targets):
        options = {"temperature": 2.0, "kd_weight": 0.6, "label_smoothing": 0.1, "unlabelled": True}
        return distillation_loss(z, labels, teacher, **options).total

    assert torch.autograd.gradcheck(loss, student.requires_grad_())
    none = torch.full_like(targets, UNLABELLED)
    (gradient,) = torch.autograd.grad(loss(student, none), student)
    (of_teacher,) = torch.autograd.grad(0.6 * kd_divergence(student, teacher, 2.0), student)
    torch.testing.assert_close(gradient, of_teacher)


@pytest.mark.parametrize(("smoothing", "suppression"), [(0.0, 0.0), (0.2, 0.0), (0.0, 0.2)])
def test_where_all_images_have_labels_the_loss_is_the_plain_one(smoothing, suppression):
    student, _, _ = problem()
    targets = torch.arange(6) % 5
    loss, share = labelled_loss(student, targets, smoothing, suppression)
    torch.testing.assert_close(loss, label_loss(student, targets, smoothing, suppression))
    assert share == 1
    assert of_labels.UNLABELLED == UNLABELLED
    assert labelled_loss(student, torch.full((6,), UNLABELLED), smoothing, suppression) == (0, 0)


class InFloat64:
    def __init__(self, loader):
        self.loader, self.step_sizes = loader, loader.step_sizes

    def __len__(self):
        return len(self.loader)

    def epoch(self, number, first=0):
        return (batch._replace(images=batch.images.double()) for batch in self.loader.epoch(number, first))


def loaders(few_digits, pictures, *flags, rank=None):
    command = ["--data-path", str(few_digits), "--preset", "digits", "--device", "cpu", "--workers", "0", "-b", "16"]
    command += ["--unlabelled", str(pictures), "--teacher", "x", "--teacher-weights", "y", "--seed", "1"]
    args = parse_args([*command, "--lr", "0.05", "--wd", "1e-3", *map(str, flags)])
    loader, _, data = open_data(args, rank or Rank(), CPU, torch.contiguous_format)
    return args, loader, data


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.Tanh(), nn.AvgPool2d(5), nn.Flatten(), nn.Linear(72, 4)
    ).double()


def test_training_equals_a_plain_pytorch_loop_step_by_step(few_digits, pictures):
    args, loader, data = loaders(few_digits, pictures, "--kd-temperature", 2, "--kd-weight", 0.7, "--epochs", 1)
    assert data.counts == {"training": 83 + 31, "unlabelled": 31, "validation": 37}
    loader, teacher, student = InFloat64(loader), network(9), network(0)
    learner = build_learner(student, args, PLAIN.rank, CPU, torch.bfloat16)
    plain = network(0)
    optimizer = torch.optim.SGD(plain.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    loss_sum = right = 0.0
    for images, labels, indices in loader.epoch(0):
        assert [data.train[index][1] for index in indices.tolist()] == labels.tolist()
        logits = plain(images)
        p = F.softmax(teacher(images).detach() / 2, dim=1)
        kd = 4 * (p * (p.log() - F.log_softmax(logits / 2, dim=1))).sum(dim=1)
        has = labels >= 0
        ce = torch.zeros_like(kd)
        ce[has] = -F.log_softmax(logits, dim=1)[has, labels[has]]
        loss = (0.7 * kd + 0.3 * ce).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(images)
        right += (logits.argmax(dim=1) == labels).sum().item()
    taught = TeacherLoader(loader, Teacher(teacher, CPU, torch.contiguous_format, nullcontext))
    figures = train_one_epoch(learner, taught, PLAIN, args, 0)
    assert figures["loss"] == pytest.approx(loss_sum / 114, rel=1e-9)
    assert figures["acc1"] == pytest.approx(100 * right / 83)
    for (name, ours), theirs in zip(student.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("loader", ["torchvision", "dali"])
def test_processes_share_both_kinds_shuffled_together(few_digits, pictures, loader):
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    alone = list(loaders(few_digits, pictures, "-b", 20, "--loader", loader)[1].epoch(1))
    shares = [
        loaders(few_digits, pictures, "-b", 10, "--loader", loader, rank=Rank(rank, 2))[1].epoch(1) for rank in (0, 1)
    ]
    for whole, *parts in zip(alone, *shares, strict=True):
        for name in ("indices", "targets"):
            assert sorted(torch.cat([getattr(part, name) for part in parts]).tolist()) == sorted(
                getattr(whole, name).tolist()
            )
        pixels = {
            index: image for part in parts for index, image in zip(part.indices.tolist(), part.images, strict=True)
        }
        assert all(
            torch.equal(pixels[index], image) for index, image in zip(whole.indices.tolist(), whole.images, strict=True)
        )
    mixed = [{label == UNLABELLED for label in batch.targets.tolist()} for batch in alone]
    assert mixed.count({True, False}) >= 5


def test_a_run_resumes_to_the_bit_and_learns_from_a_store_as_from_its_teacher(
    train, store, pictures, tmp_path, metrics, few_digits
):
    torch.manual_seed(0)
    torch.save({"model": build_model(MODEL, 4).state_dict(), "arch": MODEL}, tmp_path / "t.pth")
    teacher = ["--teacher", MODEL, "--teacher-weights", tmp_path / "t.pth"]
    run = ["--model", MODEL, "--unlabelled", pictures, "--kd-weight", 0.7, "--kd-temperature", 2, "--lr", 0.01]
    text = train(*run, *teacher, "--epochs", 2, "--output-dir", tmp_path / "straight")
    assert "114 training (31 of them without a label) and 37 validation images, 4 classes" in text
    train(*run, *teacher, "--epochs", 1, "--output-dir", tmp_path / "resumed")
    train(*run, *teacher, "--epochs", 2, "--output-dir", tmp_path / "resumed", "--resume", "auto")
    straight, resumed = (
        torch.load(tmp_path / name / "checkpoint.pth", weights_only=True) for name in ("straight", "resumed")
    )
    assert all(torch.equal(tensor, resumed["model"][name]) for name, tensor in straight["model"].items())
    assert straight["description"]["images"] == {"training": 114, "unlabelled": 31, "validation": 37}

    folder = tmp_path / "store"
    text = store(*teacher, "--unlabelled", pictures, "--views", 2, "--seed", 1, "--output-dir", folder)
    assert "each of 114 images" in text
    moved = tmp_path / "elsewhere" / "pictures"
    shutil.copytree(pictures, moved)
    run[run.index("--unlabelled") + 1] = moved
    train(*run, "--soft-labels", folder, "--epochs", 2, "--output-dir", tmp_path / "stored")
    for online, offline in zip(metrics(tmp_path / "straight"), metrics(tmp_path / "stored"), strict=True):
        for figure in ("train_loss", "kd_loss", "ce_loss"):
            assert offline[figure] == pytest.approx(online[figure], rel=2e-3)
    less = ["--model", MODEL, "--soft-labels", folder, "--output-dir", tmp_path / "less"]
    text = train(*less, expect=2)
    assert "is about 114 images, --data-path has 83; give --unlabelled and --skip-unreadable as they were then" in text
    (moved / "4-0.png").unlink()
    text = train(*less, "--unlabelled", moved, expect=2)
    assert "is about 114 images, --data-path has 113" in text


def test_any_nesting_is_found_in_a_fixed_order_and_every_file_once(pictures, tmp_path):
    found = [path for path, label in unlabelled_images(pictures) if label == UNLABELLED]
    assert found == sorted(found, key=lambda path: (os.path.dirname(path), path))
    assert sorted(found) == sorted(map(str, pictures.rglob("*.png")))
    (tmp_path / "linked").symlink_to(pictures)
    (tmp_path / "again").symlink_to(tmp_path)  # back to itself: not followed
    assert len(unlabelled_images(tmp_path)) == 31
    assert len(unlabelled_images(tmp_path / "linked")) == 31


@pytest.mark.parametrize("kind", ["missing", "a file", "empty", "training", "validation", "twice"])
def test_what_cannot_be_unlabelled_is_told_in_one_line(few_digits, tmp_path, kind):
    root = tmp_path / "more"
    if kind == "a file":
        root.write_text("")
    elif kind != "missing":
        (root / "below").mkdir(parents=True)
        (root / "below" / "readme.txt").touch()
    line = {"missing": "is not there", "a file": "is a file", "empty": "holds no images"}.get(kind, "are the same file")
    if kind == "training":
        (root / "x.png").hardlink_to(next((few_digits / "train" / "2").iterdir()))
    elif kind == "validation":
        (root / "x.png").symlink_to(next((few_digits / "val" / "2").iterdir()))
    elif kind == "twice":
        shutil.copy(next((few_digits / "val" / "2").iterdir()), root / "x.png")
        (root / "below" / "y.png").symlink_to(root / "x.png")
    flags = ["--data-path", str(few_digits), "--unlabelled", str(root), "--teacher", "x", "--teacher-weights", "y"]
    with pytest.raises(UserError, match=f"--unlabelled.*{line}"):
        list_samples(Source.of(parse_args(flags)), Rank())


def test_broken_images_are_left_out_and_none_left_is_said(few_digits, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(pictures, tmp_path / "more")
    files = sorted((tmp_path / "more").rglob("*.png"))
    flags = [
        "--data-path",
        few_digits,
        "--unlabelled",
        tmp_path / "more",
        "--skip-unreadable",
        "--output-dir",
        tmp_path,
    ]
    args = parse_args([*map(str, flags), "--teacher", "x", "--teacher-weights", "y", "--workers", "0"])
    files[0].write_bytes(b"x")
    assert list_samples(Source.of(args), Rank()).counts == {"training": 113, "unlabelled": 30, "validation": 37}
    assert (tmp_path / "unreadable_unlabelled.txt").read_text() == f"{files[0]}\n"
    for file in files:
        file.write_bytes(b"x")
        os.utime(file.parent, ns=(1, 1))
    with pytest.raises(UserError, match=r"none of the images in --unlabelled .*more can be read"):
        list_samples(Source.of(args), Rank())


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("", "images without labels need a teacher; give --teacher or --soft-labels"),
        ("--teacher x --teacher-weights y --kd-weight 0", "--unlabelled with --kd-weight 0"),
        ("--teacher x --teacher-weights y --mixup-alpha 0.2", "--mixup-alpha mixes labels"),
        ("--soft-labels x --cutmix-alpha 1", "does not go with --soft-labels"),
        ("--teacher x --teacher-weights y --cutmix-alpha 1", "--cutmix-alpha mixes labels"),
    ],
)
def test_flags_that_have_no_meaning_without_labels_are_refused(flags, line):
    with pytest.raises(UserError, match=line):
        parse_args(["--unlabelled", "somewhere", *flags.split()])


def test_a_loss_that_needs_labels_is_refused(train, pictures, tmp_path):
    flags = ["--unlabelled", pictures, "--teacher", "x", "--teacher-weights", "y", "--output-dir", tmp_path]
    text = train(*flags, "--kd-loss", "dkd:beta=2", expect=2)
    assert "--kd-loss dkd:beta=2 needs the label of each image; drop --unlabelled" in text


def test_what_a_store_of_labelled_images_was_made_from_reads_as_before():
    # Stores of earlier versions say nothing of unlabelled images; the digest of labelled ones is the same.
    here = os.path.abspath(__file__)
    size = os.path.getsize(here)
    told = describe_data([(here, 0), (here, 1)], ["a", "b"])
    name = os.path.basename(here)
    lines = "".join(f"/{name}\0{size}\0{label}\n" for label in (0, 1))
    assert told["sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    assert (told["images"], told["unlabelled"]) == (2, 0)
