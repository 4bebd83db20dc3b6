"""What fairseq puts around the layers of its models."""

from __future__ import annotations

from fairseq.distributed import fsdp_wrap
from fairseq.models.transformer import TransformerConfig
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from torch import nn


def wrap_layer(layer: nn.Module, cfg: TransformerConfig) -> nn.Module:
    """Let a layer compute its activations again, or keep them on the CPU, and shard it, as the flags say.

    Args:
        layer: the layer.
        cfg: fairseq's configuration of layers.
    """
    checkpoint = cfg.checkpoint_activations or cfg.offload_activations
    if checkpoint:
        layer = checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
    return fsdp_wrap(layer, min_num_params=0 if checkpoint else cfg.min_params_to_wrap)
