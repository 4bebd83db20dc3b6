"""FMA2D: a hierarchical vision backbone with Fast Multipole Attention."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, islice
from typing import Any, TypeVar

import torch
import torch.utils.checkpoint as cp
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmcv.cnn.bricks.scale import LayerScale
from mmcv.cnn.bricks.transformer import PatchEmbed
from mmengine.model import BaseModule, ModuleList
from mmengine.registry import MODELS
from mmengine.utils import to_2tuple
from torch import Tensor, nn

from fma_kernels import Hierarchy
from fma_kernels.checks import require

from .attention import FMA2DAttention
from .ffn import DepthwiseFFN

T = TypeVar("T")

#: Keys of a dict that describes an architecture.
ARCH_KEYS = {"embed_dims", "depths", "num_heads"}

#: Arguments of :class:`FMA2D` that it passes on to the attention of every block.
ATTENTION_OPTIONS = (
    "attention", "basis_kind", "share_heads", "qkv_bias", "qk_scale", "group_bias", "value_gain", "backend",
)  # fmt: skip

#: What the backward pass makes anew instead of keeping it, beside whole blocks: nothing; the activations inside the
#: feed-forward networks; or these networks with their normalisation, but for the second linear layer.
RECOMPUTE = ("nothing", "activations", "ffn")

#: Initialisation when a config asks for none. The fan-in of a depthwise convolution is that of one channel.
INIT_CFG = [
    dict(type="TruncNormal", layer="Linear", std=0.02, bias=0.0),
    dict(type="Kaiming", layer="Conv2d", mode="fan_in"),
]


class FMA2DBlock(BaseModule):
    """Pre-norm residual block: attention, then a feed-forward network, each under stochastic depth.

    Args:
        embed_dims: number of channels C.
        num_heads: number of attention heads.
        ffn_ratio: channels inside the feed-forward network, as a multiple of C.
        drop_rate: dropout after the projections of the attention and of the feed-forward network.
        drop_path: probability to skip each of the two branches, per sample.
        layer_scale_init_value: start of a learned factor per channel on each branch; 0 leaves the factors out.
        norm_cfg: config of the normalisation layers.
        attn_cfg: further arguments of :class:`FMA2DAttention`.
        recompute: one of :data:`RECOMPUTE`.
        with_cp: recompute the block in the backward pass instead of storing its activations.
        init_cfg: mmengine initialisation config.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        ffn_ratio: float,
        drop_rate: float,
        drop_path: float,
        layer_scale_init_value: float,
        norm_cfg: dict,
        attn_cfg: dict,
        recompute: str,
        with_cp: bool,
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__(init_cfg)
        self.recompute, self.with_cp = recompute, with_cp

        def layer_scale() -> nn.Module:
            return LayerScale(embed_dims, scale=layer_scale_init_value) if layer_scale_init_value else nn.Identity()

        self.norm1 = build_norm_layer(norm_cfg, embed_dims)[1]
        self.attn = FMA2DAttention(embed_dims, num_heads, proj_drop=drop_rate, **attn_cfg)
        self.scale1 = layer_scale()
        self.norm2 = build_norm_layer(norm_cfg, embed_dims)[1]
        self.ffn = DepthwiseFFN(
            embed_dims, int(embed_dims * ffn_ratio), drop_rate, recompute=recompute == "activations"
        )  # fmt: skip
        self.scale2 = layer_scale()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """(B, H * W, C) -> (B, H * W, C)."""
        if self.with_cp and torch.is_grad_enabled():
            return cp.checkpoint(self._forward, x, hw_shape, use_reentrant=False)
        return self._forward(x, hw_shape)

    def _forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        x = x + self.drop_path(self.scale1(self.attn(self.norm1(x), hw_shape)))
        if self.recompute == "ffn" and torch.is_grad_enabled():
            random = self.ffn.drop.p > 0
            branch = cp.checkpoint(self._ffn, x, hw_shape, use_reentrant=False, preserve_rng_state=random)
        else:
            branch = self._ffn(x, hw_shape)
        return x + self.drop_path(self.scale2(branch))

    def _ffn(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        return self.ffn(self.norm2(x), hw_shape)


class FMA2DStage(BaseModule):
    """An overlapping patch embedding followed by blocks at one resolution.

    Args:
        patch_cfg: arguments of mmcv's ``PatchEmbed``.
        drop_paths: stochastic depth rate of each block.
        block_cfg: further arguments of every :class:`FMA2DBlock`.
        init_cfg: mmengine initialisation config.
    """

    def __init__(
        self,
        patch_cfg: dict,
        drop_paths: Sequence[float],
        block_cfg: dict,
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__(init_cfg)
        self.patch_embed = PatchEmbed(**patch_cfg)
        self.blocks = ModuleList(FMA2DBlock(drop_path=drop_path, **block_cfg) for drop_path in drop_paths)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Map (B, C', H', W') to the tokens (B, H * W, C) of this stage and their (H, W)."""
        x, hw_shape = self.patch_embed(x)
        for block in self.blocks:
            x = block(x, hw_shape)
        return x, hw_shape


@MODELS.register_module()
class FMA2D(BaseModule):
    """Hierarchical vision backbone with Fast Multipole Attention in every block.

    Four stages at strides 4, 8, 16 and 32. Each starts with an overlapping patch embedding and goes on with pre-norm
    blocks of :class:`FMA2DAttention` and a feed-forward network with a depthwise 3x3 convolution. The convolutions are
    the only source of position, so any height and width works, and a checkpoint serves every resolution.

    Keep weight decay off the summary bases, by ``custom_keys={"_basis": dict(decay_mult=0.0)}``: it would pull the
    summaries towards zero, also those of levels that only larger images have.

    The architectures have the depths, widths and heads of Swin-T/S/B/L, for comparison at equal size:

    ========  ==========  ==============  ===============  ==============  ===============
    arch      embed_dims  depths          num_heads        parameters      FLOPs (224x224)
    ========  ==========  ==============  ===============  ==============  ===============
    tiny      96          2, 2, 6, 2      3, 6, 12, 24     29,775,168      5.50 G
    small     96          2, 2, 18, 2     3, 6, 12, 24     51,418,944      10.05 G
    base      128         2, 2, 18, 2     4, 8, 16, 32     91,045,632      17.28 G
    large     192         2, 2, 18, 2     6, 12, 24, 48    204,029,568     37.53 G
    ========  ==========  ==============  ===============  ==============  ===============

    One FLOP is one multiply-add. Counted are the convolutions, the linear layers, the attention's products with keys
    and values (near tokens and far summaries), and the making of the summaries. The figures hold for the defaults of
    the other arguments; at this size the last two stages are full attention.

    Args:
        arch: ``"tiny"``, ``"small"``, ``"base"``, ``"large"``, or a dict with the keys ``embed_dims`` (channels of the
            first stage; every further stage doubles them), ``depths`` (blocks per stage) and ``num_heads`` (per stage).
        img_size: the usual side, or (height, width), of the input in pixels. It sets the number of levels whose
            bases are built, and nothing else. An input with more levels reuses the last one that was built; weights
            for levels that the usual input does not have would stay untrained.
        in_channels: channels of the input.
        patch_sizes: side of the patch embedding's kernel, per stage.
        strides: stride of the patch embedding, per stage.
        cell_sizes: side of the finest cells in tokens, one for all stages or one per stage.
        ranks: summaries per cell and axis, one for all stages or one per stage; divides the cell size.
        ffn_ratio: channels inside the feed-forward networks, as a multiple of the stage's.
        drop_rate: dropout after the projections of attention and feed-forward networks.
        attn_drop_rate: dropout of the attention weights.
        drop_path_rate: stochastic depth rate of the last block; it grows linearly from 0 at the first.
        layer_scale_init_value: start of a learned factor per channel on each residual branch; 0 leaves them out.
        out_indices: stages whose maps are returned; negative numbers count from the last stage.
        frozen_stages: the last of the stages that are frozen (no gradient, eval mode) from the first on; -1: none.
        norm_cfg: config of the normalisation layers.
        recompute: trade time for memory: what the backward pass makes anew. ``"nothing"``; ``"activations"`` inside the
            feed-forward networks, the default, which costs next to no time; or ``"ffn"``, these networks with their
            normalisation. Outputs and gradients are the same, bit for bit. docs/performance.md has what each saves.
        with_cp: recompute each block in the backward pass, which takes the most time and the least memory.
        init_cfg: mmengine initialisation config; None for truncated normal linear layers and Kaiming convolutions. The
            summary bases start as ``value_gain`` says, whatever it is.
        **attention_options: options of the attention of every block, with the defaults of :class:`FMA2DAttention`:

            - ``attention``: ``"fma"``, or ``"fma_linear"`` where queries are summarised too and the cost is linear in
              H * W. Controls have the same projections, the same initialisation and no bases: ``"near"`` reads the near
              field alone, ``"full"`` all tokens by PyTorch's scaled_dot_product_attention, ``"none"`` no other token.
            - ``basis_kind``: ``"nested"``, ``"direct"`` or ``"mean"``. With ``"direct"``, inputs much larger than
              ``img_size`` have more levels than were built and are refused.
            - ``share_heads``: share the summary bases over the heads; False by default.
            - ``qkv_bias``: add a bias to the projections to queries, keys and values; True by default.
            - ``qk_scale``: factor of the logits; ``head_dim ** -0.5`` by default.
            - ``group_bias``: let a summary weigh as much as the tokens that it stands for; True by default.
            - ``value_gain``: factor of the means that learned value summaries start as; 1 by default. With 0 the far
              field adds nothing at first.
            - ``backend``: see :func:`fma_kernels.fma_attention`; ``"auto"`` by default.

    Raises:
        ValueError: an argument is outside of the values stated above, or there is no such argument.

    Example:
        >>> backbone = FMA2D(arch="tiny", out_indices=(0, 1, 2, 3))
        >>> [tuple(x.shape) for x in backbone(torch.rand(1, 3, 256, 309))]
        [(1, 96, 64, 78), (1, 192, 32, 39), (1, 384, 16, 20), (1, 768, 8, 10)]

    Example:
        >>> backbone = FMA2D(arch="tiny", out_indices=(0, 1, 2, 3))
        >>> [tuple(x.shape) for x in backbone(torch.rand(1, 3, 64, 96))]
        [(1, 96, 16, 24), (1, 192, 8, 12), (1, 384, 4, 6), (1, 768, 2, 3)]
    """

    arch_zoo = {  # noqa: RUF012
        "tiny": dict(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
        "small": dict(embed_dims=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
        "base": dict(embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
        "large": dict(embed_dims=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)),
    }

    def __init__(
        self,
        arch: str | dict = "tiny",
        *,
        img_size: int | tuple[int, int] = 224,
        in_channels: int = 3,
        patch_sizes: Sequence[int] = (7, 3, 3, 3),
        strides: Sequence[int] = (4, 2, 2, 2),
        cell_sizes: int | Sequence[int] = 7,
        ranks: int | Sequence[int] = 1,
        ffn_ratio: float = 4.0,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        layer_scale_init_value: float = 0.0,
        out_indices: int | Sequence[int] = (-1,),
        frozen_stages: int = -1,
        norm_cfg: dict = dict(type="LN"),  # noqa: B006
        recompute: str = "activations",
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
        **attention_options: Any,
    ):
        super().__init__(INIT_CFG if init_cfg is None else init_cfg)
        for name, value in attention_options.items():
            expected = f"an argument of FMA2D, or of its attention: {', '.join(ATTENTION_OPTIONS)}"
            require(name in ATTENTION_OPTIONS, name, value, expected)
        arch = self._resolve_arch(arch)
        self.depths = tuple(arch["depths"])
        num_stages = len(self.depths)
        self.num_features = tuple(arch["embed_dims"] * 2**i for i in range(num_stages))
        patch_sizes = _per_stage("patch_sizes", patch_sizes, num_stages)
        strides = _per_stage("strides", strides, num_stages)
        cell_sizes = _per_stage("cell_sizes", cell_sizes, num_stages)
        ranks = _per_stage("ranks", ranks, num_stages)
        require(recompute in RECOMPUTE, "recompute", recompute, f"one of {', '.join(RECOMPUTE)}")
        require(0 <= drop_path_rate < 1, "drop_path_rate", drop_path_rate, "a number in [0, 1)")
        require(
            isinstance(frozen_stages, int) and -1 <= frozen_stages < num_stages,
            "frozen_stages",
            frozen_stages,
            f"-1 for none, or the number of a stage up to {num_stages - 1}",
        )
        self.frozen_stages = frozen_stages
        self.out_indices = _resolve_out_indices(out_indices, num_stages)

        last = max(1, sum(self.depths) - 1)
        drop_paths = iter([drop_path_rate * block / last for block in range(sum(self.depths))])
        grid = to_2tuple(img_size)
        self.stages = ModuleList()
        for i, channels in enumerate(self.num_features):
            padding = (patch_sizes[i] - 1) // 2
            grid = tuple((n + 2 * padding - patch_sizes[i]) // strides[i] + 1 for n in grid)
            require(min(grid) >= 1, "img_size", img_size, f"a size that leaves at least one token in stage {i}")
            stage = FMA2DStage(
                patch_cfg=dict(
                    in_channels=self.num_features[i - 1] if i else in_channels,
                    embed_dims=channels,
                    kernel_size=patch_sizes[i],
                    stride=strides[i],
                    padding=padding,
                    norm_cfg=norm_cfg,
                ),
                drop_paths=list(islice(drop_paths, self.depths[i])),
                block_cfg=dict(
                    embed_dims=channels,
                    num_heads=arch["num_heads"][i],
                    ffn_ratio=ffn_ratio,
                    drop_rate=drop_rate,
                    layer_scale_init_value=layer_scale_init_value,
                    norm_cfg=norm_cfg,
                    recompute=recompute,
                    with_cp=with_cp,
                    attn_cfg=dict(
                        cell_size=cell_sizes[i],
                        rank=ranks[i],
                        num_levels=max(1, Hierarchy(grid, cell_sizes[i], ranks[i]).num_levels),
                        attn_drop=attn_drop_rate,
                        **attention_options,
                    ),
                ),
            )
            self.stages.append(stage)
        for i in self.out_indices:
            self.add_module(f"norm{i}", build_norm_layer(norm_cfg, self.num_features[i])[1])
        self._freeze_stages()

    @classmethod
    def _resolve_arch(cls, arch: str | dict) -> dict:
        if isinstance(arch, str):
            require(arch in cls.arch_zoo, "arch", arch, f"one of {sorted(cls.arch_zoo)} or a dict")
            return cls.arch_zoo[arch]
        complete = isinstance(arch, dict) and set(arch) == ARCH_KEYS
        require(complete, "arch", arch, f"a name or a dict with the keys {sorted(ARCH_KEYS)}")
        depths, num_heads = arch["depths"], arch["num_heads"]
        require(len(depths) > 0 and min(depths) >= 1, "arch['depths']", depths, "at least one block in every stage")
        require(len(num_heads) == len(depths), "arch['num_heads']", num_heads, f"one number per stage, {len(depths)}")
        for i, heads in enumerate(num_heads):
            channels = arch["embed_dims"] * 2**i
            divides = heads >= 1 and channels % heads == 0
            require(divides, "arch['num_heads']", num_heads, f"a divisor of {channels} in stage {i}")
        return arch

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps.

        Args:
            x: images (B, in_channels, H, W) of any height and width.

        Returns:
            The normalised maps (B, C_i, H_i, W_i) of the stages in ``out_indices``, finest first.
        """
        outs = []
        for i, stage in enumerate(self.stages):
            tokens, hw_shape = stage(x)
            x = tokens.transpose(1, 2).unflatten(2, hw_shape)
            if i in self.out_indices:
                out = getattr(self, f"norm{i}")(tokens)
                outs.append(out.transpose(1, 2).unflatten(2, hw_shape).contiguous())
        return tuple(outs)

    def train(self, mode: bool = True) -> FMA2D:
        """Set the mode; frozen stages stay in eval mode."""
        super().train(mode)
        self._freeze_stages()
        return self

    def _freeze_stages(self):
        for i in range(self.frozen_stages + 1):
            frozen = [self.stages[i]]
            if i in self.out_indices:
                frozen.append(getattr(self, f"norm{i}"))
            for module in frozen:
                module.eval()
                module.requires_grad_(False)

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        """Depth of a parameter for layer-wise learning-rate decay.

        Args:
            param_name: full name of the parameter.
            prefix: what the backbone's own parameter names follow in it, e.g. ``"backbone."``.

        Returns:
            The depth and the number of depths: 0 for the first patch embedding, then one per block (a later patch
            embedding counts with the block before it), and the last one for everything after the blocks.
        """
        num_layers = sum(self.depths) + 2
        name = param_name.removeprefix(prefix)
        if not param_name.startswith(prefix) or not name.startswith("stages."):
            return num_layers - 1, num_layers
        _, stage, part, index, *_ = name.split(".")
        before = [0, *accumulate(self.depths)][int(stage)]
        return (before + 1 + int(index) if part == "blocks" else before), num_layers


def _per_stage(name: str, value: T | Sequence[T], num_stages: int) -> tuple[T, ...]:
    """Repeat a single value for every stage; check a sequence."""
    if not isinstance(value, Sequence):
        return (value,) * num_stages
    require(len(value) == num_stages, name, value, f"one value per stage, {num_stages}")
    return tuple(value)


def _resolve_out_indices(out_indices: int | Sequence[int], num_stages: int) -> tuple[int, ...]:
    given = [out_indices] if isinstance(out_indices, int) else list(out_indices)
    valid = all(isinstance(i, int) and -num_stages <= i < num_stages for i in given)
    require(valid, "out_indices", out_indices, f"numbers of stages from {-num_stages} to {num_stages - 1}")
    resolved = sorted({i % num_stages for i in given})
    require(len(resolved) == len(given) > 0, "out_indices", out_indices, "at least one stage, each at most once")
    return tuple(resolved)
