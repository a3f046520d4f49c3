"""What a teacher is like, before anybody distils from it: accuracy, calibration, entropy, smoothing, confusions.

    python vision_reference/analysis/inspect_teacher.py --checkpoint runs/teacher/best.pth --data-path data/digits \
        --output results/teacher

One run over the validation images. Writes DIR/inspection.json, DIR/inspection.{png,pdf,svg} and prints ten lines: the
last ones say which rule of thumb applies, what supports it, and what to run. What the network makes of the images is
kept beside the checkpoint (checkpoint.pth.features/).
"""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from vision_reference.analysis import flags
from vision_reference.errors import UserError, run_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vision_reference.analysis.subjects import Subject

TEMPERATURES = (1.0, 2.0, 3.0, 64.0)
TOPS = (1, 5, 10)
PAIRS = 5  # confusable classes that are named
_PROFILE = 100  # likeliest classes whose mean probability is drawn


def inspect(
    logits: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    *,
    features: np.ndarray | None = None,
    recorded: Mapping | None = None,
    classwise: bool = True,
) -> dict:
    """Everything that a teacher's outputs on a validation set say, as plain values that JSON can hold.

    Args:
        logits: (N, K).
        labels: (N,) columns of ``logits``.
        names: (K,) of the classes.
        features: (N, h), input of the last linear layer; None leaves ``features`` out.
        recorded: the command line that the teacher was trained with, as far as its file says.
        classwise: also the adaptive calibration error over all classes, which takes a sort of N for each.

    Returns:
        A dict of

        - ``images``, ``classes``: how many;
        - ``accuracy``: top1, top5 (percent);
        - ``calibration``: expected_calibration_error, expected_calibration_error_equal_mass, mean_confidence and
          adaptive_calibration_error (None without ``classwise``) in percent; calibrating_temperature (None: no T does);
          negative_log_likelihood and negative_log_likelihood_calibrated (nats); reliability: the bins;
        - ``selective``: area_under_risk_coverage, and coverage and risk at up to 200 points (0 to 1);
        - ``outputs``: for each T entropy (nats), entropy_share (of log K), outside_top_1, _5, _10 (0 to 1) and
          profile, the mean probability of the k-th likeliest class;
        - ``features``: within, between, ratio (see ``geometry.Spread``) and the loosest classes; None without features
          or where a class has a single image;
        - ``confusions``: pairs of classes and their errors;
        - ``smoothing``: the verdict of ``smoothing.looks_smoothed``, and what is recorded;
        - ``rule``: of ``rule_of_thumb``.

    Raises:
        UserError: no image, values that are not finite, or as ``geometry.spread``.
    """
    from vision_reference.analysis import calibration, confusions, geometry
    from vision_reference.analysis.smoothing import looks_smoothed

    if not len(labels):
        raise UserError("there are no images to inspect the teacher on")
    if not np.isfinite(logits).all():
        raise UserError("the teacher's logits are not finite; its weights are damaged")
    classes = logits.shape[1]
    probabilities = np.exp(calibration.log_probabilities(logits))
    confidence, found = probabilities.max(axis=1), probabilities.argmax(axis=1)
    correct = found == labels
    places = (logits > logits[np.arange(len(labels)), labels][:, None]).sum(axis=1)
    bins = calibration.reliability_bins(confidence, correct)
    equal_mass = calibration.reliability_bins(confidence, correct, adaptive=True)
    calibrating = calibration.calibrating_temperature(logits, labels)
    coverage, risk = calibration.risk_coverage(confidence, correct)
    shown = np.unique(np.linspace(0, len(risk) - 1, 200).round().astype(int))
    verdict = looks_smoothed(logits, labels)
    smoothing = {**asdict(verdict), "recorded": _recorded_regularizer(recorded)}
    return {
        "images": len(labels),
        "classes": classes,
        "accuracy": {"top1": 100 * float(correct.mean()), "top5": 100 * float((places < 5).mean())},
        "calibration": {
            "expected_calibration_error": 100 * bins.error,
            "expected_calibration_error_equal_mass": 100 * equal_mass.error,
            "adaptive_calibration_error": (
                100 * calibration.adaptive_calibration_error(probabilities, labels) if classwise else None
            ),
            "mean_confidence": 100 * float(confidence.mean()),
            "calibrating_temperature": calibrating,
            "negative_log_likelihood": calibration.negative_log_likelihood(logits, labels),
            "negative_log_likelihood_calibrated": (
                None if calibrating is None else calibration.negative_log_likelihood(logits, labels, calibrating)
            ),
            "reliability": {name: values.tolist() for name, values in vars(bins).items()},
        },
        "selective": {
            "area_under_risk_coverage": float(risk.mean()),
            "coverage": coverage[shown].tolist(),
            "risk": risk[shown].tolist(),
        },
        "outputs": {f"{temperature:g}": _outputs_at(logits, temperature) for temperature in TEMPERATURES},
        "features": _spread(features, labels, names, geometry) if features is not None else None,
        "confusions": [
            {"classes": [names[a], names[b]], "errors": errors}
            for a, b, errors in confusions.most_confused(labels, found, PAIRS)
        ],
        "smoothing": smoothing,
        "rule": rule_of_thumb(smoothing),
    }


def _outputs_at(logits: np.ndarray, temperature: float) -> dict:
    from vision_reference.analysis import calibration

    entropy = calibration.mean_entropy(logits, temperature)
    probabilities = np.exp(calibration.log_probabilities(logits, temperature))
    profile = -np.sort(-probabilities, axis=1)[:, :_PROFILE].mean(axis=0)
    outside = {f"outside_top_{k}": calibration.mass_outside_top(logits, k, temperature) for k in TOPS}
    return {
        "entropy": entropy,
        "entropy_share": entropy / float(np.log(logits.shape[1])),
        **outside,
        "profile": profile.tolist(),
    }


def _spread(features: np.ndarray, labels: np.ndarray, names: Sequence[str], geometry) -> dict | None:
    present, own = np.unique(labels, return_inverse=True)
    counts = np.bincount(own)
    if len(present) < 2 or counts.min() < 2:
        return None
    spread = geometry.spread(features, own, len(present))
    loosest = np.argsort(-spread.per_class, kind="stable")[:PAIRS]
    return {
        "within": spread.within,
        "between": spread.between,
        "ratio": spread.ratio,
        "loosest_classes": [names[present[number]] for number in loosest],
    }


def _recorded_regularizer(recorded: Mapping | None) -> dict | None:
    """What the checkpoint says about its labels; None where it says nothing."""
    if not recorded or "label_smoothing" not in recorded:
        return None
    kept = ["label_smoothing", "max_suppression", "mixup_alpha", "cutmix_alpha"]
    if recorded.get("teacher"):
        kept += ["teacher", "kd_temperature"]
    return {name: recorded[name] for name in kept if recorded.get(name)} or {"label_smoothing": 0.0}


_PAPER = "ResNet-50 to ResNet-18 on ImageNet, Chandrasegaran et al. 2022"


def rule_of_thumb(smoothing: Mapping) -> dict:
    """What to do with a teacher like this one, and what supports it.

    Args:
        smoothing: ``inspect``'s entry of that name; what is recorded outweighs what the outputs look like.

    Returns:
        ``kind`` (smoothed, max suppression, plain, unknown), ``temperature``, ``text``, ``support``.
    """
    recorded = smoothing["recorded"] or {}
    if recorded.get("max_suppression"):
        return {
            "kind": "max suppression",
            "temperature": 1.0,
            "text": "MaxSup teacher: begin at T = 1, then try T = 2",
            "support": "MaxSup leaves outputs like smoothing's where the teacher is right; how its students fare at "
            "higher T is not published",
        }
    smoothed = bool(recorded.get("label_smoothing")) if recorded else smoothing["answer"] == "smoothed"
    if smoothed:
        return {
            "kind": "smoothed",
            "temperature": 1.0,
            "text": "smoothed teacher: distil at T = 1; higher T draws similar classes together",
            "support": f"top-1 at T = 1, 2, 3: 71.7, 68.9, 67.8 ({_PAPER})",
        }
    if recorded or smoothing["answer"] == "not smoothed":
        return {
            "kind": "plain",
            "temperature": 1.0,
            "text": "plain teacher: T = 1, or try T = 2; a teacher smoothed with alpha = 0.1 at T = 1 may teach better",
            "support": f"top-1 at T = 1, 2, 3: 71.5, 71.4, 69.7; smoothed teacher at T = 1: 71.7 ({_PAPER})",
        }
    return {
        "kind": "unknown",
        "temperature": 1.0,
        "text": "unknown kind of teacher: T = 1 is the choice that fits both kinds",
        "support": f"top-1 at T = 1: plain teacher 71.5, smoothed 71.7; at T = 3: 69.7, 67.8 ({_PAPER})",
    }


def sentences(result: Mapping, title: str, command: str) -> list[str]:
    """Ten lines for a reader in a hurry.

    Args:
        result: of ``inspect``.
        title: names the teacher.
        command: what to run next.
    """
    calibration, smoothing, outputs = result["calibration"], result["smoothing"], result["outputs"]
    temperature = calibration["calibrating_temperature"]
    if temperature is None:
        fitting = "no temperature calibrates it"
    else:
        word = "overconfident" if temperature > 1.02 else "underconfident" if temperature < 0.98 else "well calibrated"
        fitting = f"T = {temperature:.2f} would calibrate it ({word})"
    ace = calibration["adaptive_calibration_error"]
    spread = result["features"]
    pairs = [f"{' / '.join(pair['classes'])} ({pair['errors']})" for pair in result["confusions"][:3]]
    look = smoothing["answer"]
    if look == "smoothed":
        low, high = smoothing["alpha_range"]
        look = f"smoothed, alpha about {smoothing['alpha']:.2g} ({low:.2g} to {high:.2g})"
    recorded = smoothing["recorded"]
    said = (
        "its file says nothing"
        if recorded is None
        else "its file says " + ", ".join(f"{name} {value}" for name, value in recorded.items())
    )
    entropies = "  ".join(f"T={t}: {values['entropy']:.2f}" for t, values in outputs.items())
    first = outputs["1"]
    outside = ", ".join(f"{100 * first[f'outside_top_{k}']:.3g} %" for k in TOPS)
    return [
        f"teacher       {title}",
        f"accuracy      top-1 {result['accuracy']['top1']:.2f} %, top-5 {result['accuracy']['top5']:.2f} % of "
        f"{result['images']} images, {result['classes']} classes",
        f"calibration   ECE {calibration['expected_calibration_error']:.2f} %"
        + (f", ACE {ace:.3f} %" if ace is not None else "")
        + f"; {fitting}",
        f"selection     AURC {result['selective']['area_under_risk_coverage']:.4f} (error rate of the most confident, "
        "averaged over all shares kept; 0 is best)",
        f"entropy       {entropies} nats; outside top 1, 5, 10 at T=1: {outside}",
        "features      "
        + (f"spread within classes / between them {spread['ratio']:.3f}" if spread else "not looked at"),
        f"confusions    {', '.join(pairs) or 'none'}",
        f"smoothing     looks {look}: {smoothing['reason']}; {said}",
        f"rule          {result['rule']['text']}. Support: {result['rule']['support']}",
        f"run           {command}",
    ]


def figure(
    result: Mapping, title: str = "", *, cases: str = "images", classes: tuple[str, str] = ("class", "classes")
) -> "Figure":
    """Reliability diagram, risk against coverage, the outputs' profile at each T, and the most confused classes.

    ``cases`` and ``classes`` (one, many) are what they are called: of translation tokens, and pieces.
    """
    from vision_reference.analysis import drawing

    with drawing.style():
        picture = drawing.new_figure(6.8, 5.4)
        if title:
            picture.suptitle(title, fontsize=10, x=0.01, ha="left")
        grid = picture.add_gridspec(2, 2)
        strips = grid[0, 0].subgridspec(2, 1, height_ratios=(1, 4), hspace=0.05)
        shares, first = picture.add_subplot(strips[0]), picture.add_subplot(strips[1])
        second, third, fourth = (picture.add_subplot(grid[place]) for place in ((0, 1), (1, 0), (1, 1)))
        reliability(first, result["calibration"])
        share_of_cases(shares, result["calibration"], cases)
        drawing.letter(shares, f"Reliability, ECE {result['calibration']['expected_calibration_error']:.2f} %")
        second.plot(
            100 * np.array(result["selective"]["coverage"]),
            100 * np.array(result["selective"]["risk"]),
            color=drawing.COLOURS[0],
        )
        second.set_xlim(0, 100)
        second.set_ylim(bottom=0)
        second.set_xlabel("coverage: most confident share kept (%)")
        second.set_ylabel("errors among them (%)")
        drawing.letter(second, f"Risk against coverage, AURC {result['selective']['area_under_risk_coverage']:.4f}")
        _profiles(third, result["outputs"], classes[0])
        _confusions(fourth, result["confusions"], classes[1])
    return picture


def reliability(axes, calibration: Mapping) -> None:
    """A reliability diagram on ``axes``; ``calibration`` of ``inspect``'s result."""
    from vision_reference.analysis import drawing

    bins = {name: 100 * np.array(values) for name, values in calibration["reliability"].items()}
    middle, width = (bins["low"] + bins["high"]) / 2, bins["high"] - bins["low"]
    axes.bar(middle, bins["accuracy"], width * 0.94, color=drawing.COLOURS[5], alpha=0.45, linewidth=0)
    axes.plot([0, 100], [0, 100], color="0.35", linewidth=0.8, linestyle="--")
    axes.text(70, 60, "calibrated", color="0.35", fontsize=7, rotation=45, transform_rotates_text=True)
    axes.plot(bins["confidence"], bins["accuracy"], color=drawing.COLOURS[0], marker="o", markersize=3.5,
              linewidth=1, clip_on=False, zorder=3)  # fmt: skip
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_xlabel("confidence (%)")
    axes.set_ylabel("accuracy (%)")


def share_of_cases(axes, calibration: Mapping, cases: str = "images") -> None:
    """How many images (or other ``cases``) each bar of ``reliability`` stands for, as a strip above it."""
    bins = {name: np.array(values) for name, values in calibration["reliability"].items()}
    shares = 100 * bins["count"] / bins["count"].sum()
    axes.bar(50 * (bins["low"] + bins["high"]), shares, 94 * (bins["high"] - bins["low"]), color="0.45", linewidth=0)
    axes.set_xlim(0, 100)
    axes.tick_params(labelbottom=False)
    axes.locator_params(axis="y", nbins=2)
    axes.set_ylabel(f"{cases}\n(%)")


def _profiles(axes, outputs: Mapping, one: str) -> None:
    from vision_reference.analysis import drawing

    for number, (temperature, values) in enumerate(outputs.items()):
        profile = np.array(values["profile"])
        marked = np.unique(np.geomspace(1, len(profile), 9).round().astype(int) - 1)
        axes.plot(
            np.arange(1, len(profile) + 1), profile, label=f"T = {temperature}", color=drawing.COLOURS[number],
            marker=drawing.MARKERS[number], markersize=3.5, linestyle=drawing.DASHES[number], linewidth=1,
            markevery=marked.tolist(),
        )  # fmt: skip
    axes.set_yscale("log")
    if len(profile) > 20:
        axes.set_xscale("log")
    axes.set_xlabel(f"k-th likeliest {one}")
    axes.set_ylabel("mean probability")
    axes.legend(loc="best")
    drawing.letter(axes, "Soft labels")


def _confusions(axes, pairs: Sequence[Mapping], many: str) -> None:
    from vision_reference.analysis import drawing

    drawing.letter(axes, f"Most confused {many}")
    if not pairs:
        axes.text(0.5, 0.5, "no errors", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    counts = [pair["errors"] for pair in pairs]
    axes.barh(range(len(pairs)), counts, color=drawing.COLOURS[5], alpha=0.45, height=0.75)
    for place, pair in enumerate(pairs):  # on the bars, so that long names take no room from the picture
        first, second = (name if len(name) <= 22 else name[:21] + "…" for name in pair["classes"])
        axes.text(0.02, place, f"{first} / {second}", va="center", fontsize=8, transform=axes.get_yaxis_transform())
    axes.set_ylim(PAIRS - 0.5, -0.5)
    axes.set_xlim(0, 1.05 * max(counts))
    axes.set_yticks([])
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("errors, both ways")


def next_command(
    subject: "Subject", data: Path, dataset: str, preset: str | None, temperature: float, split: float | None = None
) -> str:
    """The line of ``train.py`` that distils from this teacher, the student's images prepared as the teacher's.

    Args:
        data, dataset, split: as ``--data-path``, ``--dataset`` and ``--split``.
        preset: of the teacher's images; None: ImageNet's.
        temperature: of the distillation.
    """
    from vision_reference.images.presets import PRESETS

    usual, pixels = PRESETS[preset or "imagenet"], subject.pixels
    words = ["python", "vision_reference/train.py", "--data-path", str(data)]
    words += ["--dataset", dataset] if dataset != "imagefolder" else []
    words += ["--split", f"{split:g}"] if split else []
    words += ["--preset", preset] if preset and preset != "imagenet" else []
    cut = subject.recorded.get("train_crop_size")
    sizes = {"train_crop_size": cut if isinstance(cut, int) else pixels.crop}
    sizes |= {"val_resize_size": pixels.resize, "val_crop_size": pixels.crop}
    for name, side in sizes.items():
        words += [f"--{name.replace('_', '-')}", str(side)] if side != getattr(usual, name) else []
    words += ["--interpolation", pixels.interpolation] if pixels.interpolation != "bilinear" else []
    for name in ("mean", "std"):
        own = tuple(getattr(pixels, name))
        words += [f"--{name}", *(f"{value:g}" for value in own)] if own != tuple(getattr(usual, name)) else []
    words += ["--model", "STUDENT", "--teacher", subject.arch, "--teacher-weights", subject.source]
    return shlex.join([*words, "--kd-temperature", f"{temperature:g}", "--output-dir", "student"])


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = flags.Parser("inspect_teacher.py", __doc__)
    parser.add_argument("--checkpoint", required=True, metavar="PATH", help=f"the teacher: {flags.SOURCES}")
    flags.add_output(parser)
    flags.add_data(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Collect, inspect, write."""
    from vision_reference.analysis import drawing, subjects

    images = subjects.read_images(args.data_path, dataset=args.dataset, split=args.split, train=False)
    subject = subjects.load_subject("teacher", args.checkpoint, images, **flags.shown(args))
    seen = subjects.outputs_of(subject, images.val, images, batch_size=args.batch_size, workers=args.workers)
    names = subjects.all_names(subject, images)
    labels = subject.numbers[seen.labels]
    result = inspect(seen.logits, labels, names, features=seen.features, recorded=subject.recorded)
    preset, temperature = args.preset or subject.preset, result["rule"]["temperature"]
    command = next_command(subject, args.data_path, args.dataset, preset, temperature, args.split)
    text = sentences(result, f"{args.checkpoint} ({subject.arch})", command)
    record = {"checkpoint": args.checkpoint, "arch": subject.arch, "data": str(args.data_path), **result}
    record |= {"command": command, "text": text}
    drawing.save_text(args.output / "inspection.json", json.dumps(record, indent=1) + "\n")
    drawing.save(
        figure(result, f"{'/'.join(Path(args.checkpoint).parts[-2:])} ({subject.arch})"), args.output / "inspection"
    )
    print("\n".join(text))


if __name__ == "__main__":
    run_command("inspect_teacher.py", lambda: main(parse_args()))
