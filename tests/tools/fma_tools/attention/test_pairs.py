"""The pairs, the blocks and the results of flex_attention are those of FMA."""

import pytest
import torch
import torch.nn.functional as F

from fma_kernels import Hierarchy, fma_attention
from fma_tools.attention import cases
from fma_tools.attention.floors import pairs_and_summaries
from fma_tools.attention.gate import Gate
from fma_tools.attention.pairs import BLOCK, fma_pairs

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


GEOMETRIES = [
    Hierarchy((500,), 16, 4),
    Hierarchy((500,), 16, 4, causal=True),
    Hierarchy((300,), 10, 2, causal=True),
    Hierarchy((24, 40), 4, 2),
    Hierarchy((21, 19), 7, 1),
    Hierarchy((40,), 32, 4),
]


def reads(hierarchy, summaries):
    """(N, N + S), straight from the lists of cells that the geometry gives."""
    h, n = hierarchy, hierarchy.num_tokens
    place = torch.cartesian_prod(*map(torch.arange, h.grid)).view(n, h.ndim)
    result = torch.zeros(n, n + (h.num_summaries if summaries else 0), dtype=torch.bool)
    for i in range(n):
        cells = set(h.near_list((place[i] // h.cell_size).tolist()))
        result[i, :n] = torch.tensor([tuple(cell) in cells for cell in (place // h.cell_size).tolist()])
        first = n
        for level in h.levels if summaries else ():
            cells = set(h.interaction_list(level, (place[i] // h.cell_width(level)).tolist()))
            blocks = torch.cartesian_prod(*map(torch.arange, h.summary_grid(level))).view(-1, h.ndim)
            width = h.cell_width(level) // h.rank
            read = [
                tuple(cell) in cells and all(b * width < m for b, m in zip(block, h.grid, strict=True))
                for cell, block in zip((blocks // h.rank).tolist(), blocks.tolist(), strict=True)
            ]
            result[i, first : first + len(read)] = torch.tensor(read)
            first += len(read)
    if h.causal:
        result[:, :n] &= torch.ones(n, n, dtype=torch.bool).tril()
    return result


@pytest.mark.parametrize("hierarchy", GEOMETRIES, ids=str)
@pytest.mark.parametrize("summaries", [True, False], ids=["fma", "near field"])
def test_pairs_and_blocks_are_those_of_the_geometry(hierarchy, summaries):
    pairs = fma_pairs(hierarchy, torch.device("cpu"), summaries)
    expected = reads(hierarchy, summaries)
    query, key = (torch.arange(n) for n in expected.shape)
    zero = torch.zeros((), dtype=torch.int32)
    exists = pairs.log_count > -torch.inf  # the others add nothing to a sum
    assert torch.equal(pairs.rule()(zero, zero, query[:, None], key) & exists, expected)
    attention = "fma" if summaries else "near"
    assert pairs_and_summaries(attention, hierarchy)[0] == expected.sum()

    pairs = pairs.by_cell()
    mask, rule = pairs.block_mask(), pairs.rule()
    assert mask.shape[-2:] == expected.shape
    padding = [0, -expected.shape[1] % BLOCK, 0, -expected.shape[0] % BLOCK]
    blocks = F.pad(rule(zero, zero, query[:, None], key), padding)
    blocks = blocks.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
    # A block without pairs is not read, one with all of them is read without asking for each.
    assert torch.equal(listed(mask.full_kv_num_blocks, mask.full_kv_indices), blocks.all(3).all(1))
    assert torch.equal(listed(mask.kv_num_blocks, mask.kv_indices), blocks.any(3).any(1) & ~blocks.all(3).all(1))


def listed(counts, indices):
    table = torch.zeros(indices.shape[2:], dtype=torch.bool)
    for row, (count, columns) in enumerate(zip(counts[0, 0], indices[0, 0], strict=True)):
        table[row, columns[:count].long()] = True
    return table


@pytest.mark.parametrize("hierarchy", GEOMETRIES, ids=str)
def test_flex_attention_computes_fma(make_case, hierarchy):
    case = make_case(hierarchy, batch=2)
    method = case.method("flex")
    with torch.no_grad():
        for x in method.leaves.values():
            x.requires_grad_(False)  # on a CPU it has no backward pass
        out = method.pairs.restore(method.run(), keys=False)
        expected = fma_attention(case.query, case.key, case.value, *case.given.values(), hierarchy, backend="reference")
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=2e-6)
    restored = method.pairs.restore(method.leaves["key"], keys=True)
    assert torch.equal(restored, torch.cat([case.key, case.given["key_summaries"]], 2))
    assert torch.equal(method.pairs.restore(method.grad, keys=False), case.grad)


@pytest.mark.parametrize("hierarchy", GEOMETRIES, ids=str)
def test_flex_attention_computes_the_near_field_alone(make_case, hierarchy):
    case = make_case(hierarchy)
    method = case.method("near")
    with torch.no_grad():
        for x in method.leaves.values():
            x.requires_grad_(False)
        out = method.pairs.restore(method.run(), keys=False)
    expected = F.scaled_dot_product_attention(case.query, case.key, case.value, reads(hierarchy, summaries=False))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["flex", "near"])
@pytest.mark.parametrize("hierarchy", [Hierarchy((300,), 16, 4, causal=True), Hierarchy((21, 34), 4, 2)], ids=str)
def test_the_check_knows_the_order_of_flex_attention(make_case, monkeypatch, name, hierarchy):
    """Forward and backward, with a dense attention in place of flex_attention's, which has no backward pass here."""
    mistake = 1.0

    def flex(pairs, bias, compiled):
        query, key = (torch.arange(len(order)) for order in (pairs.query_order, pairs.key_order))
        zero = torch.zeros((), dtype=torch.int32)
        mask = torch.where(pairs.rule()(zero, zero, query[:, None], key), 0.0, -torch.inf)
        mask = pairs.bias()(mask, zero, zero, query[:, None], key) if bias else mask
        return lambda q, k, v: F.scaled_dot_product_attention(q, mistake * k, v, mask)

    monkeypatch.setattr(cases, "flex", flex)
    case = make_case(hierarchy, batch=2)
    method, gate = case.method(name), Gate(case)
    assert gate.problem(cases.KINDS[name], method) is None
    mistake = 1.001
    assert gate.problem(cases.KINDS[name], method).startswith("wrong: ")
