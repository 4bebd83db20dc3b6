"""From flags to a self-attention."""

from __future__ import annotations

from fma_kernels import CoreAttention
from fma_kernels.checks import require

from .base import HeadAttention
from .baselines import HTransformer, Linear, Local, Reformer
from .flags import ATTENTIONS, OPERATORS, AttentionFlags
from .multipole import build_multipole
from .self_attention import SelfAttention

LEAKS = ("reformer",)  # outputs of its causal form change with later tokens


def build_self_attention(
    flags: AttentionFlags,
    embed_dim: int,
    num_heads: int,
    *,
    causal: bool,
    max_tokens: int,
    dropout: float = 0.0,
    q_noise: float = 0.0,
    qn_block_size: int = 8,
) -> SelfAttention:
    """Build the self-attention that the flags ask for.

    Args:
        flags: has the fields of :class:`AttentionFlags`.
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
    side = "decoder" if causal else "encoder"
    divides = num_heads >= 1 and embed_dim % num_heads == 0
    require(divides, f"{side}_attention_heads", num_heads, f"a divisor of {side}_embed_dim, which is {embed_dim}")
    head_dim, rotary = embed_dim // num_heads, str(flags.fma_positions) == "rotary"
    require(not rotary or head_dim % 2 == 0, "fma_positions", "rotary", f"another with {head_dim} channels per head")
    require(0 <= dropout < 1, "attention_dropout", dropout, "a probability, 0 <= p < 1")
    attention = _build_head_attention(flags, num_heads, head_dim, causal, max_tokens)
    return SelfAttention(
        embed_dim, num_heads, attention, dropout=dropout, rotary=rotary,
        shared_query_key=isinstance(attention, Reformer), q_noise=q_noise, qn_block_size=qn_block_size,
    )  # fmt: skip


def _build_head_attention(
    flags: AttentionFlags, num_heads: int, head_dim: int, causal: bool, max_tokens: int
) -> HeadAttention | CoreAttention:
    name = str(flags.fma_attention)
    require(name in ATTENTIONS, "fma_attention", name, f"one of {', '.join(ATTENTIONS)}")
    leaks = "another for a decoder: the causal form of its library leaks, earlier outputs change with later tokens"
    require(not (causal and name in LEAKS), "fma_attention", name, leaks)
    if name in OPERATORS:
        return build_multipole(flags, num_heads, head_dim, causal=causal, max_tokens=max_tokens)
    if name == "local":
        require(flags.fma_window >= 1, "fma_window", flags.fma_window, "an integer >= 1")
        return Local(flags.fma_window, causal)
    if name == "linear":
        return Linear(causal)
    if name == "h-transformer":
        return HTransformer(num_heads, head_dim, causal)
    return Reformer()
