"""Costs of cell sizes and ranks, and the detail that they keep: the figures behind tools/plan.py."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from fma_kernels import CoreAttention, Hierarchy
from fma_kernels.flops import attend_pairs, near_pairs
from fma_kernels.measure import milliseconds, take_turns
from fma_mm.analysis.memory import MemoryLog

from .markdown import table

GIB = 2**30


@dataclass(frozen=True)
class Problem:
    """The attention that is planned.

    Attributes:
        grid: tokens per axis.
        causal: a query reads no later token.
        attention: ``"fma"`` or ``"fma_linear"``.
        batch, heads, head_dim: the rest of the shape.
        dtype: of queries, keys and values.
    """

    grid: tuple[int, ...]
    causal: bool
    attention: str
    batch: int
    heads: int
    head_dim: int
    dtype: torch.dtype

    def module(self, cell_size: int, rank: int) -> CoreAttention:
        """The attention with a cell size and a rank.

        Args:
            cell_size: side of a level-1 cell.
            rank: summaries per cell and axis.
        """
        levels = max(1, Hierarchy(self.grid, cell_size, rank, causal=self.causal).num_levels)
        return CoreAttention(
            self.heads, self.head_dim, cell_size=cell_size, rank=rank, ndim=len(self.grid), causal=self.causal,
            attention=self.attention, num_levels=levels,
        )  # fmt: skip

    def inputs(self) -> list[torch.Tensor]:
        """Queries, keys and values."""
        tokens = torch.Size(self.grid).numel()
        shape = (self.batch, self.heads, tokens, self.head_dim)
        return [torch.randn(shape, dtype=self.dtype).requires_grad_() for _ in range(3)]


@dataclass
class Choice:
    """A cell size and a rank.

    Attributes:
        cell_size, rank: the choice.
        near, far: tokens and summaries that a query reads, on average.
        exact: share of the tokens before or around a query that it reads one by one.
        flops: multiply-adds of the forward pass.
        memory: bytes at the peak of a forward and a backward pass: queries, keys, values, output, gradients, and what
            is kept between both passes.
        ms: milliseconds of both passes on this machine; None: not measured.
        fits: the memory is within the budget.
        best: no other choice that fits beats it.
    """

    cell_size: int
    rank: int
    near: float
    far: float
    exact: float
    flops: int
    memory: int
    ms: float | None = None
    fits: bool = True
    best: bool = False

    def beats(self, other: Choice) -> bool:
        """Whether this one is better: a query reads as many keys, as many of them exactly, for as little, or better.

        What it costs is its time, or its multiply-adds where nothing was measured.
        """
        mine, theirs = (
            (-(choice.near + choice.far), -choice.exact, choice.ms or choice.flops) for choice in (self, other)
        )
        return all(a <= b for a, b in zip(mine, theirs, strict=True)) and mine != theirs


def plan(
    problem: Problem, cell_sizes: Sequence[int], ranks: Sequence[int], budget: int | None, rounds: int = 0
) -> list[Choice]:
    """All choices: every cell size with every rank that divides it.

    Args:
        problem: the attention.
        cell_sizes, ranks: what to choose from.
        budget: bytes that both passes may take; None: any number.
        rounds: how often the choices that fit are timed, in turns; 0: not at all.
    """
    pairs = [(cell, rank) for cell in cell_sizes for rank in ranks if cell % rank == 0]
    choices = [_describe(problem, cell, rank) for cell, rank in pairs]
    for choice in choices:
        choice.fits = budget is None or choice.memory <= budget
    fitting = [choice for choice in choices if choice.fits]
    if rounds:
        clocks = {str(i): _clock(problem, choice) for i, choice in enumerate(fitting)}
        for times, choice in zip(take_turns(clocks, 1 + rounds).values(), fitting, strict=True):
            choice.ms = sorted(times[1:])[rounds // 2]  # the first one makes tables
    for choice in fitting:
        choice.best = not any(other.beats(choice) for other in fitting)
    return choices


def _describe(problem: Problem, cell_size: int, rank: int) -> Choice:
    hierarchy = Hierarchy(problem.grid, cell_size, rank, causal=problem.causal)
    tokens = hierarchy.num_tokens
    linear = problem.attention == "fma_linear"
    near = near_pairs(hierarchy)
    all_pairs = tokens * (tokens + 1) // 2 if problem.causal else tokens**2
    module = problem.module(cell_size, rank).to(problem.dtype if problem.dtype == torch.float64 else torch.float32)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = [x.detach().requires_grad_() for x in problem.inputs()]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(*fake, problem.grid)
        log = MemoryLog(module)
        with log:
            log.add("inputs", *fake)
            out = module(*fake, problem.grid)
            grad = torch.empty_like(out)
            log.phase = "backward"
            out.backward(grad)
    pairs = attend_pairs(hierarchy, summarised_queries=linear)
    return Choice(
        cell_size, rank, near / tokens, (pairs - near) / tokens, near / all_pairs, counter.get_total_flops() // 2,
        log.peak().size,
    )  # fmt: skip


def _clock(problem: Problem, choice: Choice):
    module, inputs = problem.module(choice.cell_size, choice.rank), problem.inputs()
    leaves = [*inputs, *module.parameters()]

    def step() -> None:
        out = module(*inputs, problem.grid)
        torch.autograd.grad(out, leaves, out.detach(), allow_unused=True)

    return lambda: milliseconds(step, torch.device("cpu"))


def report(choices: list[Choice]) -> str:
    """The choices as a table; a star marks the best.

    Args:
        choices: all of them.
    """
    measured = any(choice.ms is not None for choice in choices)
    titles = ["", "cell", "rank", "near tokens", "summaries", "read exactly", "GFLOPs", "memory, GiB"]
    lines = [[*titles, *(["ms"] if measured else [])]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for choice in choices:
        mark = "*" if choice.best else "" if choice.fits else "over the budget"
        cells = [mark, choice.cell_size, choice.rank, f"{choice.near:.0f}", f"{choice.far:.0f}", f"{choice.exact:.2%}"]
        cells += [f"{choice.flops / 1e9:.2f}", f"{choice.memory / GIB:.3f}"]
        lines.append([*cells, *([f"{choice.ms:.1f}" if choice.ms else ""] if measured else [])])
    return table(lines)


def plot(choices: list[Choice], title: str, path) -> None:
    """Draw cost against what is read exactly, and against the summaries.

    Args:
        choices: all of them.
        title: title of the picture.
        path: where to.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    measured = any(choice.ms is not None for choice in choices)
    label = "ms, forward + backward" if measured else "GFLOPs, forward"
    for axis, (name, value) in zip(
        figure.subplots(1, 2),
        (("tokens read one by one", lambda c: c.near), ("summaries read", lambda c: c.far)),
        strict=True,
    ):
        for choice in choices:
            cost = choice.ms if measured else choice.flops / 1e9
            if cost is None:
                continue
            style = dict(marker="o" if choice.best else "x", color=f"C{choice.rank.bit_length() - 1}")
            axis.plot(value(choice), cost, linestyle="", **style)
            with contextlib.suppress(ValueError):
                axis.annotate(f"{choice.cell_size}/{choice.rank}", (value(choice), cost), fontsize=7)
        axis.set(xlabel=name, ylabel=label, yscale="log")
        axis.grid(alpha=0.3)
    figure.suptitle(f"{title}; cell/rank, dots: no other choice beats it")
    figure.savefig(path, dpi=110)
