"""The operators in standard ones compute what the dense definition computes, on any geometry."""

import pytest
import torch
from helpers.attention_problems import make_problem, problems
from hypothesis import given, settings
from torch.utils._python_dispatch import TorchDispatchMode

from fma_kernels import Hierarchy, clear_caches, fma
from fma_kernels.backends.selection import exporting
from fma_kernels.export import decompositions

TABLE = decompositions()


class Replaced(TorchDispatchMode):
    """Runs the operators of the library by their decompositions, as a program for export does."""

    def __enter__(self):
        self.replaced, self.token = [], exporting.set(True)
        return super().__enter__()

    def __exit__(self, *error):
        exporting.reset(self.token)
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "fma_kernels":
            self.replaced.append(function)
            function = TABLE[function]
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def check(problem, expected):
    with Replaced() as mode:
        found = problem.attention("auto", return_lse=True)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
    return mode.replaced


@settings(max_examples=150)
@given(problem=problems())
def test_operators(problem):
    check(problem, problem.attention("reference", return_lse=True))


def test_every_operator_was_replaced():
    replaced = set()
    for kind in ("nested", "direct"):
        problem = make_problem(Hierarchy((40,), 2), kind=kind)
        replaced |= set(check(problem, problem.attention("reference", return_lse=True)))
    query, key, value = torch.randn(3, 1, 2, 40, 4)
    with Replaced() as mode:
        fma(query, key, value, cell_size=2)
    assert replaced | set(mode.replaced) == set(TABLE)


@pytest.mark.parametrize("attends", ["fma", "fma_linear"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "hierarchy",
    [
        Hierarchy((37,), 4, 2, causal=True),
        Hierarchy((100,), 8, 4),
        Hierarchy((13, 17), 3),
        Hierarchy((32, 20), 4, 2),
        Hierarchy((9, 7, 10), 2),
    ],
    ids=str,
)
def test_the_one_call(hierarchy, attends, masked):
    problem = make_problem(hierarchy, attends=attends, masked=masked)
    query_basis, key_basis, value_basis = problem.bases
    options = dict(
        cell_size=hierarchy.cell_size, rank=hierarchy.rank, grid=hierarchy.grid, causal=hierarchy.causal,
        key_basis=key_basis, value_basis=value_basis, query_basis=query_basis if attends == "fma_linear" else None,
        key_padding_mask=problem.mask, return_lse=True,
    )  # fmt: skip
    with torch.no_grad():
        expected = fma(*problem.tensors, backend="reference", **options)
        with Replaced() as mode:
            found = fma(*problem.tensors, **options)
    assert mode.replaced == [torch.ops.fma_kernels.fma.default]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def test_nothing_of_a_masked_token_is_read():
    problem = make_problem(Hierarchy((40,), 2), masked=True)
    with torch.no_grad():
        expected = problem.attention("reference")
        for x, junk in zip(problem.tensors[1:], (1e30, float("nan")), strict=True):
            x.masked_fill_(problem.mask[:, None, :, None], junk)
        with Replaced():
            found = problem.attention("auto")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_dropout_is_refused():
    problem = make_problem(Hierarchy((40,), 2))
    with Replaced(), pytest.raises(ValueError, match=r"dropout_p=0.1: expected 0 for export: call eval\(\)"):
        problem.attention("auto", dropout_p=0.1)


def test_tables_of_a_trace_are_real():
    """A cache that keeps a tensor of a trace spoils all calls after it."""
    clear_caches()
    problem = make_problem(Hierarchy((9, 12), 2))
    expected = problem.attention("reference", return_lse=True)

    class Model(torch.nn.Module):
        def forward(self, query, key, value):
            return fma(query, key, value, cell_size=2, grid=(9, 12))

    from fma_kernels.export import export_program

    query, key, value = torch.randn(3, 1, 2, 108, 3)
    program = export_program(Model().eval(), (query, key, value))
    wanted = fma(query, key, value, cell_size=2, grid=(9, 12), backend="reference")
    torch.testing.assert_close(program.module()(query, key, value), wanted, rtol=0, atol=1e-5)
    check(problem, expected)
