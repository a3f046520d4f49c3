"""Which models end in a plain linear layer, so that the loss can be worked out from the features before it."""

from __future__ import annotations

import torch
from fairseq.distributed import DistributedTimeoutWrapper, LegacyDistributedDataParallel, ModuleProxyWrapper
from fairseq.models.transformer import TransformerDecoderBase, TransformerModelBase
from fairseq.modules import AdaptiveSoftmax
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

# The way from features to probabilities: a model or decoder with a way of its own may mean something else by it.
MODEL_METHODS = ("forward", "get_normalized_probs", "get_normalized_probs_scriptable", "get_targets")
DECODER_METHODS = ("forward", "output_layer", "get_normalized_probs")


def plain_output_layer(model: nn.Module) -> tuple[nn.Linear | None, str]:
    """The layer that makes logits of what `model(..., features_only=True)` returns, or None and the reason why not.

    Plain are the models of fairseq's Transformer family whose decoder ends in an `nn.Linear`, tied to an embedding or
    not; alone or wrapped for training in several processes by a wrapper that minds no parameter being used outside its
    own forward pass. `legacy_ddp` adds up all gradients after the backward pass. PyTorch's own waits for each
    parameter's gradient to be complete, wherever it comes from, but where it looks for unused parameters it finds the
    output layer's only if they are the embedding's, too. Sharded parameters are whole within the forward pass only.
    """
    looks_for_unused = False
    while isinstance(
        model,
        (ModuleProxyWrapper, DistributedTimeoutWrapper, LegacyDistributedDataParallel, DistributedDataParallel),
    ):
        if isinstance(model, DistributedDataParallel):
            looks_for_unused = model.find_unused_parameters
        model = model.module
    if not _keeps(model, TransformerModelBase, MODEL_METHODS):
        return None, f"{type(model).__name__} may have its own way from features to probabilities"
    decoder = model.decoder
    if not _keeps(decoder, TransformerDecoderBase, DECODER_METHODS):
        return None, f"{type(decoder).__name__} may have its own way from features to probabilities"
    if decoder.adaptive_softmax is not None:
        return None, "the adaptive softmax gives no logits"
    layer = decoder.output_projection
    if type(layer) is not nn.Linear or layer._forward_hooks or layer._forward_pre_hooks:
        return None, f"the output layer is not a plain linear one but {type(layer).__name__}, or has hooks"
    if looks_for_unused and (layer.weight is not decoder.embed_tokens.weight or layer.bias is not None):
        return None, "--find-unused-parameters does not see an output layer of its own used outside the model"
    return layer, ""


def adaptive_lprobs(softmax: AdaptiveSoftmax, features: Tensor) -> Tensor:
    """(N, V) log-probabilities of an adaptive softmax (Grave et al. 2017, arXiv 1609.04309) from features (N, D).

    Equal to its `get_log_prob`, which works in place and so has no gradient.
    """
    head = softmax.lsm(softmax.head(features))
    first = softmax.cutoff[0]
    tails = [softmax.lsm(tail(features)) + head[:, first + nth, None] for nth, tail in enumerate(softmax.tail)]
    return torch.cat([head[:, :first], *tails], dim=1)


def _keeps(module: nn.Module, base: type, methods: tuple[str, ...]) -> bool:
    """Whether a module of this family has overridden none of these methods, as a class or by itself."""
    return isinstance(module, base) and all(
        getattr(type(module), name) is getattr(base, name) and name not in vars(module) for name in methods
    )
