"""Attentions of ``fma_kernels``: full attention, the near field alone, FMA and FMA-linear."""

from __future__ import annotations

from fma_kernels import CoreAttention, Hierarchy
from fma_kernels.checks import require

from .base import Recomputation, State
from .flags import OPERATORS, AttentionFlags


class FMALinear(CoreAttention):
    """FMA-linear, for which ``fma_kernels`` has no decoding state: generation computes all tokens again."""

    def decoding_state(self) -> State:
        return Recomputation(self)


def build_multipole(
    flags: AttentionFlags, num_heads: int, head_dim: int, *, causal: bool, max_tokens: int
) -> CoreAttention:
    """Build the attention of ``fma_kernels`` that the flags ask for, for sequences (arXiv 2310.11960).

    Args:
        flags: ``fma_attention`` is one of :data:`OPERATORS`.
        num_heads: attention heads H.
        head_dim: channels per head d.
        causal: a token reads no later token.
        max_tokens: number of tokens for which every level has weights of its own. ``nested`` summaries serve longer
            sequences too, ``direct`` ones do not.

    Raises:
        ValueError: a flag does not fit the others.
    """
    attention, cell_size, rank = OPERATORS[str(flags.fma_attention)], flags.fma_cell_size, flags.fma_rank
    require(cell_size >= 1, "fma_cell_size", cell_size, "an integer >= 1")
    divides = rank >= 1 and cell_size % rank == 0
    require(divides, "fma_rank", rank, f"a divisor of fma_cell_size, which is {cell_size}")
    require(max_tokens >= 1, "tokens_per_sample", max_tokens, "an integer >= 1")
    build = FMALinear if attention == "fma_linear" else CoreAttention
    return build(
        num_heads, head_dim, cell_size=cell_size, rank=rank, causal=causal, attention=attention,
        basis_kind=str(flags.fma_basis_kind), group_bias=flags.fma_group_bias, backend=str(flags.fma_backend),
        value_gain=flags.fma_value_gain,
        num_levels=max(1, Hierarchy((max_tokens,), cell_size, rank, causal=causal).num_levels),
    )  # fmt: skip
