"""Feed-forward network that also encodes position."""

from __future__ import annotations

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class DepthwiseFFN(BaseModule):
    """Two linear layers with a depthwise 3x3 convolution between them.

    The zero padding of the convolution tells a token where it lies, so that no position embedding is needed and any
    resolution works (Islam et al., arXiv 2001.08248; used in this form by SegFormer and PVTv2).

    Args:
        embed_dims: number of channels C.
        feedforward_channels: number of channels between the linear layers.
        drop_rate: dropout after either linear layer.
        recompute: make the activations between the convolution and the second linear layer anew in the backward pass.
        init_cfg: mmengine initialisation config.
    """

    def __init__(
        self,
        embed_dims: int,
        feedforward_channels: int,
        drop_rate: float = 0.0,
        recompute: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__(init_cfg)
        self.fc1 = nn.Linear(embed_dims, feedforward_channels)
        self.dwconv = nn.Conv2d(
            feedforward_channels, feedforward_channels, kernel_size=3, padding=1, groups=feedforward_channels
        )
        self.act = nn.GELU()
        self.fc2 = nn.Linear(feedforward_channels, embed_dims)
        self.drop = nn.Dropout(drop_rate)
        self.recompute = recompute

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """Transform the tokens of each (H, W) map: (B, H * W, C) -> (B, H * W, C)."""
        x = self.fc1(x)
        # The transposed view is a map in channels-last layout: nothing is copied on the way in or out.
        x = self.dwconv(x.transpose(1, 2).unflatten(2, hw_shape)).flatten(2).transpose(1, 2)
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._second_half, x, use_reentrant=False, preserve_rng_state=self.drop.p > 0)
        return self._second_half(x)

    def _second_half(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(x))))
