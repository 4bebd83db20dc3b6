"""Fast Multipole Attention in an existing vision transformer, with its weights."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fma_kernels import ATTENTIONS, CoreAttention, Hierarchy
from fma_kernels.checks import require


def convert_attention(
    model: nn.Module,
    cell_size: int,
    rank: int = 1,
    *,
    attention: str = "fma",
    layers: int | Iterable[int] | None = None,
    basis_kind: str = "nested",
    num_levels: int | None = None,
    share_heads: bool = False,
    group_bias: bool = True,
    value_gain: float = 1.0,
    backend: str = "auto",
) -> nn.Module:
    """Replace the self-attention of a vision transformer by FMA over its patches, in place.

    The function works on ``VisionTransformer`` of mmpretrain and of mmseg, alone or inside a larger model, and on the
    variants of mmpretrain that have the same attention: ``DistilledVisionTransformer``, ``DeiT3``, ``MoCoV3ViT``,
    ``MaskFeatViT``. The rest of the layers stays: the trained projections under their names, dropout, layer scale,
    stochastic depth. Class and distillation tokens remain exact: they read every token and every token reads them.

    The only new parameters are the summary bases, with ``_basis`` in their names. They start as means, or as
    ``value_gain`` says, and follow ``requires_grad`` of the projection to queries, keys and values. So an earlier
    checkpoint loads, and only the bases are missing in it. Where the patches of an image make at most two cells per
    side, the model computes the same as before (a ViT/16 at 224 x 224 has 14 x 14 patches: two cells of 7).

    An optimizer or a distributed wrapper that was made before does not know the bases;
    :class:`fma_mm.ConvertAttentionHook` takes care of both.

    The layers find the shape of an image by its number of patches. If layers recompute their activations in the
    backward pass, take the backward pass of an image before the forward pass of another image that has as many patches
    in another shape, such as 8 x 18 and 12 x 12.

    Args:
        model: the backbone, or any module that contains exactly one.
        cell_size: side of the finest cells, in patches.
        rank: summaries per cell and axis; divides ``cell_size``.
        attention: ``"fma"``, or ``"fma_linear"`` where queries are summarised too. Controls go through the same
            replaced modules and have no bases: ``"near"`` reads the near field alone, ``"full"`` computes the same
            as the original model, on images of any size, and with ``"none"`` a token reads itself alone.
        layers: numbers of the layers to convert, negative ones from the end; None for all.
        basis_kind: how summaries are made: ``"nested"``, ``"direct"`` or ``"mean"``.
        num_levels: levels to build bases for; those of the model's ``img_size`` if None. ``"nested"`` bases reuse the
            last one on larger images, ``"direct"`` ones need all.
        share_heads: share the bases over the heads.
        group_bias: let a summary weigh as much as the tokens that it stands for.
        value_gain: factor of the means that learned value summaries start as: 1 for a trained model, whose attention
            FMA then comes closest to; 0 for one that is trained from scratch, which learns sooner (docs/far_field.md).
        backend: see :func:`fma_kernels.fma_attention`.

    Returns:
        The model.

    Raises:
        ValueError: an argument is outside of the values stated above, or a layer has another attention, was converted
            before, or uses an option of its attention that FMA has no counterpart of. Nothing is changed then.

    Example:
        >>> from mmpretrain.models import VisionTransformer
        >>> model = VisionTransformer(arch="deit-tiny", img_size=64, patch_size=8)
        >>> model = convert_attention(model, cell_size=2, layers=range(8))
        >>> sum(isinstance(module, CoreAttention) for module in model.modules())
        8
    """
    require(attention in ATTENTIONS, "attention", attention, f"one of {', '.join(ATTENTIONS)}")
    library, name, backbone = _find_vision_transformer(model)
    replacement = REPLACEMENTS[library.__name__]
    modules = {}
    for i in _layer_numbers(layers, len(backbone.layers)):
        module = backbone.layers[i].attn
        label = ".".join(filter(None, [name, f"layers.{i}.attn"]))
        expected = f"the plain self-attention {library.MultiheadAttention.__module__}.MultiheadAttention"
        require(type(module) is library.MultiheadAttention, label, type(module).__name__, expected)
        converted = isinstance(getattr(module, replacement.slot), CoreAttention)
        require(not converted, label, "FMA", "attention that was not converted before")
        replacement.check(module, library, label)
        modules[i] = module
    if num_levels is None:
        num_levels = max(1, Hierarchy(replacement.default_grid(backbone), cell_size, rank).num_levels)

    patches = PatchGrid()
    options = dict(
        cell_size=cell_size,
        rank=rank,
        ndim=2,
        attention=attention,
        basis_kind=basis_kind,
        num_levels=num_levels,
        share_heads=share_heads,
        group_bias=group_bias,
        value_gain=value_gain,
        num_global_tokens=replacement.count_global_tokens(backbone),
        backend=backend,
    )
    new = {i: replacement(module, patches, **options) for i, module in modules.items()}
    for i, module in modules.items():
        setattr(module, replacement.slot, new[i].train(module.training))
    backbone.patch_embed.register_forward_hook(patches)
    return model


class PatchGrid:
    """Height and width of images in patches, by number of patches: a forward hook of the patch embedding.

    Attention modules get the tokens without the shape of the image, and find the shape here. The shapes of all images
    are kept, because recomputation may run the layers for an earlier image again after the next image has passed.
    """

    def __init__(self):
        self.shapes: dict[int, tuple[int, int]] = {}

    def __call__(self, patch_embed: nn.Module, args: tuple, output: tuple[Tensor, tuple[int, int]]) -> None:
        """Remember the shape of the image whose patches were embedded."""
        height, width = output[1]
        self.shapes[height * width] = (height, width)

    def shape(self, count: int) -> tuple[int, int]:
        """Shape (H, W) of the latest image with so many patches.

        Raises:
            ValueError: there was none.
        """
        require(count in self.shapes, "number of patches", count, f"all those of an image, one of {[*self.shapes]}")
        return self.shapes[count]


class PatchAttention(CoreAttention):
    """Attention over patches and the global tokens before them, for modules that do not know the shape of the image.

    Args:
        patches: knows the shape.
        like: parameter whose dtype, device and ``requires_grad`` the bases get.
        **options: arguments of :class:`CoreAttention`.
    """

    def __init__(self, patches: PatchGrid, like: nn.Parameter, **options: Any):
        super().__init__(**options)
        self.patches = patches
        self.to(like).requires_grad_(like.requires_grad)

    def attend_patches(self, query: Tensor, key: Tensor, value: Tensor, dropout_p: float) -> Tensor:
        """Attention of tokens (B, H, G + N, d) to each other."""
        grid = self.patches.shape(query.shape[2] - self.num_global_tokens)
        return super().forward(query, key, value, grid, dropout_p=dropout_p)


class PretrainAttention(PatchAttention):
    """The function between the projections of mmpretrain's ``MultiheadAttention``.

    Args:
        module: the module that will hold this one.
        patches: knows the shape of the image.
        **options: arguments of :class:`CoreAttention`.
    """

    #: Attribute of the module that it replaces.
    slot = "scaled_dot_product_attention"

    def __init__(self, module: nn.Module, patches: PatchGrid, **options: Any):
        super().__init__(patches, module.qkv.weight, num_heads=module.num_heads, head_dim=module.head_dims, **options)

    @staticmethod
    def check(module: nn.Module, library: ModuleType, label: str) -> None:
        """Refuse a module whose logits have another scale. Its other options act outside of this function."""
        plain = sys.modules[library.MultiheadAttention.__module__].scaled_dot_product_attention
        function = module.scaled_dot_product_attention
        require(function is plain, f"{label}.scaled_dot_product_attention", function, "the one of qk_scale=None")

    @staticmethod
    def default_grid(backbone: nn.Module) -> tuple[int, int]:
        """Patches (H, W) of an image of the model's ``img_size``."""
        return tuple(backbone.patch_resolution)

    @staticmethod
    def count_global_tokens(backbone: nn.Module) -> int:
        """Number of tokens in front of the patches."""
        return backbone.num_extra_tokens

    def forward(self, query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0) -> Tensor:
        """As ``torch.nn.functional.scaled_dot_product_attention``: (B, H, G + N, d) each."""
        return self.attend_patches(query, key, value, dropout_p)


class SegAttention(PatchAttention):
    """The ``torch.nn.MultiheadAttention`` inside mmcv's ``MultiheadAttention``, whose parameters it takes over.

    Args:
        module: mmcv's module.
        patches: knows the shape of the image.
        **options: arguments of :class:`CoreAttention`.
    """

    #: Attribute of the module that it replaces.
    slot = "attn"

    def __init__(self, module: nn.Module, patches: PatchGrid, **options: Any):
        inner = module.attn
        super().__init__(patches, inner.in_proj_weight, num_heads=inner.num_heads, head_dim=inner.head_dim, **options)
        self.register_parameter("in_proj_weight", inner.in_proj_weight)
        self.register_parameter("in_proj_bias", inner.in_proj_bias)
        self.out_proj, self.dropout = inner.out_proj, inner.dropout

    @staticmethod
    def check(module: nn.Module, library: ModuleType, label: str) -> None:
        """Refuse a module with further keys, or keys and values of other widths."""
        inner = module.attn
        require(inner.bias_k is None, f"{label}.attn.bias_k", "a parameter", "None, that is add_bias_kv=False")
        require(not inner.add_zero_attn, f"{label}.attn.add_zero_attn", inner.add_zero_attn, "False")
        widths = (inner.kdim, inner.vdim)
        require(inner.in_proj_weight is not None, f"{label}.attn.kdim and vdim", widths, f"embed_dim={inner.embed_dim}")

    @staticmethod
    def default_grid(backbone: nn.Module) -> tuple[int, int]:
        """Patches (H, W) of an image of the model's ``img_size``, which mmseg pads to whole ones."""
        height, width = backbone.img_size
        return -(-height // backbone.patch_size), -(-width // backbone.patch_size)

    @staticmethod
    def count_global_tokens(backbone: nn.Module) -> int:
        """Number of tokens in front of the patches."""
        return int(backbone.with_cls_token)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Self-attention as ``torch.nn.MultiheadAttention`` computes it.

        Args:
            query: the tokens, (G + N, B, C).
            key, value: the same tokens; not read.
            attn_mask, key_padding_mask: None.

        Returns:
            The output (G + N, B, C), and None for the weights of the attention.

        Raises:
            ValueError: there is a mask.
        """
        for name, mask in dict(attn_mask=attn_mask, key_padding_mask=key_padding_mask).items():
            require(mask is None, name, "a mask", "None, as in the layers of a vision transformer")
        qkv = F.linear(query.transpose(0, 1), self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        out = self.attend_patches(q, k, v, self.dropout if self.training else 0.0)
        return self.out_proj(out.transpose(1, 2).flatten(2)).transpose(0, 1), None


#: Replacement of the attention, by the Python module of a ``VisionTransformer``. Each of these Python modules has the
#: names ``VisionTransformer`` and ``MultiheadAttention``, the attention of its layers.
REPLACEMENTS = {
    "mmpretrain.models.backbones.vision_transformer": PretrainAttention,
    "mmseg.models.backbones.vit": SegAttention,
}


def _find_vision_transformer(model: nn.Module) -> tuple[ModuleType, str, nn.Module]:
    """The only vision transformer of the model: the Python module of its class, its name in the model, itself."""
    require(isinstance(model, nn.Module), "model", type(model).__name__, "a torch.nn.Module")
    # A library that is not loaded has made no part of the model.
    libraries = [sys.modules[name] for name in REPLACEMENTS if name in sys.modules]
    found = [
        (library, name, module)
        for name, module in model.named_modules()
        for library in libraries
        if isinstance(module, library.VisionTransformer)
    ]
    kind, names = type(model).__name__, [name for _, name, _ in found]
    expected = "a VisionTransformer of mmpretrain or mmseg"
    if any("relative_position_bias" in name for name, _ in model.named_parameters()):
        expected += "; a relative position bias belongs to pairs of tokens and says nothing about summaries"
    require(len(found) > 0, "model", kind, expected)
    require(len(found) == 1, "model", kind, f"one VisionTransformer; convert its parts {names} one by one")
    return found[0]


def _layer_numbers(layers: int | Iterable[int] | None, count: int) -> list[int]:
    """The chosen layers, counted from the front."""
    chosen = range(count) if layers is None else layers if isinstance(layers, Iterable) else [layers]
    chosen = list(chosen)
    valid = all(isinstance(i, int) and not isinstance(i, bool) and -count <= i < count for i in chosen)
    numbers = [i % count for i in chosen] if valid else []
    expected = f"one or more different layers, {-count} to {count - 1}, or None for all"
    require(bool(numbers) and len(set(numbers)) == len(numbers), "layers", layers, expected)
    return numbers
