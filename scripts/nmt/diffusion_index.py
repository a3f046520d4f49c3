"""How far a higher temperature drew a student's words towards their look-alikes: the diffusion index of translation.

    python scripts/nmt/diffusion_index.py --data-bin data/iwslt/data-bin --lang-pair en-de --output results/diffusion \\
        --plain-teacher experts-0.0/en-de/checkpoint_best.pt \\
        --reference plain=student-0.0-T1/checkpoint_best.pt    --student plain:3=student-0.0-T3/checkpoint_best.pt \\
        --reference smoothed=student-0.1-T1/checkpoint_best.pt --student smoothed:3=student-0.1-T3/checkpoint_best.pt

As for images (vision_reference/analysis/diffusion_index.py), with these in the place of images and classes: a class is
one of the --classes most frequent target pieces of the split (ends of sentences left out), its images are all places
where the reference translation has that piece, and the feature of a place is what goes into the decoder's output layer
there while the decoder is given the reference before it. Similar to a piece are those that the plain expert (alpha = 0)
gives most probability to, at T = 1, in its places. What it does not show: pieces are classes of very unequal frequency
and often parts of words; a place's feature depends on the words around it more than an image's does on its background,
so that mean features blur; rare words, where teachers are least sure, are left out; and with the reference given,
nothing is seen of the translations that the student would write by itself. It compares students with one another, no
more.

Writes DIR/diffusion_index.{csv,json,png,pdf,svg}. Every model is read as safely as a teacher is.
"""

import logging
import sys
from pathlib import Path

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from scripts.nmt.lib.references_flags import add_references
from scripts.nmt.lib.user_error import run_cli
from vision_reference.analysis import diffusion_index, flags


def get_args_parser() -> flags.Parser:
    """The command line."""
    parser = flags.Parser("diffusion_index.py", __doc__)
    add_references(parser, subset="valid", max_tokens=2048)
    diffusion_index.add_arguments(parser)
    parser.add_argument(
        "--classes", type=flags.count, default=50, metavar="N", help="frequent target pieces (default: %(default)s)"
    )
    return parser


def main() -> None:
    """Collect, compute, write."""
    args = get_args_parser().parse_args()
    diffusion_index.check_arguments(args)
    from scripts.nmt.lib.quiet_fairseq import import_fairseq

    import_fairseq()
    logging.getLogger("fairseq").setLevel(logging.WARNING)  # it tells of every file that it opens
    from scripts.nmt.lib import decoder_features as decoder

    references = decoder.open_references(args.data_bin, args.pair, args.subset)
    classes = decoder.frequent_tokens(references, args.classes)
    names = [references.dictionary[int(entry)] for entry in classes]

    def seen(title: str, path: str):
        teacher = decoder.load(path, references)
        return decoder.of_classes(teacher, references, classes, max_tokens=args.max_tokens, title=title)

    _, probabilities = seen("plain expert", args.plain_teacher)
    found: dict[tuple[str, float], list] = {}
    start = args.reference_temperature
    cells = [(kind, start, diffusion_index.split_paths(text)) for kind, text in args.reference] + args.student
    for kind, temperature, paths in cells:
        title = f"{kind} T={temperature:g}"
        found[kind, temperature] = [seen(title, path)[0] for path in paths]
    reference = {kind: found.pop((kind, start)) for kind, _ in args.reference}
    index = diffusion_index.compute(probabilities, reference, found)
    diffusion_index.write(args.output, index, names, None, reference=start)
    print("\n".join(diffusion_index.lines(index)))
    print(f"written to {args.output}/diffusion_index.{{csv,json,png,pdf,svg}}")


if __name__ == "__main__":
    run_cli("diffusion_index.py", main)
