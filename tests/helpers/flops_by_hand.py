"""FLOPs counted by walking over tokens and cells, for comparison with the formulas."""

from __future__ import annotations

import itertools
import math

from fma_kernels import Hierarchy


def pairs_of_tokens(hierarchy: Hierarchy) -> tuple[int, int, list[int]]:
    """Sort every pair of tokens by the definition: near, or of the coarsest level at which the cells do not touch.

    Returns:
        Near pairs; pairs of a token with a summary, all levels together; pairs of a query summary with a summary, by
        level, finest first.
    """
    tokens = list(itertools.product(*map(range, hierarchy.grid)))
    near, far, summarised = 0, set(), set()
    for query, key in itertools.product(tokens, tokens):
        level, width = 0, hierarchy.cell_size
        while any(abs(i // width - j // width) > 1 for i, j in zip(query, key, strict=True)):
            level, width = level + 1, 2 * width
        if hierarchy.causal and key > query:
            continue
        if level == 0:
            near += 1
            continue
        block = width // 2 // hierarchy.rank
        key_summary, query_summary = (tuple(i // block for i in token) for token in (key, query))
        far.add((query, level, key_summary))
        summarised.add((query_summary, level, key_summary))
    return near, len(far), [sum(pair[1] == level for pair in summarised) for level in hierarchy.levels]


def pairs_of_cells(grid: tuple[int, int], cell: int) -> int:
    """(query, key) pairs plus (query, summary) pairs, one summary per cell, by walking over the cells."""
    hierarchy = Hierarchy(grid, cell)

    def tokens(level: int, index: tuple[int, ...]) -> int:
        width = cell * 2 ** (level - 1)
        return math.prod(min(width, n - i * width) for i, n in zip(index, grid, strict=True))

    pairs = 0
    finest = list(itertools.product(*map(range, hierarchy.cell_grid(1))))
    for query, key in itertools.product(finest, finest):
        if max(abs(i - j) for i, j in zip(query, key, strict=True)) <= 1:
            pairs += tokens(1, query) * tokens(1, key)
    for level in range(1, hierarchy.num_levels + 1):
        for query in itertools.product(*map(range, hierarchy.cell_grid(level))):
            pairs += tokens(level, query) * len(hierarchy.interaction_list(level, query))
    return pairs


def fma2d(embed_dims: int, depths: tuple[int, ...], size: int = 224, cell: int = 7) -> int:
    """Multiply-adds of FMA2D's forward pass with one summary per cell, on a size that the cells divide."""
    flops, channels_in, side = 0, 3, size
    for stage, depth in enumerate(depths):
        channels, kernel, stride = embed_dims * 2**stage, (3 if stage else 7), (2 if stage else 4)
        side //= stride
        n = side * side
        flops += n * channels * channels_in * kernel * kernel
        channels_in = channels

        projections = n * channels * (3 * channels + channels)
        feed_forward = n * (channels * 4 * channels + 4 * channels * 9 + 4 * channels * channels)
        attention = pairs_of_cells((side, side), cell) * 2 * channels  # a product with the key, one with the value
        summaries, rows, width = 0, side, cell
        for _ in range(Hierarchy((side, side), cell).num_levels):
            assert rows % width == 0
            made = rows // width  # per row, then of these per column; each weighs ``width`` numbers; keys and values
            summaries += 2 * (rows * made + made * made) * width * channels
            rows, width = made, 2
        flops += depth * (projections + feed_forward + attention + summaries)
    return flops


def nested_summaries(hierarchy: Hierarchy) -> int:
    """Multiply-adds per channel that make the summaries of all levels, each from the level below, axis by axis."""
    made, rank = 0, hierarchy.rank
    for level in hierarchy.levels:
        unit = hierarchy.cell_size if level == 1 else 2 * rank
        grid = [cells * unit for cells in hierarchy.cell_grid(level)]  # partial cells are filled up with zeros
        for axis in reversed(range(hierarchy.ndim)):
            grid[axis] = grid[axis] // unit * rank
            made += math.prod(grid) * unit
    return made
