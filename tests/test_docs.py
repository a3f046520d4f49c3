"""The code and commands of the documentation run as they stand there."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from vision_reference import predict, store_soft_labels, train
from vision_reference.arguments import parse_args, parse_store_args

ROOT = Path(__file__).resolve().parents[1]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def parts():
    """All names that docs/parts.md defines."""
    names: dict = {}
    exec("\n".join(blocks("parts.md", "python")), names)
    return names


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes as the page's data set wants them, and as folders."""
    root = tmp_path_factory.mktemp("docs")
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6)):
        for number in range(count):
            image = Image.fromarray(generator.integers(0, 256, (36, 36, 3), dtype=np.uint8))
            name = ("wren", "crow")[number % 2]
            for path in (root / f"{split}-images" / f"{name}_{number}.png", root / split / name / f"{number}.png"):
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
    return root


def test_extending(pictures, tmp_path, monkeypatch, capsys):
    (code,) = blocks("extending.md", "python")
    assert code.count("\n") < 40
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("mine.py").write_text(code)
    picture = next((pictures / "val-images").iterdir())
    commands = re.sub(r"\\\n", " ", blocks("extending.md", "sh")[0]).replace("DATA", str(pictures))
    ran = []
    for line in commands.splitlines():
        words = shlex.split(line.replace("picture.png", str(picture)))
        if words[0] == "export":
            continue
        few = ["--epochs", "1", "--workers", "0", "-b", "6", "--preset", "cifar10", "--seed", "1"]
        if words[1].endswith("train.py"):
            train.main(parse_args([*words[2:], "--device", "cpu", *few]))
        else:
            assert predict.main(predict.parse_args([*words[2:], "--device", "cpu"])) == 0
        ran.append(Path(words[1]).name)
    assert ran == ["train.py", "train.py", "predict.py"]
    assert re.search(r"(wren|crow) \d", capsys.readouterr().out)


def test_a_running_teacher_in_a_plain_loop(parts):
    torch.manual_seed(0)
    big, student = (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)) for _ in range(2))
    batches = [(torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])) for _ in range(3)]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    images = torch.cat([images for images, _ in batches])

    def distance():
        with torch.no_grad():
            return F.kl_div(student(images).log_softmax(1), big(images).softmax(1), reduction="batchmean").item()

    before = distance()
    for _ in range(20):
        parts["train_epoch"](student, big, batches, optimizer)
    assert distance() < 0.2 * before


def test_a_stored_teacher_in_a_plain_loop(parts, pictures, tmp_path):
    """The logits that come with a batch are the teacher's for these very pixels."""
    common = ["--data-path", str(pictures), "--preset", "cifar10", "--device", "cpu", "--workers", "0"]
    flags = ["--model", "resnet8", "--epochs", "1", "-b", "6", "--seed", "1", "--output-dir", str(tmp_path / "teacher")]
    train.main(parse_args([*common, *flags]))
    teacher = ["--teacher", "resnet8", "--teacher-weights", str(tmp_path / "teacher" / "checkpoint.pth")]
    storing = ["--views", "2", "--output-dir", str(tmp_path / "store"), "-b", "5"]
    store_soft_labels.main(parse_store_args([*common, *teacher, *storing]))
    from vision_reference.networks.by_name import load_network

    network, _ = load_network(tmp_path / "teacher" / "checkpoint.pth")
    seen = 0
    for images, labels, logits in parts["taught_batches"](tmp_path / "store", pictures / "train", "cifar10", 3, 5):
        with torch.no_grad():
            expected = network(images)
        shift = expected.amax(1, keepdim=True) - logits.float().amax(1, keepdim=True)
        torch.testing.assert_close(logits.float() + shift, expected, rtol=2e-3, atol=2e-3)
        seen += len(labels)
    assert seen == 12


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_fused_loss_in_a_hugging_face_model_is_its_dense_definition(parts, temperature):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 50, "pad_token_id": 0}
    sizes |= {f"{side}_{what}": value for side in ("encoder", "decoder") for what, value in
              (("attention_heads", 2), ("ffn_dim", 32))}  # fmt: skip
    config = transformers.MarianConfig(**sizes, max_position_embeddings=32, decoder_start_token_id=0, dropout=0.0)
    student, teacher = (transformers.MarianMTModel(config).eval() for _ in range(2))
    labels = torch.tensor([[5, 9, 2, 0], [7, 8, 30, 2]])
    batch = {
        "input_ids": torch.tensor([[4, 3, 2], [6, 2, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "decoder_input_ids": torch.cat([torch.zeros(2, 1, dtype=torch.long), labels[:, :-1]], dim=1),
    }
    loss = parts["fused_step"](student, teacher, {**batch, "labels": labels}, temperature)
    loss.backward()
    gradient = student.lm_head.weight.grad.clone()
    student.zero_grad()

    kept = labels != 0
    z, t = student(**batch).logits[kept], teacher(**batch).logits[kept].detach()
    lprobs = z.log_softmax(1)
    kd = temperature**2 * F.kl_div((z / temperature).log_softmax(1), (t / temperature).softmax(1), reduction="sum")
    eps = 0.1 / (z.shape[1] - 1)
    smoothed = (1 - 0.1 - eps) * -lprobs.gather(1, labels[kept][:, None]).sum() - eps * lprobs.sum()
    dense = (0.9 * kd + 0.1 * smoothed) / kept.sum()
    dense.backward()
    torch.testing.assert_close(loss, dense, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, student.lm_head.weight.grad, rtol=1e-3, atol=1e-5)
