"""A teacher's answers beside each batch, and what is asked of CUDA to have them made ahead of time."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn

from vision_reference.distillation import Teacher
from vision_reference.images.batch import Batch
from vision_reference.loaders import TeacherLoader

CPU = torch.device("cpu")


class Batches:
    """Stands in for a loader: the images of epoch e are e + 0, 1, 2, ..."""

    def __init__(self, device=CPU):
        self.step_sizes = [2, 2, 1]
        self.device = device

    def __len__(self):
        return len(self.step_sizes)

    def epoch(self, number, first=0):
        images = number + torch.arange(5.0).unsqueeze(1)
        for labels in torch.arange(5).split(2):
            yield Batch(images[labels].to(self.device), labels.to(self.device), labels)


def network():
    torch.manual_seed(0)
    return nn.Linear(1, 3)


def teacher_on(device):
    return Teacher(network(), device, torch.contiguous_format, nullcontext)


def test_every_batch_comes_with_the_teachers_answer_to_its_images():
    loader = TeacherLoader(Batches(), teacher_on(CPU))
    batches = list(loader.epoch(7))
    assert len(loader) == len(batches) == 3
    assert loader.step_sizes == [2, 2, 1]
    assert torch.cat([batch.images for batch in batches]).flatten().tolist() == [7, 8, 9, 10, 11]
    assert torch.cat([batch.targets for batch in batches]).tolist() == [0, 1, 2, 3, 4]
    assert torch.cat([batch.indices for batch in batches]).tolist() == [0, 1, 2, 3, 4]
    for images, _, _, answers in batches:
        torch.testing.assert_close(answers.clone(), network()(images).detach())


class FakeStreams:
    """Records what is asked of two streams; ``torch.cuda`` itself needs a GPU."""

    def __init__(self, monkeypatch):
        self.log, self.current = [], "main"

        class Stream:
            def __init__(self, name):
                self.name, self.device = name, torch.device("cuda", 0)

            def wait_stream(stream, other):
                self.log.append(f"{stream.name} waits for {other.name}")

        main = Stream("main")
        self.made = 0

        def make(device):
            self.made += 1
            return Stream("side")

        monkeypatch.setattr(torch.cuda, "Stream", make)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
        monkeypatch.setattr(torch.cuda, "stream", self._enter)

    @contextmanager
    def _enter(self, stream):
        self.current = stream.name
        yield
        self.current = "main"

    def note(self, what):
        self.log.append(f"{what} on {self.current}")


@pytest.fixture
def streams(monkeypatch):
    return FakeStreams(monkeypatch)


@pytest.fixture
def noted_loader(streams):
    """A loader on an imitated GPU that notes when its batches are made."""

    class NotedBatches(Batches):
        def epoch(self, number, first=0):
            for step, batch in enumerate(super().epoch(number)):
                streams.note(f"batch {step}")
                yield batch

    teacher = teacher_on(CPU)
    teacher.device = torch.device("cuda", 0)
    return lambda **options: TeacherLoader(NotedBatches(), teacher, **options)


def test_on_a_gpu_the_next_batch_is_made_beside_the_work_on_this_one(streams, noted_loader):
    answers = []
    for step, batch in enumerate(noted_loader().epoch(0)):
        streams.note(f"step {step}")
        answers.append(batch.logits)
    begins_after_the_steps_so_far, ready = "side waits for main", "main waits for side"
    assert streams.log == [
        "batch 0 on main",
        "step 0 on main",
        begins_after_the_steps_so_far,
        "batch 1 on side",
        ready,
        begins_after_the_steps_so_far,
        "batch 2 on side",
        "step 1 on main",
        ready,
        begins_after_the_steps_so_far,
        "step 2 on main",
    ]
    plain = TeacherLoader(Batches(), teacher_on(CPU)).epoch(0)
    assert torch.equal(torch.cat(answers), torch.cat([batch.logits for batch in plain]))


def test_all_epochs_share_one_stream(streams, noted_loader):
    loader = noted_loader()
    for number in range(5):
        assert len(list(loader.epoch(number))) == 3
    assert streams.made == 1


def test_looking_ahead_can_be_left_out(streams, noted_loader):
    for step, _ in enumerate(noted_loader(look_ahead=False).epoch(0)):
        streams.note(f"step {step}")
    assert streams.log == [f"{what} {step} on main" for step in range(3) for what in ("batch", "step")]
    assert streams.made == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_answers_on_a_gpu_are_those_to_the_same_images():
    gpu = torch.device("cuda", torch.cuda.current_device())
    reference = network().to(gpu)
    seen = 0
    for images, _, _, answers in TeacherLoader(Batches(gpu), teacher_on(gpu)).epoch(0):
        torch.testing.assert_close(answers.clone(), reference(images).detach())
        seen += len(images)
    assert seen == 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_on_a_gpu_stays_what_it_is_after_the_first_epochs():
    gpu = torch.device("cuda", torch.cuda.current_device())
    network = nn.Sequential(nn.Linear(1, 1 << 20), nn.ReLU(), nn.Linear(1 << 20, 3))  # several MB of activations
    loader = TeacherLoader(Batches(gpu), Teacher(network, gpu, torch.contiguous_format, nullcontext))
    reserved = []
    for number in range(40):
        list(loader.epoch(number))
        reserved.append(torch.cuda.memory_reserved(gpu))
    assert reserved[-1] == reserved[2]
