import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from fma_kernels import FMAttention, Hierarchy
from fma_mm import FMA2DAttention


@pytest.mark.parametrize("attention", ["fma", "fma_linear"])
def test_is_the_one_attention_module(attention):
    options = dict(num_levels=2, share_heads=True, num_global_tokens=2)
    ours = FMA2DAttention(16, 4, cell_size=2, rank=2, attention=attention, **options)
    theirs = FMAttention(16, 4, 2, 2, ndim=2, query_summaries=attention == "fma_linear", **options)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours.fma.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 2 + 9 * 13, 16)
    assert Hierarchy((9, 13), 2, 2).num_levels == 2
    torch.testing.assert_close(ours(x, (9, 13)), theirs(x, (9, 13)), rtol=0, atol=0)


@pytest.mark.parametrize("attention", ["fma", "fma_linear"])
def test_small_maps_get_full_attention(attention):
    ours = FMA2DAttention(16, 4, cell_size=4, attention=attention).double()
    full = nn.MultiheadAttention(16, 4, batch_first=True).double()
    full.load_state_dict(
        {
            "in_proj_weight": ours.fma.qkv.weight,
            "in_proj_bias": ours.fma.qkv.bias,
            "out_proj.weight": ours.fma.proj.weight,
            "out_proj.bias": ours.fma.proj.bias,
        }
    )
    x = torch.randn(2, 8 * 5, 16, dtype=torch.float64)
    torch.testing.assert_close(ours(x, (8, 5)), full(x, x, x, need_weights=False)[0])


def test_initialisation_reaches_the_projections_and_leaves_the_bases_means():
    module = FMA2DAttention(32, 4, cell_size=4, rank=2, init_cfg=dict(type="Constant", layer="Linear", val=3, bias=2))
    before = {name: p.clone() for name, p in module.named_parameters() if "_basis" in name}
    module.init_weights()
    assert (module.fma.qkv.weight == 3).all() and (module.fma.proj.bias == 2).all()
    assert len(before) == 8
    for name, parameter in module.named_parameters():
        if "_basis" in name:
            assert torch.equal(parameter, before[name])
            assert torch.equal(parameter.sum(1), torch.ones_like(parameter[:, 0]))


def test_a_checkpoint_with_fewer_levels_gives_the_same_function():
    small, large = (FMA2DAttention(8, 2, cell_size=2, num_levels=levels) for levels in (2, 4))
    for parameter in small.parameters():
        nn.init.normal_(parameter)
    large.load_state_dict(small.state_dict())
    grid = (40, 9)
    assert Hierarchy(grid, 2).num_levels == 4
    x = torch.randn(1, 40 * 9, 8)
    torch.testing.assert_close(large(x, grid), small(x, grid))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(attention="full"), r"attention='full'.*'fma', 'fma_linear'"),
        (dict(rank=2), r"rank=2.*divisor of cell_size"),
        (dict(num_heads=3), r"num_heads=3|embed_dims=16"),
        (dict(aggregation="max"), r"'max'.*nested, direct, mean"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(dict(type="FMA2DAttention", **(dict(embed_dims=16, num_heads=4) | kwargs)))
