"""What a translation expert is like, before anybody distils from it: token accuracy, calibration, entropy, smoothing.

    python scripts/nmt/inspect_teacher.py --data-bin data/iwslt/data-bin --lang-pair en-de --output results/expert \\
        --checkpoint results/iwslt/experts-0.1/en-de/checkpoint_best.pt

A token of the reference is a case and the vocabulary are the classes: the decoder is given the reference up to the
token and asked what comes next, as in distillation. Accuracy and perplexity are over all tokens of the split, the rest
over evenly spaced ones, so many that their logits fit into memory. --bleu translates the split and scores it as well.
Writes DIR/inspection.json, DIR/inspection.{png,pdf,svg} and prints ten lines. The rule for smoothed labels was
calibrated on images (docs/mechanism.md); what the checkpoint says about its training outweighs it.
"""

import json
import logging
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from scripts.nmt.lib.lang_pair import LangPair
from scripts.nmt.lib.references_flags import add_references
from scripts.nmt.lib.user_error import UserError, run_cli
from vision_reference.analysis import flags, inspect_teacher

LOGITS = 30_000_000  # looked at together: 240 MB as float64, a few times over
FREQUENT = 50  # target pieces whose features' spread is looked at

_PAPER = "En-De BLEU, Transformer to Transformer, Chandrasegaran et al. 2022"


def rule_of_thumb(smoothing: Mapping) -> dict:
    """As `vision_reference.analysis.inspect_teacher.rule_of_thumb`, with the paper's results for translation."""
    recorded = smoothing["recorded"] or {}
    smoothed = bool(recorded.get("label_smoothing")) if recorded else smoothing["answer"] == "smoothed"
    known = bool(recorded) or smoothing["answer"] != "cannot tell"
    kind = ("smoothed" if smoothed else "plain") if known else "unknown"
    advice = "distil at T = 1" + ("; smoothed with 0.1 it may teach a little better" if kind == "plain" else "")
    return {
        "kind": kind,
        "temperature": 1.0,
        "text": f"{kind} expert: {advice}; every higher T cost BLEU",
        "support": f"T = 1, 2, 3: plain 24.9, 23.1, 22.0; smoothed 25.1, 23.4, 22.1 ({_PAPER})",
    }


def next_command(data_bin: Path, pair: LangPair, checkpoint: str) -> str:
    """The line that distils from this expert."""
    places = {"DATA": data_bin.resolve().parent, "PAIRS": pair, "TEACHERS": f"{pair}={checkpoint}"}
    given = " ".join(f"{name}={shlex.quote(str(value))}" for name, value in places.items())
    return f"{given} TEMPERATURE=1 OUT=student bash scripts/nmt/train_student.sh"


def get_args_parser() -> flags.Parser:
    """The command line."""
    parser = flags.Parser("inspect_teacher.py", __doc__)
    add_references(parser, subset="valid", max_tokens=2048)
    parser.add_argument(
        "--checkpoint", type=flags.filled_text, required=True, metavar="C", help="the expert, or a multilingual model"
    )
    flags.add_output(parser)
    parser.add_argument(
        "--tokens", type=flags.count, metavar="N", help="tokens looked at closely (default: as many as memory allows)"
    )
    parser.add_argument("--bleu", action="store_true", help="translate the split and score it, too")
    return parser


def main() -> None:
    """Collect, inspect, write."""
    args = get_args_parser().parse_args()
    from scripts.nmt.lib.quiet_fairseq import import_fairseq

    import_fairseq()
    logging.getLogger("fairseq").setLevel(logging.WARNING)  # it tells of every file that it opens
    from scripts.nmt.lib.decoder_features import open_references
    from vision_reference.analysis import drawing

    pair: LangPair = args.pair
    references = open_references(args.data_bin, pair, args.subset)
    result = look(Path(args.checkpoint), references, tokens=args.tokens, max_tokens=args.max_tokens)
    result["rule"] = rule_of_thumb(result["smoothing"])
    if args.bleu:
        from scripts.nmt.evaluate_bleu import evaluate

        scores = evaluate(args.data_bin, Path(args.checkpoint), [pair], args.output / "bleu.json", subset=args.subset)
        result["bleu"] = scores["pairs"][str(pair)]["bleu"]
    command = next_command(args.data_bin, pair, args.checkpoint)
    text = inspect_teacher.sentences(result, f"{args.checkpoint}, {pair}", command)
    every, bleu = result["all_tokens"], f", BLEU {result['bleu']:.2f}" if args.bleu else ""
    text[1] = (
        f"accuracy      {every['accuracy']:.2f} % of {every['count']:,} tokens, perplexity {every['perplexity']:.2f}"
        f"{bleu}; below: {result['images']:,} of them, {result['classes']:,} entries"
    )
    record = {"checkpoint": args.checkpoint, "lang_pair": str(pair), "subset": args.subset, **result}
    record |= {"command": command, "text": text}
    drawing.save_text(args.output / "inspection.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    title = f"{'/'.join(Path(args.checkpoint).parts[-2:])}, {pair}"
    picture = inspect_teacher.figure(result, title, cases="tokens", classes=("piece", "pieces"))
    drawing.save(picture, args.output / "inspection")
    print("\n".join(text))


def look(checkpoint: Path, references, *, tokens: int | None = None, max_tokens: int, device: str = "cuda") -> dict:
    """`vision_reference.analysis.inspect_teacher.inspect` of evenly spaced tokens, and `all_tokens`: count, accuracy
    (percent) and perplexity; `features` are those of the most frequent pieces.

    Args:
        references: of `decoder_features`; the model was trained on their pair.
        tokens: how many; None: as many as fit.
        device: where it computes; the CPU where there is no GPU.

    Raises:
        UserError: there is no model of this pair, or it does not fit the data.
    """
    import numpy as np
    from scipy.special import logsumexp

    from scripts.nmt.lib.decoder_features import load, walk
    from scripts.nmt.lib.recorded_model import as_dict, read_recorded
    from vision_reference.analysis import geometry

    saved = read_recorded(checkpoint)
    saved.require([references.pair])
    criterion = as_dict(saved.state["cfg"].criterion or {})
    recorded = {
        name: criterion[name] for name in ("label_smoothing", "kd_weight", "kd_temperature") if name in criterion
    }
    teacher = load(str(checkpoint), references, device)
    total = int(np.sum(references.dataset.tgt_sizes))
    wanted = min(total, tokens or max(1, LOGITS // len(references.dictionary)))
    chosen = np.zeros(total, dtype=bool)
    chosen[np.linspace(0, total - 1, wanted).round().astype(int)] = True
    counts = references.counts()
    counts[: references.dictionary.nspecial] = 0
    classes = np.flatnonzero(counts >= max(2, np.sort(counts)[-FREQUENT:][0]))
    seen, kept_logits, kept_targets, kept_features, kept_labels = 0, [], [], [], []
    right, loss = 0, 0.0
    for targets, features, logits in walk(teacher, references, max_tokens=max_tokens, title="expert"):
        rows = chosen[seen : seen + len(targets)]
        seen += len(targets)
        kept_logits.append(logits[rows])
        kept_targets.append(targets[rows])
        frequent = np.isin(targets, classes)
        kept_features.append(features[frequent])
        kept_labels.append(targets[frequent])
        wide = logits.astype(np.float64)
        right += int((wide.argmax(axis=1) == targets).sum())
        loss += float((logsumexp(wide, axis=1) - wide[np.arange(len(targets)), targets]).sum())
    if not seen:
        raise UserError(f"{references.subset} of {references.pair} holds no sentence that this model can read")
    logits, labels = np.concatenate(kept_logits), np.concatenate(kept_targets)
    dictionary = references.dictionary
    names = [dictionary[entry] for entry in range(logits.shape[1])]
    result = inspect_teacher.inspect(logits, labels, names, recorded=recorded, classwise=False)
    result["all_tokens"] = {"count": seen, "accuracy": 100 * right / seen, "perplexity": float(np.exp(loss / seen))}
    present, own = np.unique(np.concatenate(kept_labels), return_inverse=True)
    if len(present) > 1 and np.bincount(own).min() > 1:
        spread = geometry.spread(np.concatenate(kept_features), own, len(present))
        loosest = [dictionary[int(present[place])] for place in np.argsort(-spread.per_class)[:5]]
        result["features"] = {
            "within": spread.within, "between": spread.between, "ratio": spread.ratio, "loosest_classes": loosest,
        }  # fmt: skip
    return result


if __name__ == "__main__":
    run_cli("inspect_teacher.py", main)
