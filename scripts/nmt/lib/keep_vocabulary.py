"""Copies dictionaries and sentencepiece model beside the checkpoints to come (the training scripts ask for it).

python scripts/nmt/lib/keep_vocabulary.py DATA PAIRS OUT [PAIRS OUT]...
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: the root of the clone takes the place of its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[3])

from fairseq_plugins.multilingual.kept_vocabulary import dictionary_name, keep_vocabulary
from scripts.nmt.lib.lang_pair import parse_pairs
from scripts.nmt.lib.user_error import UserError, run_cli


def main() -> None:
    words = sys.argv[1:]
    if len(words) < 3 or len(words) % 2 == 0:
        raise UserError("give DATA and, for each run, its language pairs and its folder")
    data, *runs = words
    for pairs, folder in zip(runs[::2], runs[1::2], strict=True):
        data_bin = Path(data) / "data-bin"
        languages = {language for pair in parse_pairs(pairs) for language in pair}
        keep_vocabulary(data_bin, {one: data_bin / dictionary_name(one) for one in languages}, Path(folder))


if __name__ == "__main__":
    run_cli("training", main)
