"""Translates plain text with a trained student or expert: one line in, one line out, in the same order.

    python scripts/nmt/translate.py results/student/checkpoint_best.pt --to de < english.txt > german.txt
    echo "Good morning." | python scripts/nmt/translate.py results/student/checkpoint_best.pt --to de

All that it needs lies beside the checkpoint, where training left it: dictionaries (dict.<lang>.txt) and sentencepiece
model (spm.model); language pairs, the order of languages and language tokens are in the checkpoint. The words are those
of `fairseq-generate` with the same --beam. Empty lines stay empty. Lines that the model cannot read, because they are
too long, are left empty and named on stderr, and the exit status is then 1. Long text is translated as it comes.

Uses all GPUs, or all cores where there is none.
"""

import argparse
import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from scripts.nmt.lib.user_error import UserError, run_cli
from vision_reference.analysis import flags
from vision_reference.errors import Parser

# Lines that are translated and written together: enough to sort by length, few enough to see the text grow.
BLOCK_LINES = 512
# Input that pauses for longer is not waited for: what has come is translated.
PATIENCE_SECONDS = 0.1


def get_args_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint", type=flags.path, metavar="CHECKPOINT", help="such as results/student/checkpoint_best.pt"
    )
    parser.add_argument(
        "--to",
        type=flags.filled_text,
        required=True,
        metavar="LANG",
        dest="target",
        help="language to translate into",
    )
    source = "language of the text; needed where several lead to --to"
    parser.add_argument("--from", type=flags.filled_text, metavar="LANG", dest="source", help=source)
    parser.add_argument("--beam", type=int, default=5, help="beam size (default: %(default)s)")
    parser.add_argument("--cpu", action="store_true", help="leave GPUs alone")
    return parser


def read_blocks(stream: BinaryIO, lines_of_block: int = BLOCK_LINES) -> Iterator[list[str] | None]:
    """The lines of a stream in blocks; a block ends early where the stream pauses, and `None` follows it.

    Raises UserError, with the number of the line, for text that is not UTF-8 and for lines above 1 MiB.
    """
    from scripts.nmt.lib.parallel_text import read_lines

    block: list[str] = []
    source = PausingStream(stream)
    for line in read_lines(source, "standard input"):
        block.append(line)
        if len(block) == lines_of_block:
            yield block
            block = []
        if source.pauses():
            if block:
                yield block
                block = []
            yield None
    if block:
        yield block


class PausingStream:
    """Lines of a raw stream, as `readline` gives them, that tells whether it would have to wait for the next one."""

    def __init__(self, stream: BinaryIO) -> None:
        self.descriptor = stream.fileno()
        self.held = bytearray()
        self.ended = False

    def readline(self, limit: int) -> bytes:
        while (end := self.held.find(b"\n")) < 0 and len(self.held) < limit and not self.ended:
            self._read()
        size = min(end + 1 or len(self.held), limit)
        line = bytes(self.held[:size])
        del self.held[:size]
        return line

    def pauses(self) -> bool:
        while b"\n" not in self.held and not self.ended:
            ready, _, _ = select.select([self.descriptor], [], [], PATIENCE_SECONDS)
            if not ready:
                return True
            self._read()
        return False

    def _read(self) -> None:
        chunk = os.read(self.descriptor, 1 << 16)
        self.held += chunk
        self.ended = not chunk


def main() -> None:
    args = get_args_parser().parse_args()
    if args.beam < 1:
        raise UserError(f"--beam {args.beam} is below 1")
    from scripts.nmt.lib.recorded_model import find_vocabulary, read_recorded
    from scripts.nmt.lib.translator import Translator, devices, translate_blocks

    recorded = read_recorded(args.checkpoint)
    pair = recorded.choose(args.source, args.target)
    vocabulary = find_vocabulary(recorded, pair)
    translator = Translator(recorded, pair, vocabulary, args.beam)
    done, left_out = 0, 0
    for translations in translate_blocks(translator, read_blocks(sys.stdin.buffer), devices(args.cpu)):
        for number, translation in enumerate(translations, start=done + 1):
            if translation.problem:
                left_out += 1
                print(f"translate.py: line {number}: {translation.problem}: left empty", file=sys.stderr)
        done += len(translations)
        sys.stdout.buffer.write("".join(f"{translation.text}\n" for translation in translations).encode())
        sys.stdout.buffer.flush()
    sys.exit(1 if left_out else 0)


if __name__ == "__main__":
    run_cli("translate.py", main)
