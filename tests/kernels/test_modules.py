"""FMAttention as a module: its parts, its limits, and the ways PyTorch has to run it."""

import io
import math

import pytest
import torch
from helpers.tensors import random
from torch import nn

from fma_kernels import CoreAttention, FMAttention, Hierarchy

VARIANTS = pytest.mark.parametrize(
    ("grid", "options"),
    [
        ((50,), dict(cell_size=4, rank=2)),
        ((50,), dict(cell_size=4, rank=2, causal=True, attention="fma_linear")),
        ((14, 9), dict(cell_size=2, ndim=2, attention="fma_linear")),
        ((14, 9), dict(cell_size=2, ndim=2, basis_kind="mean")),
        ((14, 9), dict(cell_size=4, rank=2, ndim=2, basis_kind="direct", num_levels=2, share_heads=True)),
        ((5, 6, 7), dict(cell_size=2, ndim=3)),
        ((14, 9), dict(cell_size=2, ndim=2, num_global_tokens=2)),
        ((14, 9), dict(cell_size=2, ndim=2, attention="near", num_global_tokens=1)),
        ((50,), dict(cell_size=4, causal=True, attention="full")),
    ],
    ids=["fma", "causal-linear", "2d-linear", "2d-mean", "2d-direct", "3d", "2d-global", "2d-near", "full"],
)


def tokens(grid, batch=2, dims=8, num_global_tokens=0, **_):
    torch.manual_seed(0)
    return torch.randn(batch, num_global_tokens + torch.Size(grid).numel(), dims)


@VARIANTS
def test_every_parameter_has_a_finite_gradient(grid, options):
    module = FMAttention(8, 2, **options)
    module(tokens(grid, **options), grid).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@VARIANTS
def test_backends_agree(grid, options):
    module = FMAttention(8, 2, **options)
    x = tokens(grid, **options)
    out = module(x, grid)
    module.attention.backend = "reference"
    torch.testing.assert_close(out, module(x, grid))


@VARIANTS
def test_an_empty_batch_gives_an_empty_batch(grid, options):
    module = FMAttention(8, 2, **options)
    x = tokens(grid, batch=0, **options)
    out = module(x, grid)
    assert out.shape == x.shape
    out.sum().backward()
    assert torch.count_nonzero(module.qkv.weight.grad) == 0


def test_levels_that_a_small_grid_lacks_still_have_gradients():
    module = FMAttention(8, 2, cell_size=4, num_levels=3)
    module(tokens((6,)), (6,)).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
    assert torch.count_nonzero(module.attention.key_basis.axis0_level1.grad) == 0


def test_it_is_multi_head_attention_where_all_tokens_are_near():
    module, full = FMAttention(8, 2, cell_size=8), nn.MultiheadAttention(8, 2, batch_first=True)
    full.in_proj_weight.data, full.in_proj_bias.data = module.qkv.weight.data, module.qkv.bias.data
    full.out_proj.weight.data, full.out_proj.bias.data = module.proj.weight.data, module.proj.bias.data
    x = tokens((16,))
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 10:] = True
    torch.testing.assert_close(module(x, (16,), mask), full(x, x, x, key_padding_mask=mask)[0])


def test_global_tokens_are_read_and_read_as_in_multi_head_attention():
    """Exactly so for the global token, whatever the grid; for all tokens where no cell is far."""
    module = FMAttention(8, 2, cell_size=4, ndim=2, num_global_tokens=1)
    full = nn.MultiheadAttention(8, 2, batch_first=True)
    full.in_proj_weight.data, full.in_proj_bias.data = module.qkv.weight.data, module.qkv.bias.data
    full.out_proj.weight.data, full.out_proj.bias.data = module.proj.weight.data, module.proj.bias.data
    for grid, exact in (((8, 5), slice(None)), ((20, 9), slice(1))):
        x = tokens(grid, num_global_tokens=1)
        mask = torch.rand(2, torch.Size(grid).numel()) < 0.3
        padded = nn.functional.pad(mask, [1, 0], value=False)
        expected = full(x, x, x, key_padding_mask=padded)[0]
        torch.testing.assert_close(module(x, grid, mask)[:, exact], expected[:, exact])


def test_names_and_order_of_the_parameters():
    """Checkpoints and the states of optimizers go by them."""
    module = FMAttention(8, 2, cell_size=4, attention="fma_linear")
    names = [name.rpartition(".")[0] for name, _ in module.named_parameters()]
    bases = ["attention.key_basis", "attention.value_basis", "attention.query_basis"]
    assert list(dict.fromkeys(names)) == ["qkv", *bases, "proj"]


@pytest.mark.parametrize("control", ["near", "full", "none"])
def test_a_control_has_the_projections_of_fma_and_nothing_else(control):
    states = {}
    for attention in ("fma", control):
        torch.manual_seed(3)
        states[attention] = FMAttention(8, 2, cell_size=4, attention=attention).state_dict()
    assert set(states[control]) == {key for key in states["fma"] if "_basis" not in key}
    assert all(torch.equal(x, states["fma"][key]) for key, x in states[control].items())


@pytest.mark.parametrize(("grid", "ndim"), [((40,), 1), ((9, 14), 2)])
def test_controls_read_the_near_field_or_all_tokens(grid, ndim):
    x = tokens(grid, batch=1).double().requires_grad_()
    readers = {}
    for attention in ("near", "full", "none"):
        module = FMAttention(8, 2, cell_size=3, ndim=ndim, attention=attention).double()
        out = module(x, grid)[0, 0].sum()
        readers[attention] = torch.autograd.grad(out, x)[0][0].any(-1).view(grid)
    assert readers["full"].all()
    assert readers["none"].sum() == 1 and readers["none"].flatten()[0]
    near = readers["near"]
    assert near[(slice(6),) * ndim].all() and near.sum() == 6**ndim


@pytest.mark.parametrize("causal", [False, True])
def test_full_attention_is_that_of_pytorch(causal):
    core = CoreAttention(2, 4, cell_size=2, causal=causal, attention="full", scale=0.3)
    query, key, value = (random(2, 2, 30, 4, seed=i) for i in range(3))
    mask = torch.rand(2, 30, generator=torch.Generator().manual_seed(0)) < 0.3
    mask[:, 0] = False
    for padding in (None, mask):
        readable = torch.ones(30, 30, dtype=torch.bool)
        readable = (readable.tril() if causal else readable)[None, None]
        readable = readable if padding is None else readable & ~padding[:, None, None]
        expected = nn.functional.scaled_dot_product_attention(query, key, value, readable, scale=0.3)
        torch.testing.assert_close(core(query, key, value, key_padding_mask=padding), expected)


@VARIANTS
def test_far_values_of_gain_zero_only_dilute_the_near_field(grid, options):
    """One softmax over near field and summaries whose values are zeros."""
    core, near = CoreAttention(2, 4, **options), CoreAttention(2, 4, **{**options, "attention": "near"})
    query, key = torch.randn(2, 1, 2, options.get("num_global_tokens", 0) + torch.Size(grid).numel(), 4)
    out, share = (core(query, key, value, grid) for value in (key, torch.ones_like(key)))
    starts_as_zeros = core.attention.startswith("fma") and core.basis_kind != "mean"
    assert (share < 1 - 1e-3).any() == starts_as_zeros
    if starts_as_zeros:
        torch.testing.assert_close(out, share * near(query, key, key, grid))


def test_a_sequence_needs_no_grid():
    for options in (dict(), dict(num_global_tokens=2)):
        module = FMAttention(8, 2, cell_size=4, **options)
        x = tokens((50,), **options)
        assert torch.equal(module(x), module(x, (50,)))
    with pytest.raises(ValueError, match="grid=None: expected 2 axes"):
        FMAttention(8, 2, cell_size=4, ndim=2)(tokens((50,)))


def test_everything_behind_the_heads_is_named():
    with pytest.raises(TypeError):
        FMAttention(8, 2, 4)
    with pytest.raises(TypeError):
        CoreAttention(2, 4, 4)


def test_weights_of_a_checkpoint_with_fewer_levels_give_the_same_function():
    small, large = (FMAttention(8, 2, cell_size=2, ndim=2, num_levels=levels) for levels in (2, 4))
    for parameter in small.parameters():
        nn.init.normal_(parameter)
    large.load_state_dict(small.state_dict())
    grid = (40, 9)
    assert Hierarchy(grid, 2).num_levels == 4
    x = tokens(grid)
    torch.testing.assert_close(large(x, grid), small(x, grid))


def test_weights_serve_any_grid():
    """Levels beyond those that were built use the last one: more built levels of equal weights change nothing."""
    module = FMAttention(8, 2, cell_size=2, ndim=2, num_levels=2)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    grid = (33, 18)
    other = FMAttention(8, 2, cell_size=2, ndim=2, num_levels=Hierarchy(grid, 2).num_levels)
    other.load_state_dict(module.state_dict())
    x = tokens(grid)
    torch.testing.assert_close(module(x, grid), other(x, grid))
    assert module(tokens((4, 4)), (4, 4)).isfinite().all()


def test_a_weight_that_is_not_read_cannot_spoil_the_output():
    module = FMAttention(8, 2, cell_size=4, num_levels=3)
    nn.init.constant_(module.attention.key_basis.axis0_level3, float("nan"))
    assert module(tokens((20,))).isfinite().all()


def test_dropout_only_while_training():
    module = FMAttention(8, 2, cell_size=4, attn_drop=0.5)
    x = tokens((40,))
    assert not torch.equal(module(x, (40,)), module(x, (40,)))
    module.eval()
    assert torch.equal(module(x, (40,)), module(x, (40,)))


@VARIANTS
def test_export_with_any_batch_size(grid, options, tmp_path):
    module = FMAttention(8, 2, **options).eval()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = module

        def forward(self, x):
            return self.attention(x, grid)

    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(Model(), (tokens(grid, **options),), dynamic_shapes={"x": {0: batch}})
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    x = tokens(grid, batch=5, **options)
    torch.testing.assert_close(loaded(x), module(x, grid))


@VARIANTS
def test_compiles_in_one_graph_with_gradients(grid, options):
    module = FMAttention(8, 2, **options)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = tokens(grid, **options).requires_grad_()
    (expected,) = torch.autograd.grad(module(x, grid).square().sum(), x)
    (mine,) = torch.autograd.grad(compiled(x, grid).square().sum(), x)
    torch.testing.assert_close(mine, expected)


def test_activation_checkpointing_repeats_the_same_dropout():
    module = FMAttention(8, 2, cell_size=4, attn_drop=0.3)
    x = tokens((40,)).requires_grad_()
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(1)
        if checkpointed:
            out = torch.utils.checkpoint.checkpoint(module, x, (40,), use_reentrant=False)
        else:
            out = module(x, (40,))
        gradients.append(torch.autograd.grad(out.square().sum(), x)[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(embed_dims=9), "embed_dims=9.*num_heads=2"),
        (dict(num_heads=0), "num_heads=0"),
        (dict(rank=3), "rank=3"),
        (dict(basis_kind="max"), "max"),
        (dict(ndim=2, causal=True), "causal=True"),
        (dict(num_global_tokens=1, causal=True), "num_global_tokens=1.*0 with causal=True"),
        (dict(num_global_tokens=-1), "num_global_tokens=-1"),
        (dict(attn_drop=1.0), "attn_drop=1.0"),
        (dict(backend="fast"), "backend='fast'"),
        (dict(attention="linear"), "attention='linear': expected one of full, near, fma, fma_linear"),
        (dict(attention="near", rank=3), "rank=3"),
        (dict(attention="near", value_gain=math.nan), "value_gain=nan.*finite"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FMAttention(**(dict(embed_dims=8, num_heads=2, cell_size=4) | arguments))


@pytest.mark.parametrize(
    ("x", "grid", "message"),
    [
        (torch.zeros(2, 16, 8), (4, 4), r"grid=\(4, 4\).*1 axes"),
        (torch.zeros(2, 15, 8), (16,), r"x.shape=\(2, 15, 8\).*16 tokens"),
        (torch.zeros(2, 16, 7), (16,), r"x.shape=\(2, 16, 7\).*8 channels"),
        (torch.zeros(16, 8), (16,), r"x.shape=\(16, 8\).*three dimensions"),
    ],
)
def test_bad_input_is_refused(x, grid, message):
    with pytest.raises(ValueError, match=message):
        FMAttention(8, 2, cell_size=4)(x, grid)


def test_missing_global_tokens_are_refused():
    with pytest.raises(ValueError, match=r"x.shape=\(2, 16, 8\).*the 16 tokens of \(16,\) and 1 global ones"):
        FMAttention(8, 2, cell_size=4, num_global_tokens=1)(torch.zeros(2, 16, 8), (16,))
