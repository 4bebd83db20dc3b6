"""Wrappers that fairseq puts around the layers of its models."""

from __future__ import annotations

from fairseq.distributed import fsdp_wrap
from fairseq.models.transformer import TransformerConfig
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from torch import nn


def wrap_layer(layer: nn.Module, cfg: TransformerConfig) -> nn.Module:
    """Wrap a layer as fairseq's own models do: recompute or offload its activations, and shard its parameters (FSDP).

    Args:
        layer: the layer.
        cfg: fairseq's configuration of layers, which has ``checkpoint_activations``, ``offload_activations`` and
            ``min_params_to_wrap``.
    """
    checkpoint = cfg.checkpoint_activations or cfg.offload_activations
    if checkpoint:
        layer = checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
    return fsdp_wrap(layer, min_num_params=0 if checkpoint else cfg.min_params_to_wrap)
