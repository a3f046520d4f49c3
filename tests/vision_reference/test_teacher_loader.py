"""A teacher's answers beside each batch, and what is asked of CUDA to have them made ahead of time."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn

from vision_reference.distillation import Teacher
from vision_reference.loaders import TeacherLoader

CPU = torch.device("cpu")


class Batches:
    """Stands in for a loader: the images of epoch e are e + 0, 1, 2, ..."""

    def __init__(self, device=CPU):
        self.step_sizes = [2, 2, 1]
        self.device = device
        self.epoch = 0

    def __len__(self):
        return len(self.step_sizes)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        images = self.epoch + torch.arange(5.0).unsqueeze(1)
        for labels in torch.arange(5).split(2):
            yield images[labels].to(self.device), labels.to(self.device)


def network():
    torch.manual_seed(0)
    return nn.Linear(1, 3)


def teacher_on(device):
    return Teacher(network(), device, torch.contiguous_format, nullcontext)


def test_every_batch_comes_with_the_teachers_answer_to_its_images():
    loader = TeacherLoader(Batches(), teacher_on(CPU))
    loader.set_epoch(7)
    batches = list(loader)
    assert len(loader) == len(batches) == 3
    assert loader.step_sizes == [2, 2, 1]
    assert torch.cat([images for images, _, _ in batches]).flatten().tolist() == [7, 8, 9, 10, 11]
    assert torch.cat([labels for _, labels, _ in batches]).tolist() == [0, 1, 2, 3, 4]
    for images, _, answers in batches:
        torch.testing.assert_close(answers.clone(), network()(images).detach())


class FakeStreams:
    """Records what is asked of two streams; ``torch.cuda`` itself needs a GPU."""

    def __init__(self, monkeypatch):
        self.log, self.current = [], "main"

        class Stream:
            def __init__(self, name):
                self.name = name

            def wait_stream(stream, other):
                self.log.append(f"{stream.name} waits for {other.name}")

        main = Stream("main")
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side"))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
        monkeypatch.setattr(torch.cuda, "stream", self._enter)

    @contextmanager
    def _enter(self, stream):
        self.current = stream.name
        yield
        self.current = "main"

    def note(self, what):
        self.log.append(f"{what} on {self.current}")


def test_on_a_gpu_the_next_batch_is_made_beside_the_work_on_this_one(monkeypatch):
    streams = FakeStreams(monkeypatch)

    class NotedBatches(Batches):
        def __iter__(self):
            for number, batch in enumerate(super().__iter__()):
                streams.note(f"batch {number}")
                yield batch

    teacher = teacher_on(CPU)
    teacher.device = torch.device("cuda", 0)
    answers = []
    for number, (_, _, answer) in enumerate(TeacherLoader(NotedBatches(), teacher)):
        streams.note(f"step {number}")
        answers.append(answer)
    begins_after_the_steps_so_far, ready = "side waits for main", "main waits for side"
    assert streams.log == [
        begins_after_the_steps_so_far,
        "batch 0 on side",
        ready,
        begins_after_the_steps_so_far,
        "batch 1 on side",
        "step 0 on main",
        ready,
        begins_after_the_steps_so_far,
        "batch 2 on side",
        "step 1 on main",
        ready,
        begins_after_the_steps_so_far,
        "step 2 on main",
    ]
    assert torch.equal(
        torch.cat(answers), torch.cat([answer for _, _, answer in TeacherLoader(Batches(), teacher_on(CPU))])
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_answers_on_a_gpu_are_those_to_the_same_images():
    gpu = torch.device("cuda", torch.cuda.current_device())
    reference = network().to(gpu)
    seen = 0
    for images, _, answers in TeacherLoader(Batches(gpu), teacher_on(gpu)):
        torch.testing.assert_close(answers.clone(), reference(images).detach())
        seen += len(images)
    assert seen == 5
