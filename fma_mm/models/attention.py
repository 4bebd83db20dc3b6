"""Fast Multipole Attention over an image as an mmengine module."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from mmengine.model import BaseModule
from mmengine.registry import MODELS

from fma_kernels import FMAttention


@MODELS.register_module()
class FMA2DAttention(FMAttention, BaseModule):
    """Multi-head Fast Multipole Attention over a feature map (arXiv 2310.11960, in two dimensions).

    A token reads its own and the touching cells token by token, and everything further away through learned summaries
    that get coarser with distance, all under one softmax. A map of at most two cells per side gets full attention.
    ``forward(x, grid)`` takes the G global tokens and then the tokens of the map in row-major order, (B, G + H * W, C),
    and the height and width ``grid = (H, W)`` of the map. It returns (B, G + H * W, C).

    The summary bases keep the start that ``value_gain`` gives them: no ``init_cfg`` reaches them.

    Args:
        embed_dims: number of channels C, a multiple of ``num_heads``.
        num_heads: number of heads.
        cell_size: side of the finest cells, in tokens.
        rank: summaries per cell and axis; divides ``cell_size``.
        value_gain: factor of the means that learned value summaries start as: 1, ahead of 0 by 0.3 to 0.9 points on
            natural images and digits; 0 where attention alone has to find what is far (docs/far_field.md).
        qk_scale: factor of the logits; ``head_dim ** -0.5`` when None.
        init_cfg: mmengine initialisation config.
        **options: the other arguments of :class:`fma_kernels.FMAttention`: ``attention`` (``"fma"``, ``"fma_linear"``,
            or a control, ``"near"``, ``"full"`` or ``"none"``), ``basis_kind``, ``num_levels``, ``share_heads``,
            ``qkv_bias``, ``group_bias``, ``num_global_tokens``, ``attn_drop``, ``proj_drop``, ``backend``.

    Raises:
        ValueError: an argument is outside of the values stated above.
        TypeError: there is no such option.

    Example:
        >>> attention = FMA2DAttention(embed_dims=64, num_heads=2, cell_size=4)
        >>> attention(torch.rand(2, 24 * 32, 64), (24, 32)).shape
        torch.Size([2, 768, 64])
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        *,
        cell_size: int = 7,
        rank: int = 1,
        value_gain: float = 1.0,
        qk_scale: float | None = None,
        init_cfg: dict | list[dict] | None = None,
        **options: Any,
    ):
        super().__init__(
            embed_dims, num_heads, cell_size=cell_size, rank=rank, ndim=2, value_gain=value_gain, scale=qk_scale,
            **options,
        )  # fmt: skip
        self.init_cfg = deepcopy(init_cfg)  # FMAttention, the class before BaseModule, does not pass it on
