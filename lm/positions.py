"""Position embeddings of a part of a sequence, and the number of positions that a model has."""

from __future__ import annotations

from fairseq.modules import LearnedPositionalEmbedding, SinusoidalPositionalEmbedding
from torch import Tensor

from fma_kernels.checks import require

UNBOUNDED = 2**31 - 1  # a number of tokens, as fairseq compares it with lengths


def position_embeddings(
    module: LearnedPositionalEmbedding | SinusoidalPositionalEmbedding, start: int, stop: int
) -> Tensor:
    """Embed the positions ``start`` to ``stop - 1``, counted from 0.

    Args:
        module: fairseq's positions, whose numbers begin with ``padding_idx + 1``. A sinusoidal table grows as needed.
        start, stop: the positions.

    Returns:
        (stop - start, C).

    Raises:
        ValueError: learned positions end before ``stop``.
    """
    first = module.padding_idx + 1
    if isinstance(module, LearnedPositionalEmbedding):
        require_positions(module, stop)
        return module.weight[first + start : first + stop]
    if first + stop > len(module.weights):  # twice as many as needed, because generation takes one more at a time
        table = module.get_embedding(2 * (first + stop), module.embedding_dim, module.padding_idx)
        module.weights = table.to(module.weights)
    return module.weights[first + start : first + stop]


def require_positions(module: LearnedPositionalEmbedding | SinusoidalPositionalEmbedding | None, count: int) -> None:
    """Raise ``ValueError`` if positions are learned and there are fewer than ``count`` of them."""
    limit = max_positions(module, None)
    require(count <= limit, "number of tokens", count, f"at most {limit}, the number of learned positions")


def max_positions(module: LearnedPositionalEmbedding | SinusoidalPositionalEmbedding | None, limit: int | None) -> int:
    """Return the largest number of tokens that a model accepts: its number of learned positions, else any number.

    Args:
        module: positions of the model, or None if they are not added to embeddings.
        limit: a limit that the user sets, or None.
    """
    ends = module.max_positions if isinstance(module, LearnedPositionalEmbedding) else UNBOUNDED
    return min(ends, limit or UNBOUNDED)
