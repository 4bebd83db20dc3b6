"""The memory of training steps: counted by hand, and simulated as the CPU's allocator finds it."""

import pytest
import torch
from mmpretrain.models import SwinTransformer, VisionTransformer
from torch import nn

from fma_kernels.measure import peak_mib
from fma_mm import FMA2D
from fma_mm.analysis.memory import MemoryLog
from fma_mm.analysis.simulation import simulate

ARCH = dict(embed_dims=16, depths=(2, 2), num_heads=(1, 2))
FMA2D_OPTIONS = dict(arch=ARCH, patch_sizes=(7, 3), strides=(4, 2), cell_sizes=4, img_size=96)
VIT = dict(arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=128), img_size=96, patch_size=8)
SWIN = dict(arch=dict(embed_dims=16, depths=[2, 2], num_heads=[1, 2]), img_size=96, window_size=4, out_indices=(1,))
MODELS = {
    "fma2d": lambda: FMA2D(**FMA2D_OPTIONS, recompute="nothing"),
    "fma2d, activations made again": lambda: FMA2D(**FMA2D_OPTIONS),
    "fma2d, ffn made again": lambda: FMA2D(**FMA2D_OPTIONS, recompute="ffn"),
    "fma2d, blocks made again": lambda: FMA2D(**FMA2D_OPTIONS, with_cp=True),
    "fma2d, linear": lambda: FMA2D(**FMA2D_OPTIONS, attention="fma_linear"),
    "vit": lambda: VisionTransformer(**VIT),
    "swin": lambda: SwinTransformer(**SWIN),
}


def loss_of(model):
    images = torch.randn(6, 3, 96, 96)
    return sum(x.square().mean() for x in model(images)), [images]


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_simulated_as_measured(make):
    """Within 5 % of what PyTorch's allocator gives out on the CPU."""

    def train():
        model = make()
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
        for _ in range(2):
            loss, batch = loss_of(model)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            del loss, batch

    make()(torch.randn(1, 3, 96, 96))  # tables that are kept per geometry are nobody's
    measured = peak_mib(train, torch.device("cpu"))
    model = make()
    peak = simulate(model, lambda: loss_of(model), lambda: torch.optim.AdamW(model.parameters(), foreach=False))
    assert peak.size / 2**20 == pytest.approx(measured, rel=0.05)
    assert sum(peak.by_category().values()) == peak.size


def test_making_again_saves_what_it_says():
    """Half of the widest activations of a block, then all of them."""

    def activations(recompute):
        model = FMA2D(**FMA2D_OPTIONS, recompute=recompute)
        peak = simulate(model, lambda: loss_of(model), lambda: torch.optim.SGD(model.parameters()))
        return peak.by_category()["activations"], peak.activations(lambda name: name)

    (everything, by_module), (some, _), (few, without) = map(activations, ("nothing", "activations", "ffn"))
    wide = 6 * 4 * 4 * 16 * 24 * 24  # bytes of a map of the first stage inside the feed-forward network
    assert by_module["stages.0.blocks.0.ffn.act"] == wide
    assert by_module["stages.0.blocks.0.ffn.dwconv"] >= wide
    assert everything > some > few
    assert "stages.0.blocks.0.ffn.act" not in without


@pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])
def test_categories_by_hand(fake):
    """A layer without a bias: what it needs at the peak, number by number."""
    layer = nn.Linear(100, 200, bias=False)
    weight, batch = 4 * 100 * 200, 50

    def loss():
        x = torch.randn(batch, 100)
        return layer(x).square().sum(), [x]

    def optimizer():
        return torch.optim.Adam(layer.parameters(), foreach=False)

    if fake:
        peak = simulate(layer, loss, optimizer)
    else:
        log = MemoryLog(layer)
        with log:
            step = optimizer()
            for _ in range(2):
                log.forget()
                log.phase = "forward"
                value, (x,) = loss()
                log.add("inputs", x)
                log.phase = "backward"
                value.backward()
                log.phase = "optimizer"
                step.step()
                step.zero_grad()
                del value, x
        peak = log.peak()
    sizes = peak.by_category()
    assert sizes["parameters"] == sizes["gradients"] == weight
    assert sizes["optimizer"] >= 2 * weight  # two moments, and what the step makes on its way
    assert peak.size == sum(sizes.values())


def test_modules_are_named_in_order_and_after_errors():
    class Failing(nn.Module):
        def forward(self, x):
            raise RuntimeError("no")

    model = nn.Sequential(nn.Linear(10, 20), nn.Sequential(nn.Linear(20, 30), nn.ReLU()))
    model.failing = Failing()
    log = MemoryLog(model)
    with log:
        with pytest.raises(RuntimeError, match="no"):
            model.failing(torch.randn(1))
        out = model[:2](torch.randn(5, 10))
        sizes = log.peak().activations(lambda name: name)
    assert sizes["0"] == 4 * 5 * 20 and sizes["1.0"] == sizes["1.1"] == 4 * 5 * 30
    assert out.shape == (5, 30)
