"""FMA over ranks against one process."""

import os
from types import SimpleNamespace

import pytest
import torch
from helpers import rank_work

from fma_kernels import FMAttention, SummaryBasis, fma
from fma_kernels.distributed import FMAContextParallel

SEQUENCE, IMAGE, VOLUME = (61,), (21, 9), (9, 5, 6)

GEOMETRIES = [
    # grid, cell size, rank, options
    (SEQUENCE, 4, 2, dict(causal=True)),
    (SEQUENCE, 4, 2, dict(masked=True)),
    ((64,), 4, 1, dict(causal=True, masked=True, kind="direct")),
    (SEQUENCE, 4, 4, dict(kind="mean")),
    ((70,), 8, 2, dict(kind="direct")),
    (IMAGE, 2, 1, dict(masked=True)),
    ((14, 14), 2, 2, dict(share_heads=True)),
    (IMAGE, 4, 2, dict(kind="direct", group_bias=False)),
    (VOLUME, 2, 1, dict()),
    (VOLUME, 2, 2, dict(kind="mean", masked=True)),
    ((8, 3), 2, 1, dict()),  # a layer each
]


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("attends", ["near", "fma", "fma_linear"])
def test_outputs_and_all_gradients_are_those_of_one_process(ranks, size, attends):
    for grid, cell_size, rank, options in GEOMETRIES:
        arguments = (grid, cell_size, rank, {**options, "attends": attends})
        found = ranks.run(size, rank_work.difference_to_one_process, *arguments)
        assert max(found) < 1e-10, arguments


@pytest.mark.parametrize("attends", ["fma", "fma_linear"])
@pytest.mark.parametrize(("grid", "causal"), [((37,), True), ((7, 5), False)])
def test_the_cpu_kernels_do_the_same(ranks, attends, grid, causal):
    options = dict(attends=attends, causal=causal, masked=causal, dim=16)
    found = ranks.run(3, rank_work.difference_to_one_process, grid, 2, 2, options, "cpp", torch.float32)
    assert max(found) < 2e-4


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="the ranks are processes of the CPU")
@pytest.mark.parametrize(("attends", "grid", "causal"), [("fma", (3, 5), False), ("fma_linear", (21,), True)])
def test_the_triton_kernels_do_the_same(ranks, attends, grid, causal):
    options = dict(attends=attends, causal=causal, masked=True, dim=16, batch=1, heads=1)
    cell_size = 1 if len(grid) == 2 else 4
    found = ranks.run(2, rank_work.difference_to_one_process, grid, cell_size, 1, options, "triton", torch.float32)
    assert max(found) < 2e-4


@pytest.mark.parametrize("attends", ["near", "fma", "fma_linear"])
def test_a_module_is_split_from_outside(ranks, attends):
    assert max(ranks.run(3, rank_work.module_difference, attends)) < 1e-10
    assert max(ranks.run(2, rank_work.module_difference, attends, False)) < 1e-10


def test_a_single_rank_changes_no_bit():
    """A group of one, which asks for nothing: there is nobody to talk to."""

    class Alone:
        def size(self):
            return 1

    x = torch.randn(3, 1, 2, 50, 16)
    basis = SummaryBasis(2, 16, 4, 2)
    call = dict(cell_size=4, rank=2, key_basis=basis, value_basis=basis)
    assert torch.equal(fma(*x, **call, group=Alone()), fma(*x, **call))
    layer = FMAttention(8, 2, cell_size=4)
    layer.attention.context_parallel(Alone())
    assert layer.attention.group is None


@pytest.mark.parametrize("attends", ["near", "fma", "fma_linear"])
def test_gradients_are_the_same_bits_every_time_and_with_checkpointing(ranks, attends):
    first = ranks.run(4, rank_work.gradients, attends)
    assert ranks.run(4, rank_work.gradients, attends) == first
    assert ranks.run(4, rank_work.gradients, attends, True) == first


def test_with_parameters_that_are_sharded_over_other_ranks(ranks):
    assert max(ranks.run(4, rank_work.sharded_difference)) < 1e-10


SHAPE = (1, 1, 8, 4)
GOOD = dict(cell_size=4, causal=True)


@pytest.mark.parametrize(
    ("by_rank", "expected"),
    [
        # the message of the first rank, and that of the second
        ([(SHAPE, GOOD), (SHAPE, dict(GOOD, cell_size=2))], ["cell_size=4: expected 2, as on rank 1", "cell_size=2: "]),
        ([(SHAPE, GOOD), (SHAPE, dict(GOOD, grid=(16,)))], ["len(grid)=0: expected 1", "len(grid)=1: expected 0"]),
        ([(SHAPE, GOOD), (SHAPE, dict(cell_size=4))], ["causal=1: expected 0, as on rank 1", "causal=0: expected 1"]),
        ([((1, 2, 8, 4), GOOD), (SHAPE, GOOD)], ["query.shape[1]=2: expected 1", "query.shape[1]=1: expected 2"]),
        ([((1, 1, 7, 4), GOOD), ((1, 1, 9, 4), GOOD)], ["query.shape[2]=7: expected 8 on rank 0 of 2: the layers"] * 2),
        ([((1, 1, 4, 4), GOOD), ((1, 1, 12, 4), GOOD)], ["query.shape[2]=4: expected 8 on rank 0 of 2"] * 2),
        ([((1, 1, 2, 4), GOOD), ((1, 1, 2, 4), GOOD)], ["ranks=2: expected at most 1: each owns a layer of cells"] * 2),
        (
            [(SHAPE, GOOD), (SHAPE, dict(GOOD, rank=3))],
            ["group: expected arguments that fit on every rank; those of rank 1 do not", "rank=3: expected a divisor"],
        ),
        ([(SHAPE, dict(GOOD, backend="reference"))] * 2, ["backend='reference': expected another with a group"] * 2),
        ([(SHAPE, dict(cell_size=4, num_global_tokens=1))] * 2, ["num_global_tokens=1: expected 0 with a group"] * 2),
        ([(SHAPE, dict(GOOD, cu_seqlens=[0, 8]))] * 2, ["cu_seqlens or grids='given': expected None"] * 2),
    ],
)  # fmt: skip
def test_all_ranks_say_what_is_wrong_and_none_waits(ranks, by_rank, expected):
    found = ranks.run(2, rank_work.message, by_rank)
    for message, beginning in zip(found, expected, strict=True):
        assert message.startswith(beginning), message
    assert ranks.run(2, rank_work.message, [(SHAPE, GOOD)] * 2) == [None, None]  # they still understand each other


def test_what_cannot_be_split_is_refused():
    line, plane = SimpleNamespace(ndim=1), SimpleNamespace(ndim=2)
    for module, mesh, expected in [
        (torch.nn.Linear(2, 2), line, "module=Linear.*expected an FMAttention or a CoreAttention"),
        (FMAttention(8, 2, cell_size=4), plane, "device_mesh=.*expected a mesh of one axis"),
        (FMAttention(8, 2, cell_size=4, attention="full"), line, "attention='full': expected another"),
        (FMAttention(8, 2, cell_size=4, num_global_tokens=1), line, "num_global_tokens=1: expected 0"),
    ]:
        with pytest.raises(ValueError, match=expected):
            FMAContextParallel()._apply(module, mesh)
