"""The dense definition, O(N * (N + S)): for tests, in float64 if need be. It shares no code with the other backends."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..hierarchy import Hierarchy


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_summaries: Tensor | None,
    key_summaries: Tensor | None,
    value_summaries: Tensor | None,
    hierarchy: Hierarchy,
    *,
    scale: float,
    group_bias: bool,
    mask: Tensor | None,
    num_global_tokens: int,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    """One softmax over near tokens and far summaries of every query.

    With ``query_summaries`` (B, H, S, d), a token reads the far summaries of a level through the query summary of the
    level's sub-block that it lies in (FMA-linear); otherwise by itself. Without key and value summaries there is no far
    field. The G global tokens, which come first, are near to all tokens.

    Returns:
        The output (B, H, G + N, d) and the log-sum-exp of the logits (B, H, G + N), before dropout.
    """
    tokens = key[:, :1, num_global_tokens:, 0]
    exists = torch.ones_like(tokens, dtype=torch.bool) if mask is None else ~mask[:, None]  # (B, 1, N)
    near, far, sub_block = _membership(hierarchy, query.device)
    # Tokens of each summary's sub-block: a token is in the sub-block numbered as its own of that level.
    inside = torch.zeros(hierarchy.num_tokens, hierarchy.num_summaries, dtype=query.dtype, device=query.device)
    if hierarchy.num_levels:
        inside.scatter_(1, sub_block, 1.0)
    count = exists.to(query.dtype) @ inside  # (B, 1, S)
    # With the global tokens: G + N queries and keys.
    exists = F.pad(exists, [num_global_tokens, 0], value=True)
    near = F.pad(near, [num_global_tokens, 0, num_global_tokens, 0], value=True)
    far = F.pad(far, [0, 0, num_global_tokens, 0], value=False)
    sub_block = F.pad(sub_block, [0, 0, num_global_tokens, 0])

    if key_summaries is None:
        far, count = far[:, :0], count[:, :, :0]
        key_summaries = value_summaries = key[:, :, :0]
    near_logits = (query @ key.mT * scale).masked_fill(~(near & exists[:, :, None]), -math.inf)
    if query_summaries is None:
        far_logits = query @ key_summaries.mT * scale
    else:
        levels = zip(sub_block.T, key_summaries.split(hierarchy.level_sizes, 2), strict=True)
        by_level = [query_summaries[:, :, number] @ keys.mT * scale for number, keys in levels]
        far_logits = torch.cat(by_level, -1) if by_level else query.new_zeros(*query.shape[:3], 0)
    if group_bias:
        far_logits = far_logits + count.clamp(min=1).log()[:, :, None]
    far_logits = far_logits.masked_fill(~(far & (count > 0)[:, :, None]), -math.inf)

    logits = torch.cat([near_logits, far_logits], -1)
    empty = (logits == -math.inf).all(-1, keepdim=True)
    probabilities = torch.softmax(logits.masked_fill(empty, 0), -1).masked_fill(empty, 0)
    out = F.dropout(probabilities, dropout_p) @ torch.cat([value, value_summaries], 2)
    return out, logits.masked_fill(empty, 0).logsumexp(-1).masked_fill(empty[..., 0], -math.inf)


def _membership(hierarchy: Hierarchy, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Near pairs (N, N), pairs of token and summary that is read (N, S), and each token's sub-block per level (N, L).

    Straight from the definitions: compare cells by Chebyshev distance.
    """
    token = torch.cartesian_prod(*(torch.arange(n, device=device) for n in hierarchy.grid)).view(-1, hierarchy.ndim)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return (a[:, None] - b[None]).abs().amax(-1)

    cell = token // hierarchy.cell_size
    near = distance(cell, cell) <= 1
    if hierarchy.causal:
        near &= token >= token.T
    far, numbers, offset = [], [], 0
    for level in hierarchy.levels:
        width, grid = hierarchy.cell_width(level), hierarchy.summary_grid(level)
        summary = torch.cartesian_prod(*(torch.arange(n, device=device) for n in grid)).view(-1, hierarchy.ndim)
        mine, theirs = token // width, summary // hierarchy.rank
        reads = (distance(mine, theirs) > 1) & (distance(mine // 2, theirs // 2) <= 1)
        if hierarchy.causal:
            reads &= theirs[:, 0] < mine
        far.append(reads)
        number = torch.zeros_like(token[:, 0])
        for axis, n in enumerate(grid):
            number = number * n + token[:, axis] // (width // hierarchy.rank)
        numbers.append(offset + number)
        offset += len(summary)
    if not far:
        return near, near[:, :0], token[:, :0]
    return near, torch.cat(far, 1), torch.stack(numbers, 1)
