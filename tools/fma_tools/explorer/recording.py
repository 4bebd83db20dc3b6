"""Queries, keys and geometry of the attentions that a model calls, as the explorer's page computes weights of them."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fma_kernels import CoreAttention, Hierarchy, aggregate
from fma_kernels.checks import require


@dataclass(frozen=True)
class Recording:
    """One call of one attention, for the first sample of its batch.

    Attributes:
        name: of the layer, for the reader of the page.
        hierarchy: geometry of the tokens; without levels, every query reads all tokens.
        near_only: the far field is not read (``attention="near"``).
        scale: factor of the logits.
        group_bias: a summary counts as often as the tokens that it stands for.
        queries: (H, N, d).
        keys: (H, N + S, d), the tokens, then the summaries of all levels, finest first.
        query_summaries: (H, S, d), the queries at the far levels under FMA-linear; else None.
    """

    name: str
    hierarchy: Hierarchy
    near_only: bool
    scale: float
    group_bias: bool
    queries: Tensor
    keys: Tensor
    query_summaries: Tensor | None

    @classmethod
    def of_call(cls, name: str, core: CoreAttention, query: Tensor, key: Tensor, grid: tuple[int, ...]) -> Recording:
        """Record a call.

        Args:
            name: of the layer.
            core: the attention.
            query, key: (B, H, N, d), its arguments.
            grid: tokens per axis, one or two.

        Raises:
            ValueError: the attention is one that the page does not show: ``attention="none"``, global tokens, volumes.
        """
        require(core.attention != "none", "attention", core.attention, f"one that reads other tokens, in {name}")
        require(core.num_global_tokens == 0, "num_global_tokens", core.num_global_tokens, f"0 in {name}")
        require(len(grid) <= 2, "grid", grid, f"a sequence or an image in {name}")
        cells = (max(grid), 1) if core.attention == "full" else (core.cell_size, core.rank)
        hierarchy = Hierarchy(grid, *cells, causal=core.causal)
        query, key = query[:1], key[:1]
        keys, query_summaries = key, None
        if core.key_basis is not None:
            keys = torch.cat([key, aggregate(key, core.key_basis, hierarchy)], 2)
        if core.query_basis is not None:
            query_summaries = aggregate(query, core.query_basis, hierarchy, queries=True)[0]
        scale = core.head_dim**-0.5 if core.scale is None else core.scale
        near_only = core.attention in ("near", "full")
        return cls(name, hierarchy, near_only, scale, core.group_bias, query[0], keys[0], query_summaries)

    def data(self, dtype: str) -> dict[str, Any]:
        """The recording as JSON: geometry in numbers, queries and keys in base64.

        Args:
            dtype: of queries and keys, ``float32`` or ``float16``.
        """
        geometry = self.hierarchy
        grid, cell = geometry.grid, geometry.cell_size
        levels = [dict(width=cell, side=1, blocks=grid, parts=cell, lists=self._lists(0))]
        for level in () if self.near_only else geometry.levels:
            side = geometry.cell_width(level) // geometry.rank
            blocks, lists = geometry.summary_grid(level), self._lists(level)
            width, parts = geometry.cell_width(level), geometry.rank
            levels.append(dict(width=width, side=side, blocks=blocks, parts=parts, lists=lists))
        heads, _, channels = self.queries.shape
        return dict(
            name=self.name, grid=grid, heads=heads, channels=channels, causal=geometry.causal, scale=self.scale,
            groupBias=self.group_bias, allTokens=geometry.num_levels == 0, levels=levels,
            dtype=dtype, queries=_packed(self.queries, dtype), keys=_packed(self.keys, dtype),
            querySummaries=None if self.query_summaries is None else _packed(self.query_summaries, dtype),
        )  # fmt: skip

    def _lists(self, level: int) -> list[list[tuple[int, ...]]]:
        """The cells that the queries of each cell read at a level, the cells row-major; level 0 is the near field."""
        geometry = self.hierarchy
        cells = itertools.product(*map(range, geometry.cell_grid(max(level, 1))))
        return [geometry.interaction_list(level, cell) if level else geometry.near_list(cell) for cell in cells]


@torch.no_grad()
def record(attentions: Mapping[str, CoreAttention], run: Callable[[], Any]) -> list[Recording]:
    """Record the first call of each attention while something runs.

    Args:
        attentions: by the names that the page shows.
        run: what calls them, such as a model's forward pass; runs without gradients.

    Returns:
        A recording of each attention, in the order of ``attentions``.

    Raises:
        ValueError: an attention was not called, or is one that the page does not show.
    """
    recorded: dict[str, Recording] = {}

    def watch(name: str) -> Callable:
        def hook(core: CoreAttention, args: tuple, kwargs: dict) -> None:
            query, key = args[:2]
            grid = args[3] if len(args) > 3 else kwargs.get("grid")
            grid = core.resolve_grid(query.shape[-2], grid)
            recorded.setdefault(name, Recording.of_call(name, core, query, key, tuple(grid)))

        return hook

    hooks = [core.register_forward_pre_hook(watch(name), with_kwargs=True) for name, core in attentions.items()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    for name in attentions:
        require(name in recorded, "attentions", name, "an attention that is called during the run")
    return [recorded[name] for name in attentions]


def _packed(x: Tensor, dtype: str) -> str:
    """Numbers, row-major, little-endian, in base64."""
    little = {"float32": "<f4", "float16": "<f2"}[dtype]
    return base64.b64encode(x.detach().cpu().float().numpy().astype(little).tobytes()).decode()
