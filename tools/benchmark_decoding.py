#!/usr/bin/env python3
"""Memory and time per token of decoding, by causal FMA's state and by a key-value cache with full attention (SDPA).

    python tools/benchmark_decoding.py                                  # contexts of 1k .. 1M tokens on this CPU
    python tools/benchmark_decoding.py --contexts 1024 65536 --heads 8
    python tools/benchmark_decoding.py --device cuda --dtype bfloat16 --heads 16 --batch 8

Both methods get the same tokens, one at a time. The key-value cache is allocated in advance and written in place; its
bytes are those of the tokens that it holds. First both are checked on a short context against the definition in
float64; if one is wrong, nothing is timed, and the run ends with status 1. Then the contexts are filled one after the
other, in chunks, and timed in rounds in which the methods take turns. A round of FMA is a whole cell of tokens, so that
making the summaries is in its mean; "slowest" is its slowest token, the one that ends a cell. Times are medians over
rounds.

Prints a table, and writes decoding.json and decoding.png to --out. To keep a result, copy them to
benchmarks/results/decoding-DEVICE.json and docs/decoding-DEVICE.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fma_kernels import DecodingState, Hierarchy, SummaryBasis, __version__, aggregate, fma_attention
from fma_kernels.measure import device_name, milliseconds

#: Largest difference from the definition in float64 that rounding may make; the values are of order 1.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 6e-2}
HEADER = (
    f"{'':>9} {'FMA':>9}{'':>9}{'':>10}{'KV cache':>11}{'':>11}{'KV / FMA':>10}\n"
    f"{'context':>9} {'ms/token':>9}{'slowest':>9}{'KiB':>10}{'ms/token':>11}{'KiB':>11}{'time':>10}{'memory':>9}"
)


class KeyValueCache:
    """All keys and values so far, and full attention from the next token.

    Args:
        like: (B, H, T, d), whose batch, heads, channels, dtype and device the tokens have.
        capacity: most tokens that there can be.
    """

    def __init__(self, like: Tensor, capacity: int):
        self.keys, self.values = (like.new_empty(*like.shape[:2], capacity, like.shape[3]) for _ in range(2))
        self.num_tokens = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values that it holds."""
        return 2 * self.keys[:, :, : self.num_tokens].numel() * self.keys.element_size()

    def fill(self, key: Tensor, value: Tensor) -> None:
        """Append keys and values (B, H, T, d)."""
        end = self.num_tokens + key.shape[2]
        self.keys[:, :, self.num_tokens : end] = key
        self.values[:, :, self.num_tokens : end] = value
        self.num_tokens = end

    def step(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Append one token (B, H, 1, d) and attend from it to all."""
        self.fill(key, value)
        keys, values = (x[:, :, : self.num_tokens] for x in (self.keys, self.values))
        return F.scaled_dot_product_attention(query, keys, values)


@dataclass
class Row:
    """Both methods in one context.

    Attributes:
        context: tokens before the first that is timed.
        fma_ms: time per token of FMA, mean over a cell.
        fma_slowest_ms: its slowest token of a cell.
        fma_bytes: what its state holds in this context.
        kv_ms: time per token of the key-value cache.
        kv_bytes: what that holds in this context.
    """

    context: int
    fma_ms: float
    fma_slowest_ms: float
    fma_bytes: int
    kv_ms: float
    kv_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.context:>9} {self.fma_ms:>9.3f}{self.fma_slowest_ms:>9.3f}{self.fma_bytes / 2**10:>10.1f}"
            f"{self.kv_ms:>11.3f}{self.kv_bytes / 2**10:>11.0f}"
            f"{self.kv_ms / self.fma_ms:>9.1f}x{self.kv_bytes / self.fma_bytes:>8.0f}x"
        )


class Benchmark:
    """The two methods, and the tokens that they get.

    Args:
        args: the settings of the command line.
    """

    def __init__(self, args: argparse.Namespace):
        self.args, self.device = args, torch.device(args.device)
        self.dtype = getattr(torch, args.dtype)
        self.generator = torch.Generator(self.device).manual_seed(args.seed)
        levels = Hierarchy((args.contexts[-1] + args.rounds * args.cell_size,), args.cell_size, args.rank).num_levels
        self.bases = [
            SummaryBasis(
                args.heads, args.head_dim, args.cell_size, args.rank, num_levels=max(1, levels), kind=args.kind
            )
            .to(self.device)
            .requires_grad_(False)
            for _ in range(2)
        ]
        for basis in self.bases:
            for parameter in basis.parameters():  # away from means, whose mistakes could hide
                noise = torch.randn(parameter.shape, generator=self.generator, device=self.device)
                parameter.mul_(1 + 0.1 * noise)

    def tokens(self, count: int) -> Tensor:
        """Query, key and value of the next tokens: (3, B, H, count, d)."""
        shape = (3, self.args.batch, self.args.heads, count, self.args.head_dim)
        return torch.randn(shape, generator=self.generator, device=self.device, dtype=self.dtype)

    def state(self) -> DecodingState:
        """An empty state of FMA."""
        return DecodingState(*self.bases)

    def errors(self) -> dict[str, float]:
        """Largest difference of each method's outputs from its definition in float64, on a short context."""
        length = 16 * self.args.cell_size + 3
        tokens = self.tokens(length)
        state, prompt = self.state(), 9 * self.args.cell_size + 1
        cache = KeyValueCache(tokens[0], length)
        fma, full = [state.prefill(*tokens[..., :prompt, :])], []
        for i in range(length):
            token = tokens[..., i : i + 1, :]
            full.append(cache.step(*token))
            if i >= prompt:
                fma.append(state.step(*token))
        query, key, value = tokens.double()
        hierarchy = Hierarchy((length,), self.args.cell_size, self.args.rank, causal=True)
        summaries = [aggregate(x, b, hierarchy, backend="torch") for x, b in zip((key, value), self.bases, strict=True)]
        exact = {
            "FMA": fma_attention(query, key, value, *summaries, hierarchy, backend="reference"),
            "KV cache": F.scaled_dot_product_attention(query, key, value, is_causal=True),
        }
        outputs = {"FMA": torch.cat(fma, 2), "KV cache": torch.cat(full, 2)}
        return {name: (outputs[name] - exact[name]).abs().max().item() for name in exact}

    def rows(self) -> Iterator[Row]:
        """Fill and time the contexts, shortest first; yields a row for each."""
        args = self.args
        state = self.state()
        cache = KeyValueCache(self.tokens(1)[0], args.contexts[-1] + args.rounds * args.cell_size)
        for context in args.contexts:
            while missing := context - state.num_tokens:
                chunk = self.tokens(min(args.chunk, missing))
                state.step(*chunk)
                cache.fill(*chunk[1:])
            fma_bytes, kv_bytes = state.nbytes, cache.nbytes
            times = {"mean": [], "slowest": [], "kv": []}
            for _ in range(args.rounds):
                tokens = self.tokens(args.cell_size).split(1, dim=3)
                fma = [milliseconds(lambda x=x: state.step(*x), self.device) for x in tokens]
                times["mean"].append(statistics.mean(fma))
                times["slowest"].append(max(fma))
                kv = [milliseconds(lambda x=x: cache.step(*x), self.device) for x in tokens[: args.kv_tokens]]
                times["kv"].append(statistics.mean(kv))
                for x in tokens[args.kv_tokens :]:
                    cache.fill(*x[1:])
            mean, slowest, kv_ms = (statistics.median(x) for x in times.values())
            yield Row(context, mean, slowest, fma_bytes, kv_ms, kv_bytes)


def plot(rows: list[Row], title: str, path: Path) -> None:
    """Draw time and memory against the context.

    Args:
        rows: all rows.
        title: what was measured where.
        path: the PNG file.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    contexts = [row.context for row in rows]
    quantities = [("ms", 1, "ms per token"), ("bytes", 2**20, "memory of the cache, MiB")]
    for axis, (quantity, unit, label) in zip(axes, quantities, strict=True):
        for name, text, style in (("kv", "KV cache, SDPA", "C7o-"), ("fma", "FMA", "C0o-")):
            axis.plot(contexts, [getattr(row, f"{name}_{quantity}") / unit for row in rows], style, label=text)
        axis.set(yscale="log", xlabel="tokens before", title=label)
        axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[4**i for i in range(5, 11)], help="tokens before")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=2, help="default 2: the key-value cache of 1M tokens takes 1 GiB")
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--cell-size", type=int, default=64)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--kind", choices=["nested", "direct", "mean"], default="nested", help="of the summaries")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=list(TOLERANCE), default="float32")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--rounds", type=int, default=9, help="rounds, of which the median counts")
    parser.add_argument("--kv-tokens", type=int, default=4, help="timed tokens of the key-value cache in a round")
    parser.add_argument("--chunk", type=int, default=4096, help="tokens at a time with which contexts are filled")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("work_dirs/benchmark_decoding"), help="folder of the results")
    args = parser.parse_args(argv)
    for name in ("batch", "heads", "head_dim", "cell_size", "rank", "threads", "rounds", "kv_tokens", "chunk"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: expected at least 1")
    if args.cell_size % args.rank:
        parser.error(f"--rank {args.rank}: expected a divisor of --cell-size {args.cell_size}")
    args.kv_tokens = min(args.kv_tokens, args.cell_size)
    args.contexts = sorted(args.contexts)
    step = args.rounds * args.cell_size
    gaps = [b - a for a, b in zip([-step, *args.contexts], args.contexts, strict=False)]
    if args.contexts[0] < 1 or min(gaps) < step:
        parser.error(f"--contexts {args.contexts}: expected to begin at 1 or more, and {step} tokens or more apart")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: PyTorch sees no GPU on this machine")
    return args


@torch.no_grad()
def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    benchmark = Benchmark(args)
    device = device_name(benchmark.device)
    title = (
        f"{device}; {args.dtype}, batch {args.batch}, {args.heads} heads of {args.head_dim}; "
        f"cell {args.cell_size}, rank {args.rank}, {args.kind}"
    )
    print(f"{title}\ntorch {torch.__version__}, fma-mm {__version__}")
    errors = benchmark.errors()
    for name, error in errors.items():
        print(f"{name}: {error:.1e} from the definition in float64")
    if wrong := [name for name, error in errors.items() if not error <= TOLERANCE[args.dtype]]:
        print(f"wrong: {', '.join(wrong)}; expected at most {TOLERANCE[args.dtype]:g}", file=sys.stderr)
        return 1

    print(f"\n{HEADER}")
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for row in benchmark.rows():
        rows.append(row)
        print(row, flush=True)
        result = dict(
            command=" ".join(["python", "tools/benchmark_decoding.py", *argv]),
            device=device,
            torch=torch.__version__,
            version=__version__,
            settings={key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()},
            errors=errors,
            rows=[asdict(row) for row in rows],
        )
        (args.out / "decoding.json").write_text(json.dumps(result, indent=1) + "\n")
    first, last = rows[0], rows[-1]
    print(
        f"{first.context} -> {last.context} tokens: FMA's time per token x {last.fma_ms / first.fma_ms:.2f}, "
        f"its memory x {last.fma_bytes / first.fma_bytes:.2f}"
    )
    plot(rows, title, args.out / "decoding.png")
    print(f"\nwrote {args.out / 'decoding.json'} and {args.out / 'decoding.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
