import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import nn

from fma_kernels import ATTENTIONS, FMAttention, Hierarchy
from fma_mm import FMA2DAttention


def normal(module: nn.Module) -> nn.Module:
    """Give every weight a value of its own."""
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_is_the_one_attention_module(attention):
    options = dict(cell_size=2, rank=2, attention=attention, num_levels=2, share_heads=True, num_global_tokens=2)
    ours, theirs = FMA2DAttention(16, 4, **options), normal(FMAttention(16, 4, ndim=2, **options))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 2 + 9 * 13, 16)
    assert Hierarchy((9, 13), 2, 2).num_levels == 2
    torch.testing.assert_close(ours(x, (9, 13)), theirs(x, (9, 13)), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("attention", "hw_shape"), [*((name, (8, 5)) for name in ATTENTIONS if name != "none"), ("full", (19, 11))]
)
def test_small_maps_and_the_control_get_full_attention(attention, hw_shape):
    ours = FMA2DAttention(16, 4, cell_size=4, attention=attention, qk_scale=0.5).double()
    x = torch.randn(2, hw_shape[0] * hw_shape[1], 16, dtype=torch.float64)
    q, k, v = ours.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).flatten(2)
    torch.testing.assert_close(ours(x, hw_shape), ours.proj(expected))


def test_near_reads_touching_cells_and_nothing_else():
    module = normal(FMA2DAttention(8, 2, cell_size=3, attention="near").double())
    height, width, row, column = 14, 16, 4, 9  # the cell of rows 3 to 5 and columns 9 to 11
    x = torch.randn(1, height * width, 8, dtype=torch.float64, requires_grad=True)
    module(x, (height, width))[0, row * width + column].square().sum().backward()
    read = x.grad[0].any(-1).view(height, width)
    expected = torch.zeros_like(read)
    expected[0:9, 6:15] = True
    assert torch.equal(read, expected)


@pytest.mark.parametrize("attention", ["near", "full"])
def test_controls_have_the_weights_of_fma_without_the_bases(attention):
    states = []
    for name in ("fma", attention):
        torch.manual_seed(0)
        states.append(FMA2DAttention(16, 4, cell_size=4, rank=2, attention=name, num_levels=3).state_dict())
    fma, control = states
    assert list(control) == [name for name in fma if "_basis" not in name] != list(fma)
    assert all(torch.equal(control[name], fma[name]) for name in control)


def test_initialisation_reaches_the_projections_and_leaves_the_bases_as_they_start():
    init_cfg = dict(type="Constant", layer="Linear", val=3, bias=2)
    module = FMA2DAttention(32, 4, cell_size=4, rank=2, value_gain=0.25, init_cfg=init_cfg)
    before = {name: p.clone() for name, p in module.named_parameters() if "_basis" in name}
    module.init_weights()
    assert (module.qkv.weight == 3).all() and (module.proj.bias == 2).all()
    assert len(before) == 8
    for name, parameter in module.named_parameters():
        if "_basis" in name:
            assert torch.equal(parameter, before[name])
            gain = 0.25 if name == "attention.value_basis.axis0_level1" else 1
            assert torch.equal(parameter.sum(1), torch.full_like(parameter[:, 0], gain))


def test_a_checkpoint_with_fewer_levels_gives_the_same_function():
    small, large = (normal(FMA2DAttention(8, 2, cell_size=2, num_levels=levels)) for levels in (2, 4))
    large.load_state_dict(small.state_dict())
    grid = (40, 9)
    assert Hierarchy(grid, 2).num_levels == 4
    x = torch.randn(1, 40 * 9, 8)
    torch.testing.assert_close(large(x, grid), small(x, grid))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(attention="linear"), r"attention='linear'.*one of full, near, fma, fma_linear"),
        (dict(rank=2), r"rank=2.*divisor of cell_size"),
        (dict(num_heads=3), r"num_heads=3|embed_dims=16"),
        (dict(basis_kind="max"), r"'max'.*nested, direct, mean"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(dict(type="FMA2DAttention", **(dict(embed_dims=16, num_heads=4) | kwargs)))


def test_unknown_and_positional_options_are_refused():
    with pytest.raises(TypeError, match="aggregation"):
        FMA2DAttention(16, 4, aggregation="mean")
    with pytest.raises(TypeError, match="positional"):
        FMA2DAttention(16, 4, 7, 1, "fma")
