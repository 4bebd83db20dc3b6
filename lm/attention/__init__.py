"""Self-attention of the language models: Fast Multipole Attention, and the attentions that it is compared with."""

from .build import build_self_attention
from .flags import ATTENTIONS, AttentionFlags
from .self_attention import SelfAttention

__all__ = ["ATTENTIONS", "AttentionFlags", "SelfAttention", "build_self_attention"]
