"""Settings of the benchmark of attentions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Settings that all methods share.

    Attributes:
        batch: sequences.
        heads: heads.
        head_dim: channels per head.
        dtype: name of the inputs' dtype.
        device: where the methods run.
        backend: backend of FMA.
        seed: seed of the inputs.
        rounds: timed rounds, of which the median counts.
        budget: seconds after which a size gets no further round.
    """

    batch: int
    heads: int
    head_dim: int
    dtype: str = "float32"
    device: str = "cpu"
    backend: str = "auto"
    seed: int = 0
    rounds: int = 7
    budget: float = 30.0
