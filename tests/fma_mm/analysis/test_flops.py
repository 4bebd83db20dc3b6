import pytest
import torch
import torch.nn.functional as F
from helpers import flops_by_hand
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch._subclasses import FakeTensorMode

from fma_kernels import Hierarchy
from fma_mm import FMA2D, FMA2DAttention
from fma_mm.analysis.flops import by_module, count_flops, count_parameters


class Attention(nn.Module):
    """PyTorch's fused attention of an input with itself."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x, **self.options)


@pytest.mark.parametrize("grad", [False, True])
def test_fused_attention(grad):
    x = torch.rand(2, 3, 37, 8, requires_grad=grad)
    assert count_flops(Attention(), x) == {"": 2 * 3 * 37 * 37 * 8 * 2}
    assert count_flops(Attention(is_causal=True), x) == {"": 2 * 3 * (37 * 38 // 2) * 8 * 2}
    assert count_flops(Attention(attn_mask=torch.ones(37, 37, dtype=torch.bool)), x) == {"": 2 * 3 * 37 * 37 * 8 * 2}


def test_modules_with_a_fast_path():
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    assert torch.backends.mha.get_fastpath_enabled()
    flops = count_flops(layer, torch.rand(2, 10, 16))
    assert torch.backends.mha.get_fastpath_enabled()
    attention = 4 * 2 * 10 * 16 * 16 + 2 * 2 * 10 * 10 * 16
    assert flops["self_attn"] == attention
    assert flops[""] == attention + 2 * 2 * 10 * 16 * 32


@pytest.mark.parametrize("arch", ["tiny", "large"])  # tests/test_model_index.py counts the others
def test_fma2d(arch):
    with FakeTensorMode():  # shapes alone
        model = FMA2D(arch=arch)
        flops = count_flops(model, torch.empty(2, 3, 224, 224))
    settings = FMA2D.arch_zoo[arch]
    assert flops[""] == 2 * flops_by_hand.fma2d(settings["embed_dims"], settings["depths"])
    assert flops[""] == sum(flops[f"stages.{i}"] for i in range(4))


def test_controls():
    """The near field alone, and full attention, beside the projections; neither makes summaries."""
    grid, channels = (9, 13), 16
    tokens = 9 * 13
    near, *_ = flops_by_hand.pairs_of_tokens(Hierarchy(grid, 2))
    for attention, pairs in dict(near=near, full=tokens**2).items():
        module = FMA2DAttention(channels, 4, cell_size=2, attention=attention)
        flops = count_flops(module, torch.rand(3, tokens, channels), grid=grid)
        assert flops[""] == 3 * (4 * tokens * channels**2 + 2 * pairs * channels)


@pytest.mark.parametrize(
    "arch, published, tolerance",
    [
        # https://mmpretrain.readthedocs.io: model zoo. Its Swin leaves out the products of queries, keys and values.
        (dict(type="SwinTransformer", arch="tiny", img_size=224), 4.36e9, 0.035),
        (dict(type="VisionTransformer", arch="deit-tiny", img_size=224), 1.258e9, 0.01),
        (dict(type="ResNet", depth=18), 1.82e9, 0.01),
    ],
    ids=lambda x: x.get("type") if isinstance(x, dict) else "",
)
def test_published_classifiers(arch, published, tolerance):
    init_default_scope("mmpretrain")
    model = MODELS.build(arch)
    assert count_flops(model, torch.rand(1, 3, 224, 224))[""] == pytest.approx(published, rel=tolerance)


def test_published_segmentor():
    """SegFormer-B0 at 512x512 has 8.4 G (arXiv 2105.15203, table 1); mmseg calls the decode head's method, not it."""
    init_default_scope("mmseg")
    head = dict(type="SegformerHead", in_channels=[32, 64, 160, 256], in_index=[0, 1, 2, 3], channels=256)
    model = MODELS.build(
        dict(
            type="EncoderDecoder",
            data_preprocessor=dict(type="SegDataPreProcessor"),
            backbone=dict(type="MixVisionTransformer", embed_dims=32, num_layers=[2] * 4, num_heads=[1, 2, 5, 8]),
            decode_head=dict(num_classes=150, norm_cfg=dict(type="BN"), **head),
            test_cfg=dict(mode="whole"),
        )
    )
    flops = count_flops(model, torch.rand(1, 3, 512, 512), mode="tensor")
    assert flops[""] == pytest.approx(8.4e9, rel=0.01)
    assert flops["backbone"] + flops["decode_head"] == flops[""]
    assert flops["decode_head"] == sum(flops[f"decode_head.{name}"] for name in ("convs", "fusion_conv", "conv_seg"))


def test_training_modes_stay():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[1].eval()
    before = model[1].running_mean.clone()
    count_flops(model, torch.rand(3, 4))
    assert model.training and model[0].training and not model[1].training
    assert torch.equal(model[1].running_mean, before)
    with pytest.raises(RuntimeError):
        count_flops(model, torch.rand(3, 5))
    assert model.training and torch.backends.mha.get_fastpath_enabled()


def test_walk_through_the_modules():
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Sequential(nn.Linear(2, 3), nn.ReLU()), nn.Linear(3, 4, bias=False)])
    model.unused = nn.Linear(5, 5)
    model.forward = lambda x: model.layers[1](model.layers[0](x))
    flops = count_flops(model, torch.rand(1, 2))
    assert flops == {"": 18, "layers": 18, "layers.0": 6, "layers.0.0": 6, "layers.1": 12}
    rows = [(level, name, count, count_parameters(module)) for level, name, module, count in by_module(model, flops, 2)]
    assert rows == [
        (0, "", 18, 9 + 12 + 30),
        (1, "layers.0", 6, 9),
        (2, "layers.0.0", 6, 9),
        (1, "layers.1", 12, 12),
        (1, "unused", 0, 30),
    ]
    assert [name for _, name, *_ in by_module(model, flops, 1)] == ["", "layers.0", "layers.1", "unused"]
    assert [name for _, name, *_ in by_module(model, flops, 0)] == [""]
