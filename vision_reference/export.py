"""Give a trained network away: weights and how to use them, checked at once against the original.

    python vision_reference/export.py student/best.pth --format onnx --output student.onnx
    python vision_reference/export.py student/best.pth --format onnx --int8 --images DATA/val --output student-int8.onnx
    python vision_reference/export.py student/best.pth --format safetensors --output student/ --licence mit

Formats: safetensors (weights alone), onnx, torchscript, torch-export (a program each; any number of images at a time).
Inside and in a card beside it stand the classes, how pictures are prepared, accuracy and licence. Where --output is a
folder, the files are named as the Hugging Face Hub expects them. --images are pictures to check with, one subfolder per
class (or a plain folder: then without accuracy); without them noise is used.
"""

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from vision_reference.analysis.flags import SOURCES, Parser, filled_text, path
from vision_reference.errors import UserError, run_command

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

FORMATS = {"safetensors": ".safetensors", "onnx": ".onnx", "torchscript": ".pt", "torch-export": ".pt2"}
_TOLERANCE = 1e-3  # largest difference of a logit, as a share of the largest logit (at least 1)
_CHECKED = 64  # images that are compared
_ROUNDS = 5

Run = Callable[["np.ndarray"], "np.ndarray"]  # normalized images (B, 3, S, S) float32 to logits (B, K)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parsed and checked flags.

    Raises:
        UserError: flags that contradict each other.
    """
    parser = Parser("export.py", __doc__ or "")
    parser.add_argument("checkpoint", help=SOURCES)
    parser.add_argument("--format", required=True, choices=FORMATS, help="what to write")
    parser.add_argument("--output", required=True, type=path, metavar="FILE|DIR", help="file, or folder for the Hub")
    parser.add_argument("--int8", action="store_true", help="onnx: 8-bit integers, calibrated on --images")
    parser.add_argument("--images", type=path, metavar="DIR", help="pictures to check with, and to calibrate --int8")
    parser.add_argument(
        "--model", type=filled_text, metavar="NAME", help="the network, where the file does not name it"
    )
    parser.add_argument("--model-ema", action="store_true", help="export the moving average of the weights")
    parser.add_argument("--licence", default="", metavar="NAME", help="of the weights, such as mit; goes into the card")
    parser.add_argument("--overwrite", action="store_true", help="replace files of an earlier export")
    args = parser.parse_args(argv)
    if args.int8 and args.format != "onnx":
        raise UserError("--int8 is for --format onnx; drop it, or export to onnx")
    if args.int8 and not args.images:
        raise UserError("--int8 needs --images: pictures whose activations tell the ranges of the integers")
    return args


def main(args: argparse.Namespace) -> None:
    """Export, check, report.

    Raises:
        UserError: weights that cannot be read, a package that is missing, an export that answers otherwise.
    """
    import numpy as np

    from vision_reference.networks import by_name, heads

    target = target_of(args.output, args.format)
    beside = card_files(target, args.output)
    if (present := [path for path in (target, *beside.values()) if path.exists()]) and not args.overwrite:
        raise UserError(f"{present[0]} exists; give another --output, or --overwrite to replace it")
    network, description = by_name.load_network(args.checkpoint, args.model, ema=args.model_ema)
    count = heads.class_count(network)
    classes = list(description.classes or map(str, range(count)))
    facts = {
        "architecture": description.arch,
        "classes": classes,
        "input": {
            "preset": description.preset,
            "resize_shorter_side": description.val_resize_size,
            "center_crop": description.val_crop_size,
            "interpolation": description.interpolation,
            "mean": list(description.mean),
            "std": list(description.std),
        },
        "accuracy": description.accuracy,
        "licence": args.licence or None,
        "made_by": dict(description.made_by),
    }
    images, labels = pictures(args.images, description, classes)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.stem}.partial{target.suffix}")
    try:
        write = {"safetensors": _safetensors, "onnx": _onnx, "torchscript": _torchscript, "torch-export": _torch_export}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracers, about shapes that are fixed here
            write[args.format](network, images[:2], partial, facts)
            if args.int8:
                _quantize(partial, images, facts)
        exported = open_exported(partial, args.format, str(description.arch), count)
        report = compare(_original(network), exported, images, labels)
        report["megabytes"] = round(partial.stat().st_size / 1e6, 3)
        scale = max(1.0, float(np.abs(_original(network)(images[:8])).max()))
        if not args.int8 and report["largest_difference"] > _TOLERANCE * scale:
            raise UserError(
                f"the export is off by {report['largest_difference']:.3g} from the original (allowed "
                f"{_TOLERANCE * scale:.3g}): nothing was written; try another --format"
            )
        partial.replace(target)
    finally:
        for leftover in target.parent.glob(f".{target.stem}.partial*"):
            leftover.unlink()
    beside["config"].write_text(config(facts), encoding="utf-8")
    beside["card"].write_text(card(facts, target, args.format, report), encoding="utf-8")
    print(summary(target, args.format, report, int8=args.int8))


def target_of(output: Path, form: str) -> Path:
    """The file to write: ``output`` itself, or the Hub's name for it in the folder ``output``.

    Raises:
        UserError: the file's ending is another format's.
    """
    if output.is_dir() or not output.suffix:
        return output / ("model" + FORMATS[form])
    if output.suffix != FORMATS[form]:
        raise UserError(f"--output {output}: files of --format {form} end in {FORMATS[form]}")
    return output


def card_files(target: Path, output: Path) -> dict[str, Path]:
    """Where config and card go: the Hub's names in a folder of their own, else the export's name with other endings."""
    if target != output:
        return {"config": target.parent / "config.json", "card": target.parent / "README.md"}
    return {"config": target.with_suffix(target.suffix + ".json"), "card": target.with_suffix(target.suffix + ".md")}


def pictures(folder: Path | None, description, classes: list[str]) -> "tuple[np.ndarray, np.ndarray | None]":
    """Up to 64 prepared pictures (N, 3, S, S) and, where subfolders name classes of the network, their numbers (N,).

    Raises:
        UserError: a folder without readable pictures.
    """
    import numpy as np
    import torch

    from vision_reference.images.decoding import read_image
    from vision_reference.images.pipelines import Normalize, evaluation_pipeline
    from vision_reference.predict import list_pictures

    side = description.val_crop_size
    if folder is None:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(_CHECKED, 3, side, side, generator=generator).numpy(), None
    if not folder.is_dir():
        raise UserError(f"--images: no folder {folder}")
    paths = list(list_pictures([str(folder)], []))
    chosen = [paths[number * len(paths) // min(_CHECKED, len(paths))] for number in range(min(_CHECKED, len(paths)))]
    prepare = evaluation_pipeline(
        resize_size=description.val_resize_size, crop_size=side, interpolation=description.interpolation
    )
    prepared, names = [], []
    for picture in chosen:
        try:
            prepared.append(prepare(read_image(picture)))
            names.append(Path(picture).parent.name)
        except UserError as error:
            print(f"note: left out {error.line}", flush=True)
    if not prepared:
        raise UserError(f"--images {folder}: none of its pictures can be read")
    stacked = torch.stack(prepared)
    labels = np.array([classes.index(name) for name in names]) if set(names) <= set(classes) else None
    return Normalize(description.mean, description.std)(stacked).contiguous().numpy(), labels


def _original(network: "nn.Module") -> Run:
    import torch

    def run(images: "np.ndarray") -> "np.ndarray":
        with torch.inference_mode():
            return network(torch.from_numpy(images)).numpy()

    return run


def open_exported(path: Path, form: str, arch: str, classes: int) -> Run:
    """An exported file, ready to run, opened as a stranger would: with the format's own library.

    Raises:
        UserError: onnxruntime is not installed.
    """
    import torch

    if form == "onnx":
        runtime = _needed("onnxruntime")
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda images: session.run(None, {name: images})[0]
    if form == "torchscript":
        return _original(torch.jit.load(str(path)))
    if form == "torch-export":
        return _original(torch.export.load(str(path)).module())
    import safetensors.torch

    from vision_reference.networks import by_name

    network = by_name.build_model(arch, classes)
    network.load_state_dict(safetensors.torch.load_file(path))
    return _original(network.eval())


def compare(original: Run, exported: Run, images: "np.ndarray", labels: "np.ndarray | None") -> dict:
    """Answers and latency of both, taken in turns.

    Returns:
        largest_difference of a logit; agreement, the share of images with the same first class; top1 of both in percent
        (None without labels); latency: {batch: {"original", "exported"}}, median milliseconds.
    """
    import numpy as np

    ours, theirs = original(images), exported(images)
    top1 = None
    if labels is not None:
        top1 = {name: 100 * float((z.argmax(1) == labels).mean()) for name, z in (("before", ours), ("after", theirs))}
    latency = {}
    for batch in (1, 32):
        part = np.ascontiguousarray(np.resize(images, (batch, *images.shape[1:])))
        taken: dict[str, list[float]] = {"original": [], "exported": []}
        for turn in range(_ROUNDS + 1):
            for name, run in (("original", original), ("exported", exported)):
                begin = time.perf_counter()
                run(part)
                if turn:  # the first turn warms up
                    taken[name].append(1e3 * (time.perf_counter() - begin))
        latency[batch] = {name: round(statistics.median(values), 3) for name, values in taken.items()}
    return {
        "images": len(images),
        "largest_difference": float(np.abs(ours - theirs).max()),
        "agreement": float((ours.argmax(1) == theirs.argmax(1)).mean()),
        "top1": top1,
        "latency_ms": latency,
    }


def _text(facts: Mapping) -> str:
    return json.dumps(facts, ensure_ascii=False)


def _safetensors(network: "nn.Module", example: "np.ndarray", path: Path, facts: Mapping) -> None:
    import safetensors.torch

    from vision_reference.networks.checkpoints import safetensors_metadata

    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    # its own way to files has errors of its own for a full disk
    path.write_bytes(safetensors.torch.save(state, metadata=safetensors_metadata(state, facts)))


def _onnx(network: "nn.Module", example: "np.ndarray", path: Path, facts: Mapping) -> None:
    import torch

    onnx = _needed("onnx")
    torch.onnx.export(
        network,
        (torch.from_numpy(example),),
        str(path),
        input_names=["images"],
        output_names=["logits"],
        dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )
    _describe_onnx(onnx, path, facts)


def _describe_onnx(onnx, path: Path, facts: Mapping) -> None:
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {"description": _text(facts)})
    onnx.save(model, str(path))


def _quantize(path: Path, images: "np.ndarray", facts: Mapping) -> None:
    """Replace an ONNX file by one of 8-bit integers: static, per channel, ranges from ``images``."""
    onnx = _needed("onnx")
    _needed("onnxruntime")
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.parts = iter({"images": images[start : start + 8]} for start in range(0, len(images), 8))

        def get_next(self) -> dict | None:
            return next(self.parts, None)

    prepared, quantized = (path.with_name(f"{path.stem}-{step}.onnx") for step in ("prepared", "int8"))
    quant_pre_process(str(path), str(prepared))
    quantization.quantize_static(
        str(prepared),
        str(quantized),
        Images(),
        per_channel=True,
        quant_format=quantization.QuantFormat.QDQ,
        # Weights of 7 bits: where a processor has no VNNI, sums of two products of 8 bits overflow their 16.
        reduce_range=True,
    )
    quantized.replace(path)
    _describe_onnx(onnx, path, facts)


def _torchscript(network: "nn.Module", example: "np.ndarray", path: Path, facts: Mapping) -> None:
    import torch

    with torch.inference_mode():
        traced = torch.jit.trace(network, torch.from_numpy(example))
    with path.open("wb") as file:
        torch.jit.save(traced, file, _extra_files={"description.json": _text(facts)})


def _torch_export(network: "nn.Module", example: "np.ndarray", path: Path, facts: Mapping) -> None:
    import torch

    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(network, (torch.from_numpy(example),), dynamic_shapes=({0: batch},))
    torch.export.save(program, str(path), extra_files={"description.json": _text(facts)})


def _needed(name: str):
    try:
        return __import__(name)
    except ImportError:
        raise UserError(f"this needs {name}, which is not installed: pip install '{name}' (extra: export)") from None


def config(facts: Mapping) -> str:
    """The Hub's ``config.json``, as timm reads it, with the rest of what is known."""
    shown = facts["input"]
    return json.dumps(
        {
            "architecture": (facts["architecture"] or "").removeprefix("timm:"),
            "num_classes": len(facts["classes"]),
            "label_names": facts["classes"],
            "pretrained_cfg": {
                "input_size": [3, shown["center_crop"], shown["center_crop"]],
                "crop_pct": shown["center_crop"] / shown["resize_shorter_side"],
                "crop_mode": "center",
                "interpolation": shown["interpolation"],
                "mean": shown["mean"],
                "std": shown["std"],
                "num_classes": len(facts["classes"]),
                "license": facts["licence"],
            },
            "accuracy": facts["accuracy"],
            "made_by": facts["made_by"],
        },
        indent=2,
        ensure_ascii=False,
    )


def _usage(facts: Mapping, target: Path, form: str) -> str:
    from vision_reference.networks import by_name, cifar_resnets

    name, arch, count = target.name, facts["architecture"] or "", len(facts["classes"])
    if form == "onnx":
        return (
            f"session = onnxruntime.InferenceSession({name!r})\n"
            'logits = session.run(None, {"images": images})[0]  # numpy, float32'
        )
    if form == "torchscript":
        return f"logits = torch.jit.load({name!r})(images)"
    if form == "torch-export":
        return f"logits = torch.export.load({name!r}).module()(images)"
    if arch.startswith("timm:"):
        build = f'timm.create_model("{arch.removeprefix("timm:")}", num_classes={count}, checkpoint_path={name!r})'
        return f"model = {build}.eval()"
    load = f"model.load_state_dict(safetensors.torch.load_file({name!r}))"
    if arch in cifar_resnets.NAMES or by_name.is_own(arch):  # these stand in no library
        return (
            "from vision_reference.networks.by_name import build_model  # in a clone of this project\n"
            f"model = build_model({arch!r}, {count}).eval()\n{load}"
        )
    return f'model = torchvision.models.get_model("{arch}", num_classes={count}).eval()\n{load}'


def card(facts: Mapping, target: Path, form: str, report: Mapping) -> str:
    """The model card, in Markdown with the Hub's front matter."""
    shown, classes = facts["input"], facts["classes"]
    library = "onnx" if form == "onnx" else "pytorch"
    head = ["---", "tags:", "- image-classification", f"library_name: {library}"]
    head += [f"license: {facts['licence']}"] * bool(facts["licence"]) + ["---"]
    told = facts["accuracy"] is not None
    accuracy = f"{facts['accuracy']:.3f} % top-1 on its validation images" if told else "not recorded"
    named = ", ".join(f"`{name}`" for name in classes[:20])
    named += f" and {len(classes) - 20} more" if len(classes) > 20 else ""
    mean, std = (", ".join(f"{value:g}" for value in shown[name]) for name in ("mean", "std"))
    return "\n".join(
        [
            *head,
            f"# {facts['architecture']}, {len(classes)} classes",
            "",
            f"Accuracy: {accuracy}. Licence: {facts['licence'] or 'not given'}.",
            "",
            f"Classes, in the order of the logits: {named}.",
            "",
            "Input: RGB images (batch, 3, height, width), float32. A picture's shorter side is resized to "
            f"{shown['resize_shorter_side']} pixels ({shown['interpolation']}, antialiased), the middle "
            f"{shown['center_crop']}x{shown['center_crop']} cut out, scaled to 0..1, less the mean ({mean}), divided "
            f"by ({std}).",
            "",
            "```python",
            _usage(facts, target, form),
            "```",
            "",
            "Checked when it was exported: " + _findings(report) + ".",
            "",
        ]
    )


def _findings(report: Mapping) -> str:
    found = (
        f"largest difference of a logit {report['largest_difference']:.2g}, the same first class for "
        f"{100 * report['agreement']:.1f} % of {report['images']} images"
    )
    if report["top1"]:
        found += f", top-1 {report['top1']['before']:.2f} % before and {report['top1']['after']:.2f} % after"
    return found


def summary(target: Path, form: str, report: Mapping, *, int8: bool) -> str:
    """What the user reads at the end."""
    lines = [f"{target}: {form}{', int8' * int8}, {report['megabytes']:.2f} MB", _findings(report)]
    for batch, times in report["latency_ms"].items():
        lines.append(
            f"batch of {batch}: {times['exported']:.2f} ms, original {times['original']:.2f} ms "
            f"({times['original'] / times['exported']:.2f} times as fast)"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_command("export.py", lambda: main(parse_args()))
