"""From flags to an attention."""

from __future__ import annotations

from .baselines import HTransformer, Linear, Local, Reformer
from .config import ATTENTIONS, AttentionConfig
from .core import Core, Full
from .multipole import Multipole
from .self_attention import SelfAttention

LEAKS = ("reformer",)  # outputs of its causal form change with later tokens


def build_self_attention(
    config: AttentionConfig,
    embed_dim: int,
    num_heads: int,
    *,
    causal: bool,
    max_tokens: int,
    dropout: float = 0.0,
    q_noise: float = 0.0,
    qn_block_size: int = 8,
) -> SelfAttention:
    """The self-attention that the flags ask for.

    Args:
        config: has the fields of :class:`AttentionConfig`.
        embed_dim: channels C.
        num_heads: attention heads H.
        causal: a token reads no later token.
        max_tokens: tokens of the longest sequence in training.
        dropout: probability to drop an attention weight in training.
        q_noise, qn_block_size: fairseq's quantization noise of the projections.

    Raises:
        ValueError: a flag is not one of its choices or does not fit the others, or the attention would let a causal
            model read later tokens.
        ImportError: the library of a baseline is not installed.
    """
    if embed_dim % num_heads:
        raise ValueError(f"embed_dim: {embed_dim}, expected a multiple of the {num_heads} attention heads")
    rotary = str(config.fma_positions) == "rotary"
    if rotary and embed_dim // num_heads % 2:
        raise ValueError(f"fma_positions: 'rotary', expected an even head dimension, not {embed_dim // num_heads}")
    core = _build_core(config, num_heads, embed_dim // num_heads, causal, max_tokens, dropout)
    return SelfAttention(embed_dim, num_heads, core, rotary=rotary, q_noise=q_noise, qn_block_size=qn_block_size)


def _build_core(
    config: AttentionConfig, num_heads: int, head_dim: int, causal: bool, max_tokens: int, dropout: float
) -> Core:
    kind = str(config.fma_attention)
    if kind in LEAKS and causal:
        raise ValueError(
            f"fma_attention: {kind!r}, expected another for a decoder: the causal form of its library leaks, earlier "
            "outputs change with later tokens"
        )
    if kind == "full":
        return Full(causal, dropout)
    if kind in ("fma", "fma-linear"):
        return Multipole(
            num_heads, head_dim, max_tokens, cell_size=config.fma_cell_size, rank=config.fma_rank,
            aggregation=str(config.fma_aggregation), query_summaries=kind == "fma-linear", causal=causal,
            dropout=dropout,
        )  # fmt: skip
    if kind == "local":
        if config.fma_window < 1:
            raise ValueError(f"fma_window: {config.fma_window}, expected an integer >= 1")
        return Local(config.fma_window, causal, dropout)
    if kind == "linear":
        return Linear(causal)
    if kind == "h-transformer":
        return HTransformer(num_heads, head_dim, causal)
    if kind == "reformer":
        return Reformer(dropout)
    raise ValueError(f"fma_attention: {kind!r}, expected one of {', '.join(ATTENTIONS)}")
