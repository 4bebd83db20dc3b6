"""Fast Multipole Attention over an image as an mmengine module."""

from __future__ import annotations

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor

from fma_kernels import FMAttention
from fma_kernels.checks import require

#: The two attentions of the paper, by their names in a config.
ATTENTIONS = ("fma", "fma_linear")


@MODELS.register_module()
class FMA2DAttention(BaseModule):
    """Multi-head Fast Multipole Attention over a feature map (arXiv 2310.11960, in two dimensions).

    A token reads its own and the touching cells token by token, and everything further away through learned summaries
    that get coarser with distance, all under one softmax. A map of at most two cells per side gets full attention.

    The summary bases start as means and keep that start: no ``init_cfg`` reaches them.

    Args:
        embed_dims: number of channels C, a multiple of ``num_heads``.
        num_heads: number of heads.
        cell_size: side of the finest cells, in tokens.
        rank: summaries per cell and axis; divides ``cell_size``.
        attention: ``"fma"``, or ``"fma_linear"`` where queries are summarised too and the cost is linear in H * W.
        aggregation: how summaries are made: ``"nested"``, ``"direct"`` or ``"mean"``.
        num_levels: number of levels whose bases are built. ``"nested"`` reuses the last one beyond them.
        share_heads: share the bases over the heads.
        qkv_bias: add a bias to the projections to queries, keys and values.
        qk_scale: factor of the logits; ``head_dim ** -0.5`` when None.
        group_bias: let a summary weigh as much as the tokens it stands for.
        attn_drop: dropout of the attention weights.
        proj_drop: dropout of the output.
        backend: see :func:`fma_kernels.fma_attention`.
        num_global_tokens: leading tokens, such as a class token, that have no place in the map: they read every token
            one by one, and every token reads them.
        init_cfg: mmengine initialisation config.

    Raises:
        ValueError: an argument is outside of what is stated above.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        cell_size: int = 7,
        rank: int = 1,
        attention: str = "fma",
        aggregation: str = "nested",
        num_levels: int = 1,
        share_heads: bool = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        group_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        backend: str = "auto",
        num_global_tokens: int = 0,
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__(init_cfg)
        require(attention in ATTENTIONS, "attention", attention, f"one of {ATTENTIONS}")
        self.fma = FMAttention(
            embed_dims,
            num_heads,
            cell_size,
            rank,
            ndim=2,
            aggregation=aggregation,
            query_summaries=attention == "fma_linear",
            num_levels=num_levels,
            share_heads=share_heads,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            group_bias=group_bias,
            num_global_tokens=num_global_tokens,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            backend=backend,
        )

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """Attend within each feature map.

        Args:
            x: the G global tokens, then those of the map in row-major order, (B, G + H * W, C).
            hw_shape: height and width (H, W) of the map.

        Returns:
            (B, G + H * W, C).
        """
        return self.fma(x, tuple(hw_shape))
