"""Several sequences, images or volumes in one row: as one call for each."""

import math
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fma_kernels import ATTENTIONS, FMAttention, SummaryBasis, fma
from fma_kernels.packing import groups


def one_by_one(row, grids, **options):
    """Outputs and log-sum-exps of a call for each part."""
    mask = options.pop("key_padding_mask", None)
    sizes = [math.prod(grid) for grid in grids]
    masks = [None] * len(grids) if mask is None else mask.split(sizes, 1)
    parts = zip(*(x.split(sizes, 2) for x in row), grids, masks, strict=True)
    results = [fma(q, k, v, grid=grid, key_padding_mask=m, return_lse=True, **options) for q, k, v, grid, m in parts]
    return [torch.cat(x, 2) for x in zip(*results, strict=True)]


@st.composite
def rows(draw):
    ndim = draw(st.integers(1, 3))
    side = {1: 60, 2: 12, 3: 6}[ndim]
    grids = draw(st.lists(st.tuples(*[st.integers(1, side)] * ndim), min_size=1, max_size=5))
    rank = draw(st.integers(1, 2))
    return dict(
        grids=grids,
        cell_size=rank * draw(st.integers(1, 2)),
        rank=rank,
        causal=ndim == 1 and draw(st.booleans()),
        attends=draw(st.sampled_from(["near", "fma", "fma_linear"])),
        kind=draw(st.sampled_from(["nested", "direct", "mean"])),
        masked=draw(st.booleans()),
        backend=draw(st.sampled_from(["reference", "torch"])),
    )


def make(grids, cell_size, rank, causal, attends, kind, masked, dim=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    count, ndim = sum(map(math.prod, grids)), len(grids[0])
    row = [torch.randn(1, 2, count, dim, generator=generator).to(dtype).requires_grad_() for _ in range(3)]
    options = dict(cell_size=cell_size, rank=rank, causal=causal, near_only=attends == "near")
    if attends != "near":
        names = ["key_basis", "value_basis", *(["query_basis"] if attends == "fma_linear" else [])]
        for name in names:
            basis = SummaryBasis(
                2, dim, cell_size, rank, ndim=ndim, kind=kind, num_levels=6, causal_queries=causal and name[0] == "q"
            ).to(dtype)
            for parameter in basis.parameters():
                parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
            options[name] = basis
    if masked:
        options["key_padding_mask"] = torch.rand(1, count, generator=generator) < 0.3
    weights = [p for option in options.values() if isinstance(option, SummaryBasis) for p in option.parameters()]
    return row, options, [*row, *weights]


def gradients(results, leaves):
    out, lse = results
    total = out.square().sum() + lse[lse.isfinite()].sin().sum()
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return [torch.zeros_like(x) if grad is None else grad for x, grad in zip(leaves, found, strict=True)]


@settings(max_examples=40, deadline=None)
@given(rows())
def test_as_one_call_for_each(row):
    backend, grids = row.pop("backend"), row["grids"]
    tokens, options, leaves = make(**row)
    packed = fma(*tokens, grids=grids, return_lse=True, backend=backend, **options)
    expected = one_by_one(tokens, grids, backend=backend, **options)
    for a, b in zip(packed, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    for a, b in zip(gradients(packed, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "backend, attends, lengths",
    [*(("cpp", attends, (40, 7, 33, 64)) for attends in ("near", "fma", "fma_linear")), ("triton", "fma", (18, 5, 13))],
)
def test_fused_kernels(backend, attends, lengths):
    tokens, options, leaves = make(
        [(n,) for n in lengths], 4, 2, True, attends, "nested", masked=False, dim=16, dtype=torch.float32
    )
    cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    packed = fma(*tokens, cu_seqlens=cu_seqlens, return_lse=True, backend=backend, **options)
    expected = one_by_one(tokens, [(n,) for n in lengths], backend="torch", **options)
    for a, b in zip(packed, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    for a, b in zip(gradients(packed, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_no_part_reads_another():
    """Not even NaN comes across, in either direction, nor out of the padding."""
    grids = [(5, 9), (12, 3), (7, 7)]
    tokens, options, _ = make(grids, 2, 1, False, "fma", "nested", masked=False)
    out = fma(*tokens, grids=grids, **options)
    with torch.no_grad():
        for x in tokens:
            x[:, :, 45:81] = float("nan")
    changed = fma(*tokens, grids=grids, **options)
    assert torch.equal(changed[:, :, :45], out[:, :, :45]) and torch.equal(changed[:, :, 81:], out[:, :, 81:])
    assert changed[:, :, 45:81].isnan().all()


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(1, 40)), min_size=1, max_size=30), st.integers(1, 8))
def test_few_calls_with_little_padding(grids, cell_size):
    found = groups(tuple(grids), cell_size)
    parts = sorted(part for group in found for part in group.parts)
    assert [grid for _, grid in parts] == grids and parts[0][0] == 0
    assert len(found) <= len({tuple((-(-n // cell_size) - 1).bit_length() for n in grid) for grid in grids})
    for group in found:
        for _, grid in group.parts:
            for n, padded in zip(grid, group.grid, strict=True):
                assert n <= padded < 2 * n + cell_size


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_module(attention):
    """Images of several sizes in one row; weights that none of them reads have gradients of zeros."""
    torch.manual_seed(0)
    layer = FMAttention(16, 2, cell_size=2, ndim=2, num_levels=4, attention=attention).double()
    grids = [(9, 12), (2, 3), (6, 4)]
    x = torch.randn(1, 9 * 12 + 6 + 24, 16, dtype=torch.float64)
    out = layer(x, grids=grids)
    parts = [layer(part, grid) for part, grid in zip(x.split([108, 6, 24], 1), grids, strict=True)]
    torch.testing.assert_close(out, torch.cat(parts, 1), rtol=1e-10, atol=1e-10)
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    with pytest.raises(ValueError, match=r"grids=.*2 axes"):
        layer(x, cu_seqlens=[0, 138])


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(cu_seqlens=[0, 5, 5, 12]), "cu_seqlens=.*integers that rise from 0 to the 12 tokens"),
        (dict(cu_seqlens=[0, 5]), "cu_seqlens=.*the 12 tokens"),
        (dict(cu_seqlens=[1, 12]), "cu_seqlens="),
        (dict(cu_seqlens=torch.tensor([0.0, 12.0])), "cu_seqlens="),
        (dict(cu_seqlens=[0, 12], grids=[12]), "grids=.*None together with cu_seqlens"),
        (dict(cu_seqlens=[0, 12], grid=(12,)), "grid=.*None with cu_seqlens"),
        (dict(cu_seqlens=[0, 12], num_global_tokens=1), "num_global_tokens=1: expected 0"),
        (dict(grids=[(3, 3), (1, 2)]), "grids=.*12 tokens in all, as in the row, not 11"),
        (dict(grids=[(3, 3), 3]), "grids=.*as many for each"),
        (dict(grids=[]), "grids="),
        (dict(grids=[(3, 4)], causal=True), "causal=True"),
        (dict(grids=[5, 7], key_padding_mask=torch.zeros(1, 5, dtype=torch.bool)), "key_padding_mask.shape"),
    ],
)
def test_mistakes_are_named(options, message):
    row = torch.randn(3, 1, 2, 12, 8)
    with pytest.raises(ValueError, match=message):
        fma(*row, cell_size=2, **options)
    with pytest.raises(ValueError, match="one row"):
        fma(*torch.randn(3, 2, 2, 12, 8), cell_size=2, cu_seqlens=[0, 5, 12])
