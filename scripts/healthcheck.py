"""Whether this installation works: imports everything and runs a forward pass of each half, on the GPU if there is one.

    python scripts/healthcheck.py

Prints one line per part; exits with 1 at the first one that does not work. The Docker image's health check.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])


def vision() -> str:
    import torch

    from vision_reference import train
    from vision_reference.distillation import distillation_loss
    from vision_reference.networks.by_name import build_model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    images, labels = torch.rand(2, 3, 64, 64, device=device), torch.tensor([0, 1], device=device)
    student, teacher = (build_model(name, 10).to(device).eval() for name in ("resnet18", "resnet50"))
    with torch.inference_mode():
        options = {"temperature": 2.0, "kd_weight": 0.5, "label_smoothing": 0.1}
        losses = distillation_loss(student(images), labels, teacher(images), **options)
    if not losses.total.isfinite():
        raise RuntimeError(f"the loss is {losses.total.item()}")
    return f"torch {torch.__version__}, {train.__name__}: a distillation loss on {device}"


def translation() -> str:
    import fairseq
    import torch
    from fairseq.models.transformer import TransformerDecoder, TransformerEncoder, TransformerModel
    from fairseq.models.transformer.transformer_config import TransformerConfig

    importlib.import_module("fairseq_plugins")
    words = fairseq.data.Dictionary()
    for number in range(16):
        words.add_symbol(f"word{number}")
    config = TransformerConfig()
    config.encoder.layers = config.decoder.layers = 1
    encoder_embedding, decoder_embedding = (torch.nn.Embedding(len(words), 512, words.pad()) for _ in range(2))
    encoder = TransformerEncoder(config, words, encoder_embedding)
    decoder = TransformerDecoder(config, words, decoder_embedding)
    model = TransformerModel(config, encoder, decoder).eval()
    tokens = torch.arange(4, 12).view(2, 4)
    with torch.inference_mode():
        logits, _ = model(tokens, torch.tensor([4, 4]), tokens)
    return f"fairseq {fairseq.__version__}, fairseq_plugins: logits of shape {tuple(logits.shape)}"


def dali() -> str:
    from vision_reference.images.dali_loader import load_dali

    module = load_dali()
    pipeline = module.Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipeline:
        pipeline.set_outputs(module.fn.random.uniform(range=[0.0, 1.0], shape=[2]))
    pipeline.build()
    (numbers,) = pipeline.run()
    return f"DALI {module.__version__}: {len(numbers)} batch from its CPU pipeline"


def main(parts: tuple[Callable[[], str], ...] = (vision, translation, dali)) -> None:
    for part in parts:
        try:
            print(f"{part.__name__}: {part()}", flush=True)
        except Exception as error:
            print(f"{part.__name__} does not work: {type(error).__name__}: {error}", file=sys.stderr)
            sys.exit(1)


if __name__ == "__main__":
    main()
