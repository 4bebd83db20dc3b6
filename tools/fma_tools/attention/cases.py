"""The attentions that are compared, on one input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from fma_kernels import Hierarchy, SummaryBasis, aggregate, fma, fma_attention

from .floors import Work, pairs_and_summaries
from .pairs import Pairs, fma_pairs
from .settings import Settings


@dataclass(frozen=True)
class Kind:
    """A method of the benchmark.

    Attributes:
        title: its name in tables.
        attention: name of the attention: ``"full"``, ``"near"``, ``"fma"`` or ``"fma_linear"``.
        own: it is this project's.
    """

    title: str
    attention: str
    own: bool = False


KINDS = {
    "sdpa": Kind("SDPA", "full"),
    "flash": Kind("SDPA (flash)", "full"),
    "cudnn": Kind("SDPA (cuDNN)", "full"),
    "fma": Kind("FMA", "fma", own=True),
    "linear": Kind("FMA-linear", "fma_linear", own=True),
    "given": Kind("FMA, summaries given", "fma", own=True),
    "flex": Kind("FMA by flex_attention", "fma"),
    "near": Kind("near field alone, flex", "near"),
}


@dataclass(frozen=True)
class Method:
    """A method on one input.

    Attributes:
        run: the forward pass; returns the output (B, H, N, d).
        leaves: everything that has a gradient, by name.
        grad: gradient of the output.
        pairs: the order of its queries and keys; None where it is the natural one.
    """

    run: Callable[[], Tensor]
    leaves: dict[str, Tensor]
    grad: Tensor
    pairs: Pairs | None = None

    def gradients(self, out: Tensor, grad: Tensor, retain_graph: bool = False) -> tuple[Tensor | None, ...]:
        """Gradients of the leaves, in their order; None for one that is not used.

        Args:
            out: the output of :attr:`run`.
            grad: gradient of it.
            retain_graph: the backward pass will run again.
        """
        leaves = list(self.leaves.values())
        return torch.autograd.grad(out, leaves, grad, retain_graph=retain_graph, allow_unused=True)


class AttentionCase:
    """One size: its inputs, which all methods share.

    Args:
        hierarchy: geometry.
        settings: shape, dtype, device, seed and backend.
    """

    def __init__(self, hierarchy: Hierarchy, settings: Settings):
        self.hierarchy, self.device = hierarchy, torch.device(settings.device)
        self.head_dim, self.dtype = settings.head_dim, getattr(torch, settings.dtype)
        self.backend = settings.backend
        generator = torch.Generator(self.device).manual_seed(settings.seed)
        shape = (settings.batch, settings.heads, hierarchy.num_tokens, settings.head_dim)
        self.query, self.key, self.value, self.grad = (
            torch.randn(shape, generator=generator, device=self.device, dtype=self.dtype).requires_grad_(i < 3)
            for i in range(4)
        )
        self.bases = make_bases(hierarchy, settings.heads, settings.head_dim, self.device)

    @cached_property
    def given(self) -> dict[str, Tensor]:
        """Summaries of the keys and of the values, as inputs."""
        with torch.no_grad():
            made = [
                aggregate(x, self.bases[name], self.hierarchy, backend=self.backend)
                for name, x in (("key", self.key), ("value", self.value))
            ]
        return dict(zip(("key_summaries", "value_summaries"), (x.requires_grad_() for x in made), strict=True))

    def method(self, name: str) -> Method:
        """One method, with what it needs beside the shared inputs.

        Args:
            name: a key of :data:`KINDS`.
        """
        if name in ("flex", "near"):
            return self._flex(summaries=name == "flex")
        tokens = {"query": self.query, "key": self.key, "value": self.value}
        if name in ("sdpa", "flash", "cudnn"):
            return Method(partial(self._full, name), tokens, self.grad)
        if name == "given":
            return Method(self._given, tokens | self.given, self.grad)
        made = ("query", "key", "value") if name == "linear" else ("key", "value")
        weights = {f"{which}.{key}": w for which in made for key, w in self.bases[which].named_parameters()}
        return Method(partial(self._fma, linear=name == "linear"), tokens | weights, self.grad)

    def _full(self, name: str) -> Tensor:
        backends = {"flash": [SDPBackend.FLASH_ATTENTION], "cudnn": [SDPBackend.CUDNN_ATTENTION]}
        attention = partial(F.scaled_dot_product_attention, is_causal=self.hierarchy.causal)
        if name not in backends:
            return attention(self.query, self.key, self.value)
        with sdpa_kernel(backends[name]):
            return attention(self.query, self.key, self.value)

    def _fma(self, linear: bool = False) -> Tensor:
        h, made = self.hierarchy, ("query", "key", "value") if linear else ("key", "value")
        bases = {f"{which}_basis": self.bases[which] for which in made}
        geometry = dict(grid=h.grid, cell_size=h.cell_size, rank=h.rank, causal=h.causal)
        return fma(self.query, self.key, self.value, **geometry, **bases, backend=self.backend)

    def _given(self) -> Tensor:
        summaries = self.given.values()
        return fma_attention(self.query, self.key, self.value, *summaries, self.hierarchy, backend=self.backend)

    def _flex(self, summaries: bool) -> Method:
        """FMA, or its near field alone, by flex_attention on tokens and summaries that were joined and put in order."""
        pairs = fma_pairs(self.hierarchy, self.device, summaries).by_cell()
        keys, values = [self.key], [self.value]
        if summaries:
            keys.append(self.given["key_summaries"])
            values.append(self.given["value_summaries"])
        query, key, value, grad = (
            torch.cat(parts, 2).detach()[:, :, order.long()]
            for parts, order in (
                ([self.query], pairs.query_order),
                (keys, pairs.key_order),
                (values, pairs.key_order),
                ([self.grad], pairs.query_order),
            )
        )
        leaves = {name: x.requires_grad_() for name, x in dict(query=query, key=key, value=value).items()}
        run = flex(pairs, bias=summaries, compiled=self.device.type == "cuda")
        return Method(lambda: run(query, key, value), leaves, grad, pairs)


def make_bases(hierarchy: Hierarchy, heads: int, head_dim: int, device: torch.device) -> dict[str, SummaryBasis]:
    """Fresh weights that make the summaries of queries, keys and values.

    Args:
        hierarchy: geometry.
        heads: number of heads.
        head_dim: channels per head.
        device: where they lie.
    """
    options = dict(ndim=hierarchy.ndim, num_levels=max(1, hierarchy.num_levels))
    return {
        which: SummaryBasis(
            heads, head_dim, hierarchy.cell_size, hierarchy.rank,
            causal_queries=hierarchy.causal and which == "query", **options,
        ).to(device)
        for which in ("query", "key", "value")
    }  # fmt: skip


def flex(pairs: Pairs, bias: bool, compiled: bool) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The attention over these pairs by flex_attention: a function of query, key and value.

    Args:
        pairs: pairs :meth:`~Pairs.by_cell`.
        bias: add the group bias.
        compiled: make a fused kernel of it, for this size alone; uncompiled, it makes all logits.
    """
    attention = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention
    return partial(attention, score_mod=pairs.bias() if bias else None, block_mask=pairs.block_mask())


def work(name: str, hierarchy: Hierarchy, settings: Settings) -> Work:
    """Work of a method on one size, without the making of summaries.

    Args:
        name: a key of :data:`KINDS`.
        hierarchy: geometry.
        settings: shape and dtype.
    """
    pairs, summaries = pairs_and_summaries(KINDS[name].attention, hierarchy)
    size, heads = getattr(torch, settings.dtype).itemsize, settings.batch * settings.heads
    return Work(hierarchy.num_tokens, pairs, summaries, heads, settings.head_dim, size)
