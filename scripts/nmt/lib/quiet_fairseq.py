"""fairseq, imported late and without its account of what it does."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def import_fairseq() -> None:
    """Import fairseq, which takes seconds and so waits until the arguments are found good."""
    logging.disable(logging.INFO)  # it reports on import that a board for audio tasks is not installed
    import fairseq  # noqa: F401

    logging.disable(logging.NOTSET)
    # the workaround without which fairseq 0.12.2 cannot translate on torch 2
    import fairseq_plugins.inference_only  # noqa: F401

    warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")  # stock fairseq's own masks


@contextmanager
def quiet() -> Iterator[None]:
    """Without fairseq's account of every file it opens."""
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
