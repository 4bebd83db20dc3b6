"""Tables, growth and plots of what was measured."""

from __future__ import annotations

import itertools
from pathlib import Path

from matplotlib.figure import Figure

from .cases import KINDS
from .measuring import MethodRow

WIDTH = 24
COLORS = {"sdpa": "C7", "flash": "C7", "cudnn": "C8", "fma": "C0", "linear": "C1", "flex": "C2", "near": "C3"}

HEADER = (
    f"{'tokens':>9} {'':<22}{'fwd ms':>10} {'vs SDPA':>8}{'f+b ms':>11} {'vs SDPA':>8}{'fwd MiB':>9}{'f+b MiB':>10}"
)
HEADER_GPU = (
    f"{'tokens':>9} {'':<{WIDTH}}{'fwd ms':>9} {'vs SDPA':>8}{'floor':>7}{'bwd ms':>10} {'vs SDPA':>8}{'floor':>7}"
    f"{'f+b ms':>10} {'vs SDPA':>8}{'extra MiB':>11}{'of held':>9}"
)


def table(rows: list[MethodRow], gpu: bool = False) -> str:
    """The rows of one size; times as multiples of the fastest SDPA's beside the milliseconds.

    Args:
        rows: rows of one size.
        gpu: also the backward pass alone, percentages of the floor, and the memory beyond inputs, output and gradients.
    """
    full = [row for row in rows if row.method.startswith("SDPA") and row.reason is None]
    return "\n".join(_line(row, full, gpu) for row in rows)


def _line(row: MethodRow, full: list[MethodRow], gpu: bool) -> str:
    size = f"{'x'.join(map(str, row.grid)):>9}"
    if row.reason is not None:
        return f"{size} {row.method:<{WIDTH}}{row.reason}"

    def ratio(field: str) -> str:
        best = min((getattr(other, field) for other in full), default=None)
        return "-" if best is None else f"{best / getattr(row, field):.1f}x"

    def percent(part: float | None, whole: float) -> str:
        return "-" if part is None else f"{100 * part / whole:.0f}%"

    if not gpu:
        return (
            f"{size} {row.method:<22}"
            f"{row.forward_ms:>10.1f} {ratio('forward_ms'):>8}"
            f"{row.forward_backward_ms:>11.1f} {ratio('forward_backward_ms'):>8}"
            f"{row.forward_mib:>9.0f}{row.forward_backward_mib:>10.0f}"
        )
    return (
        f"{size} {row.method:<{WIDTH}}"
        f"{row.forward_ms:>9.3f} {ratio('forward_ms'):>8}{percent(row.forward_floor_ms, row.forward_ms):>7}"
        f"{row.backward_ms:>10.3f} {ratio('backward_ms'):>8}{percent(row.backward_floor_ms, row.backward_ms):>7}"
        f"{row.forward_backward_ms:>10.3f} {ratio('forward_backward_ms'):>8}"
        f"{row.forward_backward_extra_mib:>11.0f}{percent(row.forward_backward_extra_mib, row.held_mib):>9}"
    )


def growth(rows: list[MethodRow], method: str) -> list[tuple[str, float, float]]:
    """Factor in time from each sequence length to the next where that is two or four times as long.

    Args:
        rows: all rows.
        method: title of the method.
    """
    line = [row for row in rows if row.method == method and len(row.grid) == 1 and row.reason is None]
    return [
        (f"{a.tokens} -> {b.tokens}", b.forward_ms / a.forward_ms, b.forward_backward_ms / a.forward_backward_ms)
        for a, b in itertools.pairwise(sorted(line, key=lambda row: row.tokens))
        if b.tokens in (2 * a.tokens, 4 * a.tokens)
    ]


def plot(rows: list[MethodRow], title: str, path: Path) -> None:
    """Draw times and memory against the number of tokens.

    Args:
        rows: all rows; those without figures are left out.
        title: device and settings.
        path: the PNG file.
    """
    figure = Figure(figsize=(13, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    quantities = [
        ("forward_ms", "forward, ms"),
        ("forward_backward_ms", "forward + backward, ms"),
        ("forward_backward_mib", "peak memory, forward + backward, MiB"),
    ]
    for axis, (field, label) in zip(axes, quantities, strict=True):
        for name, color in COLORS.items():
            method = KINDS[name].title
            mine = [row for row in rows if row.method == method and row.reason is None]
            line = sorted((r.tokens, getattr(r, field)) for r in mine if len(r.grid) == 1)
            plane = sorted((r.tokens, getattr(r, field)) for r in mine if len(r.grid) == 2)
            if line:
                axis.plot(*zip(*line, strict=True), "o-", color=color, label=method)
            if plane:
                axis.plot(*zip(*plane, strict=True), "s--", color=color, mfc="none", label=f"{method}, image")
        axis.set(xscale="log", yscale="log", xlabel="tokens", title=label)
        axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3)
    if axes[0].lines:
        axes[0].legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
