"""The workaround that fairseq 0.12.2 needs beside torch 2.

An encoder layer that was loaded and never trained takes a "fast path": it calls
`torch._transformer_encoder_layer_fwd`, whose signature has changed since (`RuntimeError: Mask Type should be defined`;
fairseq issues 4858 and 4899). Every post-norm ReLU or GELU Transformer is hit: in generation, and as a teacher that
only ever runs in evaluation mode. The ordinary path computes the same, so the fast one is switched off in every layer
built.
"""

import functools

from fairseq.modules.transformer_layer import TransformerEncoderLayerBase


def switch_off() -> None:
    """In every encoder layer that is built from now on."""
    stock_init = TransformerEncoderLayerBase.__init__

    @functools.wraps(stock_init)
    def init(self, *args, **kwargs):
        stock_init(self, *args, **kwargs)
        self.can_use_fastpath = False

    TransformerEncoderLayerBase.__init__ = init
