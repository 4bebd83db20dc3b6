"""Tables are made once per geometry, and freed on demand."""

import torch
from helpers.tensors import random

from fma_kernels import Hierarchy, clear_caches, fma
from fma_kernels.caches import cached
from fma_kernels.cells import token_counts


def test_tables_are_freed_and_made_again():
    query, key, value = (random(1, 1, 70, 4, seed=i) for i in range(3))
    before, hierarchy, cpu = fma(query, key, value, cell_size=4), Hierarchy((70,), 4), torch.device("cpu")
    counts, near = token_counts(hierarchy, cpu), hierarchy.tables().near
    assert token_counts(hierarchy, cpu) is counts and hierarchy.tables().near is near
    clear_caches()
    assert token_counts(hierarchy, cpu) is not counts and hierarchy.tables().near is not near
    assert torch.equal(fma(query, key, value, cell_size=4), before)


def test_no_cache_grows_without_bound():
    made = []

    @cached
    def table(number):
        made.append(number)
        return number

    for number in range(200):
        table(number)
    assert [table(number) for number in range(199, 189, -1)] == [*range(199, 189, -1)] and len(made) == 200
    table(0)
    assert len(made) == 201
