"""Several teachers of one student: the mean of their probabilities, each with its own classes and pixels."""

import pytest
import torch

from vision_reference.arguments import named_teachers, parse_args
from vision_reference.errors import UserError
from vision_reference.images.batch import Batch
from vision_reference.images.presets import PRESETS
from vision_reference.losses.kd import LOSSES, kd_divergence, standardized
from vision_reference.losses.wide import average
from vision_reference.machine import Machine, Rank
from vision_reference.networks.by_name import build_model
from vision_reference.train import add_teachers

CPU = torch.device("cpu")
MODEL = "resnet8"
CLASSES = ["0", "1", "2", "3"]


def answers(count, scale=3.0, classes=7):
    generator = torch.Generator().manual_seed(count)
    return [scale * torch.randn(5, classes, generator=generator, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 64.0])
@pytest.mark.parametrize("count", [2, 3])
def test_the_loss_of_several_teachers_is_that_of_their_mean_probabilities(count, temperature):
    teachers = answers(count)
    student = torch.randn(5, 7, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    p = sum(torch.softmax(z / temperature, dim=1) for z in teachers) / count
    q = torch.softmax(student / temperature, dim=1)
    expected = temperature**2 * (p * (p / q).log()).sum(dim=1).mean()
    torch.testing.assert_close(kd_divergence(student, average(teachers, temperature), temperature), expected)


def test_the_log_of_the_mean_survives_where_probabilities_underflow():
    first, second = torch.tensor([[0.0, -5000.0]]), torch.tensor([[0.0, -6000.0]])
    # log((e^-5000 + e^-6000) / 2) = -5000 - log 2; as probabilities both are 0 in float64
    torch.testing.assert_close(average([first, second], 1.0)[0, 1].item(), -5000 - 0.6931471805599453)


@pytest.mark.parametrize("name", LOSSES)
def test_a_teacher_asked_twice_is_that_teacher_for_every_loss(name):
    (teacher,) = answers(1)
    student = torch.randn(5, 7, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    targets = torch.arange(5)
    twice = LOSSES[name](student, average([teacher, teacher], 3.0), targets, 3.0)
    torch.testing.assert_close(twice, LOSSES[name](student, teacher, targets, 3.0))


def test_standardized_logits_of_several_teachers_are_those_of_the_log_of_their_mean():
    teachers, temperature = answers(2), 2.0
    student = torch.randn(5, 7, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    log_mean = (sum(torch.softmax(z / temperature, dim=1) for z in teachers) / 2).log()

    def z_scores(z):
        return (z - z.mean(dim=1, keepdim=True)) / z.std(dim=1, keepdim=True, correction=0)

    p, q = (torch.softmax(z_scores(z) / temperature, dim=1) for z in (log_mean, student))
    expected = temperature**2 * (p * (p / q).log()).sum(dim=1).mean()
    loss = standardized(student, average(teachers, temperature), torch.arange(5), temperature)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-8)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Files of two teachers of the same classes in different orders, trained on pixels of different presets."""
    folder, networks = tmp_path_factory.mktemp("teachers"), []
    for seed, (preset, classes) in enumerate([("digits", CLASSES), ("imagenet", CLASSES[::-1])]):
        torch.manual_seed(seed)
        network = build_model(MODEL, 4).eval()
        network.fc.weight.data.mul_(50)
        told = {"classes": classes, "preset": preset}
        run = {"label_smoothing": 0.1 * seed}
        file = folder / f"{preset}.pth"
        torch.save({"model": network.state_dict(), "arch": MODEL, "description": told, "args": run}, file)
        networks.append(network)
    return f"{folder}/digits.pth,{folder}/imagenet.pth", networks


class OneBatch:
    """A loader of one batch of pixels normalized as ``preset`` has it."""

    def __init__(self, pixels, preset):
        mean, std = (torch.tensor(part).view(3, 1, 1) for part in (preset.mean, preset.std))
        self.batch = Batch(
            (pixels - mean) / std, torch.zeros(len(pixels), dtype=torch.int64), torch.arange(len(pixels))
        )
        self.step_sizes = [len(pixels)]

    def __len__(self):
        return 1

    def epoch(self, number, first=0):
        return iter([self.batch][first:])


def test_each_teacher_has_its_own_pixels_and_its_classes_by_name(teachers, capsys):
    files, (first, second) = teachers
    flags = ["--teacher", f"{MODEL},{MODEL}", "--teacher-weights", files, "--preset", "digits", "--kd-temperature", "2"]
    pixels = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    machine = Machine(
        Rank(), CPU, torch.contiguous_format, torch.bfloat16, lambda: torch.autocast("cpu", enabled=False)
    )
    loader, known = add_teachers(OneBatch(pixels, PRESETS["digits"]), parse_args(flags), CLASSES, machine)
    (batch,) = loader.epoch(0)

    with torch.no_grad():
        mean, std = (torch.tensor(part).view(3, 1, 1) for part in (PRESETS["imagenet"].mean, PRESETS["imagenet"].std))
        own = [first((pixels - 0.5) / 0.5), second((pixels - mean) / std).flip(1)]
    expected = sum(torch.softmax(z.double() / 2, dim=1) for z in own) / 2
    torch.testing.assert_close(torch.softmax(batch.logits / 2, dim=1), expected, rtol=1e-4, atol=1e-6)

    said = capsys.readouterr().out
    assert f"{files.split(',')[1]} was trained with --label-smoothing 0.1; at a temperature of 2" in said
    assert f"{files.split(',')[1]} is shown pixels as it was trained on them" in said
    assert files.split(",")[0] not in said
    assert [one["source"] for one in known] == files.split(",")
    assert len({one["weights_sha256"] for one in known}) == 2


def test_two_teachers_running_or_stored_teach_the_same_and_resume_to_the_bit(train, store, teachers, tmp_path, metrics):
    files, _ = teachers
    running = ["--model", MODEL, "--teacher", f"{MODEL},{MODEL}", "--teacher-weights", files, "--kd-temperature", 2]
    train(*running, "--lr", 0.01, "--epochs", 2, "--output-dir", tmp_path / "straight")
    train(*running, "--lr", 0.01, "--epochs", 1, "--output-dir", tmp_path / "resumed")
    train(*running, "--lr", 0.01, "--epochs", 2, "--output-dir", tmp_path / "resumed", "--resume", "auto")
    straight, resumed = (
        torch.load(tmp_path / run / "checkpoint.pth", weights_only=True) for run in ("straight", "resumed")
    )
    assert all(torch.equal(tensor, resumed["model"][name]) for name, tensor in straight["model"].items())
    known = straight["description"]["teachers"]
    assert [one["source"] for one in known] == files.split(",")

    views = ["--views", 2, "--seed", 1]
    for file in files.split(","):
        folder = tmp_path / file.rpartition("/")[2]
        store("--teacher", MODEL, "--teacher-weights", file, *views, "--output-dir", folder)
        views = ["--same-views-as", folder]
    stores = f"{tmp_path}/digits.pth,{tmp_path}/imagenet.pth"
    student = ["--model", MODEL, "--soft-labels", stores, "--kd-temperature", 2]
    train(*student, "--lr", 0.01, "--epochs", 2, "--output-dir", tmp_path / "stored")
    losses = [[record["kd_loss"] for record in metrics(tmp_path / run)] for run in ("straight", "stored")]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    stored = torch.load(tmp_path / "stored" / "checkpoint.pth", weights_only=True)["description"]["teachers"]
    assert [one["weights_sha256"] for one in stored] == [one["weights_sha256"] for one in known]
    # resumed from other teachers: said, not hidden
    student[3] = f"{tmp_path}/imagenet.pth,{tmp_path}/digits.pth"
    text = train(*student, "--lr", 0.01, "--epochs", 3, "--output-dir", tmp_path / "stored", "--resume", "auto")
    assert "note: going on with another teacher than before" in text


@pytest.mark.parametrize(
    ("names", "weights", "found"),
    [
        ("a", "x", [("a", "x")]),
        ("a,b", "x,y", [("a", "x"), ("b", "y")]),
        ("a, b", "x, y", [("a", "x"), ("b", "y")]),
        ("a", "with,comma", [("a", "with,comma")]),
        ("a", "x,y", None),
        ("a,b", "x", None),
        ("a,b,", "x,y,", None),
        ("a,,b", "x,y", None),
        ("a,a", "x,x", None),
    ],
)
def test_as_many_weights_as_networks_are_asked_for(names, weights, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "with,comma").touch()
    if found is None:
        with pytest.raises(UserError, match="--teacher-weights"):
            named_teachers(names, weights)
    else:
        assert named_teachers(names, weights) == found


def test_a_store_of_several_teachers_is_refused_with_the_way_to_go(store, teachers, tmp_path):
    flags = ["--teacher", f"{MODEL},{MODEL}", "--teacher-weights", teachers[0], "--output-dir", tmp_path / "s"]
    text = store(*flags, expect=2)
    assert "store each in its own folder" in text
    assert "--soft-labels DIR,DIR2" in text
    assert not (tmp_path / "s").exists()
