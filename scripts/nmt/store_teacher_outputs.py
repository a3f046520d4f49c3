"""Stores an expert's predictions for every target word of prepared data, once, so that students train without it.

    python scripts/nmt/store_teacher_outputs.py --data-bin data/iwslt/data-bin --lang-pair en-de \\
        --teacher results/iwslt/experts-0.1/en-de/checkpoint_best.pt --output results/iwslt/outputs-0.1/en-de
    fairseq-train ... --task multilingual_translation_kd --teacher-outputs en-de=results/iwslt/outputs-0.1/en-de

Uses all GPUs, or all cores where there is none. A run that was killed goes on where it stopped when the same command is
run again; a finished one is left as it is. Format: fairseq_plugins/teachers/store.py.
"""

import argparse
import logging
import sys
import warnings
from pathlib import Path

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from scripts.nmt.lib.quiet_fairseq import import_fairseq
from scripts.nmt.lib.references_flags import add_references
from scripts.nmt.lib.user_error import run_cli
from vision_reference import arguments
from vision_reference.analysis import flags
from vision_reference.errors import Parser


def get_args_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add_references(parser, subset="train", max_tokens=4096)
    teacher = "the expert's checkpoint; several, joined by ':', are an ensemble"
    add("--teacher", type=flags.filled_text, required=True, metavar="C", help=teacher)
    add("--output", type=flags.path, required=True, metavar="DIR", help="folder to make, or to go on with")
    add("--top-k", type=flags.count, default=8, metavar="K", help="entries kept for each word (default: %(default)s)")
    taken = "values that --kd-temperature can take in training (default: %(default)s)"
    add("--temperatures", type=arguments.temperatures, default="1,2,3,64", metavar="T,...", help=taken)
    add("--workers", type=flags.count, metavar="N", help="processes (default: one for each GPU, or each core)")
    add("--cpu", action="store_true", help="leave GPUs alone")
    precision = "in which the expert runs; others than %(default)s on GPUs only (default: %(default)s)"
    add("--precision", choices=("fp32", "fp16", "bf16"), default="fp32", help=precision)
    return parser


def main() -> None:
    args = get_args_parser().parse_args()
    import_fairseq()
    from scripts.nmt.lib.store_outputs import store

    logging.disable(logging.INFO)  # fairseq's account of every file it opens
    warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")  # stock fairseq's own masks
    store(**vars(args))


if __name__ == "__main__":
    run_cli("store_teacher_outputs.py", main)
