"""Is a method right on the very input that it is timed on?

The definition in float64 takes as much memory as queries times keys. For a few queries of one head it fits at any size,
and their outputs depend on all keys. With a gradient that is zero for all other queries, it gives all gradients of that
head too. So each method runs forward and backward on the whole input, in the dtype and on the device that are timed,
and is compared there.

An error is the largest difference of an array, relative to its largest number; that of outputs is taken query by query
and that of summaries' gradients level by level, as their sizes differ. A method may have twice the error that PyTorch's
attention has in the same dtype on the same queries, keys and values against float64, plus a rounding.
"""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from fma_kernels import aggregate

from .cases import AttentionCase, Kind, Method, make_bases
from .pairs import fma_pairs

ROWS = 64
#: No arithmetic explains errors beyond this, not even PyTorch's own.
LIMIT = 0.05

#: Name of an array, output or gradient, to its value.
Arrays = dict[str, Tensor]


class Gate:
    """The check of the methods on one size, on the last head of the last sequence, whose addresses are the largest.

    Args:
        case: the size.
    """

    def __init__(self, case: AttentionCase):
        self.case, n = case, case.hierarchy.num_tokens
        self.rows = torch.linspace(0, n - 1, min(n, ROWS), device=case.device).round().long()
        self.pairs = fma_pairs(case.hierarchy, case.device)
        self.grad = case.grad[-1, -1, self.rows]
        if case.hierarchy.causal:  # the first queries read few keys; unscaled, their gradients would hide all others
            self.grad = self.grad * ((self.rows + 1) / n)[:, None].to(case.dtype)
        self._expected: dict[tuple[str, bool], Arrays] = {}

    def problem(self, kind: Kind, method: Method) -> str | None:
        """The first problem of a method, None if there is none.

        Args:
            kind: which method it is.
            method: the method on this size.
        """
        given = "key_summaries" in method.leaves or method.pairs is not None
        for name, error in _errors(self._results(method), self.expected(kind.attention, given)).items():
            tolerance = min(2 * self.yardstick[_counterpart(name)] + self._rounding, LIMIT)
            if not error <= tolerance:  # NaN is wrong, too
                what = name if name == "output" else f"gradient of {name}"
                return f"wrong: {what} has an error of {error:.1e}, {tolerance:.1e} allowed"
        return None

    @cached_property
    def yardstick(self) -> dict[str, float]:
        """Errors of PyTorch's attention on one head."""
        case = self.case
        tensors = [getattr(case, name)[-1:, -1:].detach().requires_grad_() for name in ("query", "key", "value")]
        method = Method(
            lambda: F.scaled_dot_product_attention(*tensors, is_causal=case.hierarchy.causal),
            dict(zip(("query", "key", "value"), tensors, strict=True)),
            case.grad[-1:, -1:],
        )
        return _errors(self._results(method), self.expected("full", given=False))

    @property
    def _rounding(self) -> float:
        return max(torch.finfo(self.case.dtype).eps, 1e-5)

    def _results(self, method: Method) -> Arrays:
        """Output and gradients of a method at the rows, brought into natural order."""
        natural = torch.zeros_like(method.grad)
        natural[-1, -1, self.rows] = self.grad
        grad = natural if method.pairs is None else natural[:, :, method.pairs.query_order.long()]
        out = method.run()
        gradients = dict(zip(method.leaves, method.gradients(out, grad), strict=True))
        # Weights hold their heads side by side; tokens and summaries have an axis for them.
        arrays = {
            name: x[-1:, -1:] if x.ndim == 4 else x[..., -self.case.head_dim :]
            for name, x in {"output": out.detach(), **gradients}.items()
            if x is not None
        }
        if method.pairs is not None:
            arrays = {name: method.pairs.restore(x, name in ("key", "value")) for name, x in arrays.items()}
            for name in ("key", "value"):
                arrays[name], arrays[f"{name}_summaries"] = arrays[name].tensor_split([len(self.pairs.query_order)], 2)
        return self._compared({**arrays, "output": arrays["output"][:, :, self.rows]})

    def _compared(self, arrays: Arrays) -> Arrays:
        """The arrays in float64, those of summaries by level, without empty ones."""
        by_level = {}
        for name, x in arrays.items():
            if name.endswith("_summaries"):
                parts = x.split(self.case.hierarchy.level_sizes, 2) if x.shape[2] else ()
                by_level |= {f"{name}.{level}": part for level, part in enumerate(parts, 1)}
            else:
                by_level[name] = x
        return {name: x.double() for name, x in by_level.items()}

    def expected(self, attention: str, given: bool) -> Arrays:
        """Output at the rows and gradients by the definition, in float64.

        Args:
            attention: see :class:`Kind`.
            given: the summaries are inputs.
        """
        if (attention, given) not in self._expected:
            self._expected[attention, given] = self._define(attention, given)
        return self._expected[attention, given]

    def _define(self, attention: str, given: bool) -> Arrays:
        case, h, rows = self.case, self.case.hierarchy, self.rows
        leaves = {name: getattr(case, name)[-1:, -1:].detach().double() for name in ("query", "key", "value")}
        summaries: Arrays = {}
        if given and attention == "fma":
            summaries = {name: x[-1:, -1:].detach().double() for name, x in case.given.items()}
            leaves |= summaries
        for x in leaves.values():
            x.requires_grad_()
        if attention in ("fma", "fma_linear") and not summaries:
            # Fresh weights are the same for all heads.
            bases = make_bases(h, 1, case.head_dim, case.device)
            for which, basis in bases.items():
                leaves |= {f"{which}.{name}": weight for name, weight in basis.double().named_parameters()}
                made = aggregate(leaves[which], basis, h, queries=which == "query", backend="torch")
                summaries[f"{which}_summaries"] = made

        query, key, value = (leaves[name][0, 0] for name in ("query", "key", "value"))
        logits = query[rows] @ key.T
        if attention in ("fma", "fma_linear"):
            far_key, far_value = (summaries[f"{name}_summaries"][0, 0] for name in ("key", "value"))
            far_query = summaries["query_summaries"][0, 0] if attention == "fma_linear" else None
            logits = torch.cat([logits, self._far_logits(query, far_query, far_key)], 1)
            value = torch.cat([value, far_value])
        logits = logits * case.head_dim**-0.5
        keys = torch.arange(logits.shape[1], device=case.device)
        if attention == "full":
            read = keys <= rows[:, None] if h.causal else torch.ones_like(logits, dtype=torch.bool)
        else:
            read = self.pairs.rule()(rows, rows, rows[:, None], keys)
            logits = logits + self.pairs.log_count[keys]
        out = logits.masked_fill(~read, -torch.inf).softmax(1) @ value
        grads = torch.autograd.grad(out, list(leaves.values()), self.grad.double(), allow_unused=True)
        arrays = {name: x for name, x in zip(leaves, grads, strict=True) if x is not None}
        return self._compared({"output": out.detach()[None, None], **arrays})

    def _far_logits(self, query: Tensor, far_query: Tensor | None, far_key: Tensor) -> Tensor:
        """Products of the rows with all summaries: (rows, S); in FMA-linear those of the rows' query summaries."""
        h = self.case.hierarchy
        if far_query is None:
            return query[self.rows] @ far_key.T
        coordinates = torch.unravel_index(self.rows, h.grid)
        products = []
        levels = zip(h.levels, far_query.split(h.level_sizes), far_key.split(h.level_sizes), strict=True)
        for level, queries, keys in levels:
            block, number = h.cell_width(level) // h.rank, torch.zeros_like(self.rows)
            for x, count in zip(coordinates, h.summary_grid(level), strict=True):
                number = number * count + x // block
            products.append(queries[number] @ keys.T)
        return torch.cat(products, 1) if products else query.new_zeros(len(self.rows), 0)


def _counterpart(name: str) -> str:
    """The array of full attention that an array corresponds to: that of the tokens that it is made of."""
    return name.partition(".")[0].removesuffix("_summaries")


def _errors(results: Arrays, expected: Arrays) -> dict[str, float]:
    """The largest differences, relative to the largest numbers."""
    if missing := expected.keys() ^ results.keys():
        raise ValueError(f"{', '.join(sorted(missing))}: in the results or the definition, but not in both")
    errors = {}
    for name, wanted in expected.items():
        difference, largest = (results[name] - wanted).abs(), wanted.abs()
        if name == "output":
            difference, largest = difference.amax(-1), largest.amax(-1)
        else:
            largest = largest.max()
        errors[name] = (difference / largest.clamp(min=1e-30)).max().item()
    return errors
