"""What a checkpoint needs beside it to translate plain text: dictionaries and the sentencepiece model.

Training copies them into its save folder, so that the folder can be moved, given away and used alone:

    SAVE_DIR/dict.<lang>.txt    fairseq's dictionary of each language
    SAVE_DIR/spm.model          the sentencepiece model, where the data folder has one

Pairs, the order of languages and the kind of language tokens are in the checkpoint itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import UserError
from ..files import write_atomically

SENTENCEPIECE_MODEL = "spm.model"


def dictionary_name(language: str) -> str:
    return f"dict.{language}.txt"


def find_sentencepiece_model(data_bin: Path) -> Path | None:
    """Of the data in `data_bin`: it lies there, or in the folder around it, where prepare.py leaves it."""
    return next(
        (path for folder in (data_bin, data_bin.parent) if (path := folder / SENTENCEPIECE_MODEL).is_file()), None
    )


def keep_vocabulary(data_bin: Path, dictionaries: Mapping[str, Path], save_dir: Path) -> None:
    """Copy dictionaries and the sentencepiece model of `data_bin` into `save_dir`, each in one step.

    Args:
        data_bin: folder of fairseq-preprocess.
        dictionaries: the file of each language.
        save_dir: made if it is missing.

    Raises:
        UserError: a dictionary is missing, a file cannot be written, or `save_dir` holds those of other data.
    """
    sources = {dictionary_name(language): path for language, path in dictionaries.items()}
    model = find_sentencepiece_model(data_bin)
    if model is not None:
        sources[SENTENCEPIECE_MODEL] = model
    try:
        save_dir.mkdir(parents=True, exist_ok=True)
        for name, source in sources.items():
            _copy_once(source, save_dir / name)
    except OSError as problem:
        raise UserError(
            f"the vocabulary of {data_bin} cannot be kept in {save_dir}: {problem.strerror} ({problem.filename})"
        ) from None


def _copy_once(source: Path, target: Path) -> None:
    content = source.read_bytes()
    if target.exists():
        if target.read_bytes() != content:
            raise UserError(
                f"{target} is of other data than {source}: a model cannot change its vocabulary; choose a new "
                "folder to save to"
            )
        return
    write_atomically(target, content)
