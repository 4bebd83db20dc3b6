"""Positions that are added to embeddings, for some tokens of a sequence."""

from __future__ import annotations

from fairseq.modules import LearnedPositionalEmbedding, SinusoidalPositionalEmbedding
from torch import Tensor

from fma_kernels.checks import require

UNBOUNDED = 2**31 - 1  # as a number of tokens: fairseq compares with it


def position_embeddings(
    module: LearnedPositionalEmbedding | SinusoidalPositionalEmbedding, start: int, stop: int
) -> Tensor:
    """The embeddings of positions ``start`` to ``stop - 1``, counted from 0: (stop - start, C).

    Args:
        module: fairseq's; it numbers the positions from ``padding_idx + 1``.
        start, stop: the positions.

    Raises:
        ValueError: learned positions end before ``stop``.
    """
    first = module.padding_idx + 1
    if isinstance(module, LearnedPositionalEmbedding):
        require_positions(module, stop)
        return module.weight[first + start : first + stop]
    if first + stop > len(module.weights):  # twice as many as needed: generation asks for one more at a time
        table = module.get_embedding(2 * (first + stop), module.embedding_dim, module.padding_idx)
        module.weights = table.to(module.weights)
    return module.weights[first + start : first + stop]


def require_positions(module: LearnedPositionalEmbedding | SinusoidalPositionalEmbedding | None, count: int) -> None:
    """Raise ``ValueError`` if positions are learned, and not for so many tokens."""
    limit = max_positions(module, None)
    require(count <= limit, "number of tokens", count, f"at most {limit}, where the learned positions end")


def max_positions(module: LearnedPositionalEmbedding | SinusoidalPositionalEmbedding | None, limit: int | None) -> int:
    """How many tokens a model takes: as many as there are learned positions, else any number.

    Args:
        module: its positions, or None if they are not added to embeddings.
        limit: a limit beyond which the user wants no sequence.
    """
    ends = module.max_positions if isinstance(module, LearnedPositionalEmbedding) else UNBOUNDED
    return min(ends, limit or UNBOUNDED)
