"""The least time that a device needs for an attention, from what it reads, writes and multiplies.

With BH sequences times heads of N tokens, head dimension d, e bytes a number, and per head P pairs of a query and a key
that it reads and M summaries (of keys and of values; of queries too in FMA-linear)::

    forward   FLOPs   4 d P BH           the products with the keys and with the values
              bytes   BH (e d (3N + M) + e d N + 4N)              reads q, k, v, summaries; writes o, log-sum-exp
    backward  FLOPs  10 d P BH           the logits again, and four gradients
              bytes   BH (e d (3N + M) + e d N + 4N + e d N + e d (3N + M))    reads those and do; writes the gradients

    floor = max(bytes / bandwidth of a copy, FLOPs / rate of a matrix product)

Every array moves once. Both ceilings are measured on the device, by a copy and by a product far larger than its caches.
The making of summaries is no part of a floor: rows that include it are measured against the attention alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fma_kernels import Hierarchy
from fma_kernels.flops import far_pairs, near_pairs


@dataclass(frozen=True)
class Ceilings:
    """Limits of a device.

    Attributes:
        bytes_per_s: read and written by a copy.
        flops_per_s: of a matrix product, a multiply-add counted as two.
    """

    bytes_per_s: float
    flops_per_s: float


def measure_ceilings(
    device: torch.device,
    dtype: torch.dtype,
    clock: Callable[[Callable[[], object]], float],
    copied_bytes: int = 2**30,
    side: int = 8192,
) -> Ceilings:
    """Measure a large copy and a large product of square matrices.

    Args:
        device: the device.
        dtype: of the matrices.
        clock: milliseconds that a function takes.
        copied_bytes: bytes that are copied; they are read once and written once.
        side: of the matrices.
    """
    source = torch.zeros(copied_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    # Random numbers: a product of zeros draws less power, and runs at a higher rate than any attention could.
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    runs = [lambda: target.copy_(source), lambda: torch.mm(a, b)]
    for run in runs:
        run()  # the first product sets up its library
    copy_ms, product_ms = map(clock, runs)
    return Ceilings(2 * copied_bytes / copy_ms * 1e3, 2 * side**3 / product_ms * 1e3)


@dataclass(frozen=True)
class Work:
    """Work of an attention: the N, P, M, BH, d and e of the formulas above."""

    tokens: int
    pairs: int
    summaries: int
    heads: int
    head_dim: int
    element_bytes: int

    @property
    def forward_flops(self) -> int:
        """FLOPs of the forward pass."""
        return 4 * self.head_dim * self.pairs * self.heads

    @property
    def backward_flops(self) -> int:
        """FLOPs of the backward pass."""
        return 10 * self.head_dim * self.pairs * self.heads

    @property
    def forward_bytes(self) -> int:
        """Bytes that the forward pass reads and writes."""
        return self._inputs + self._outputs

    @property
    def backward_bytes(self) -> int:
        """Bytes that the backward pass reads and writes."""
        return self._inputs + self._outputs + self._rows(self.tokens) + self._inputs

    @property
    def held_bytes(self) -> int:
        """Bytes of the inputs, the output and all gradients, which are there at the same time."""
        return self.backward_bytes

    def floors_ms(self, ceilings: Ceilings) -> tuple[float, float]:
        """The least milliseconds of the forward and of the backward pass.

        Args:
            ceilings: limits of the device.
        """
        passes = (self.forward_bytes, self.forward_flops), (self.backward_bytes, self.backward_flops)
        return tuple(1e3 * max(b / ceilings.bytes_per_s, f / ceilings.flops_per_s) for b, f in passes)

    @property
    def _inputs(self) -> int:
        return self._rows(3 * self.tokens + self.summaries)

    @property
    def _outputs(self) -> int:
        return self._rows(self.tokens) + 4 * self.tokens * self.heads

    def _rows(self, count: int) -> int:
        return count * self.head_dim * self.element_bytes * self.heads


def pairs_and_summaries(attention: str, hierarchy: Hierarchy) -> tuple[int, int]:
    """P and M of the formulas above, per head.

    Args:
        attention: ``"full"``, ``"near"`` (the near field alone), ``"fma"`` or ``"fma_linear"``.
        hierarchy: geometry.
    """
    n = hierarchy.num_tokens
    if attention == "full":
        return n * (n + 1) // 2 if hierarchy.causal else n * n, 0
    if attention == "near":
        return near_pairs(hierarchy), 0
    linear = attention == "fma_linear"
    far = sum(far_pairs(hierarchy, level, summarised_queries=linear) for level in hierarchy.levels)
    return near_pairs(hierarchy) + far, (3 if linear else 2) * hierarchy.num_summaries
