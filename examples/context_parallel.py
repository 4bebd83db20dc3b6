"""A byte language model in plain PyTorch, whose contexts are longer than one device holds.

    torchrun --nproc-per-node 2 examples/context_parallel.py
    torchrun --nproc-per-node 8 examples/context_parallel.py --context-ranks 4 --context 65536 --cell-size 64 --rank 4
    python examples/context_parallel.py                                           # the same in one process

It learns the sources of Python's standard library. Groups of --context-ranks processes hold each sequence together
(FMAContextParallel); with more processes than that, the groups have sequences of their own. FSDP2 shards parameters,
gradients and optimizer over all processes. Every --save-every steps, torch.distributed.checkpoint writes a checkpoint;
the same command goes on from the last complete one, with as many processes as it is started with.

On CUDA GPUs it uses NCCL, elsewhere gloo. The loss is that of one process, whatever the number of processes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sysconfig
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import parallelize_module

from fma_kernels import FMAttention
from fma_kernels.distributed import FMAContextParallel, own_tokens, shard


class Block(nn.Module):
    """Attention and a feed-forward network, each behind a normalisation and beside a residual connection."""

    def __init__(self, channels: int, heads: int, cell_size: int, rank: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = FMAttention(channels, heads, cell_size=cell_size, rank=rank, causal=True)
        self.feed_forward = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class ByteModel(nn.Module):
    """A causal transformer over bytes. It does not know that a sequence is split: it is told the positions."""

    def __init__(self, layers: int, channels: int, heads: int, cell_size: int, rank: int):
        super().__init__()
        self.embedding = nn.Embedding(256, channels)
        self.blocks = nn.ModuleList(Block(channels, heads, cell_size, rank) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(channels), nn.Linear(channels, 256)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, tokens: Tensor, positions: Tensor, targets: Tensor) -> Tensor:
        """The sum of the losses of ``targets`` (B, n), which follow ``tokens`` (B, n) at ``positions`` (n,)."""
        x = self.embedding(tokens) + sinusoids(positions, self.embedding.embedding_dim)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def sinusoids(positions: Tensor, channels: int) -> Tensor:
    """Encodings of positions (n, channels), arXiv 1706.03762 section 3.5, at the scale of the embedding."""
    frequencies = torch.exp(torch.arange(0, channels, 2, device=positions.device) * (-math.log(10000) / channels))
    angles = positions[:, None] * frequencies
    return 0.02 * torch.cat([angles.sin(), angles.cos()], 1)


def standard_library() -> Tensor:
    """The sources of Python's standard library as one sequence of bytes (uint8)."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for path in root.rglob("*.py") if not {"site-packages", "dist-packages"} & {*path.parts})
    return torch.frombuffer(bytearray(b"\n".join(path.read_bytes() for path in files)), dtype=torch.uint8)


def batch_of(data: Tensor, step: int, count: int, context: int, seed: int) -> Tensor:
    """The sequences of a step, (count, context + 1): the same for any number of processes, and after a resumption."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    starts = torch.randint(len(data) - context, (count,), generator=generator)
    return torch.stack([data[start : start + context + 1] for start in starts]).long()


def last_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint that was written to its end: its metadata come last."""
    complete = [path.parent for path in folder.glob("step-*/.metadata")]
    return max(complete, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def train(args: argparse.Namespace, device: torch.device) -> None:
    """Train, from the last checkpoint on if there is one.

    Args:
        args: parsed arguments.
        device: that of this process.
    """
    world = dist.get_world_size()
    context_ranks = args.context_ranks or world
    groups = world // context_ranks
    mesh = init_device_mesh(device.type, (groups, context_ranks), mesh_dim_names=("data", "context"))
    everyone = init_device_mesh(device.type, (world,), mesh_dim_names=("all",))
    context = mesh["context"].get_group()
    layout = dict(group=context, grid=args.context, cell_size=args.cell_size)

    torch.manual_seed(args.seed)  # the same weights on all processes
    model = ByteModel(args.layers, args.channels, args.heads, args.cell_size, args.rank).to(device)
    parallelize_module(model, mesh["context"], {"blocks.*.attention": FMAContextParallel()})
    for block in model.blocks:
        fully_shard(block, mesh=everyone)
    fully_shard(model, mesh=everyone)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)

    def state() -> dict:
        weights, moments = get_state_dict(model, optimizer)
        return {"model": weights, "optimizer": moments}

    first, log = 0, args.out / "log.jsonl"
    if found := last_checkpoint(args.out):
        loaded = state()
        dcp.load(loaded, checkpoint_id=found)
        set_state_dict(model, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])
        first = int(found.name.removeprefix("step-"))
    if dist.get_rank() == 0:
        args.out.mkdir(parents=True, exist_ok=True)
        kept = log.read_text().splitlines(keepends=True)[:first] if log.exists() else []
        log.write_text("".join(kept))  # without the steps that are done again
        print(f"{world} processes, {context_ranks} for each sequence; from step {first} on", flush=True)

    data = standard_library()
    positions = torch.tensor(own_tokens(args.context, args.cell_size, context), device=device)
    mine = slice(mesh["data"].get_local_rank(), None, groups)
    for step in range(first, args.steps):
        sequences = batch_of(data, step, args.batch, args.context, args.seed)[mine].to(device)
        tokens, targets = (shard(x, **layout) for x in (sequences[:, :-1], sequences[:, 1:]))
        total = model(tokens, positions, targets)
        # FSDP divides the sum of all gradients by the number of processes.
        (total * world / (args.batch * args.context)).backward()
        optimizer.step()
        optimizer.zero_grad()
        total = total.detach()
        dist.all_reduce(total)
        if dist.get_rank() == 0:
            bits = total.item() / (args.batch * args.context) / math.log(2)
            with log.open("a") as file:
                file.write(json.dumps({"step": step + 1, "bits": bits}) + "\n")
            print(f"step {step + 1}: {bits:.4f} bits per byte", flush=True)
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            dcp.save(state(), checkpoint_id=args.out / f"step-{step + 1}")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context-ranks", type=int, help="processes that hold a sequence together (all)")
    parser.add_argument("--context", type=int, default=2048, help="bytes of a sequence (2048)")
    parser.add_argument("--batch", type=int, default=4, help="sequences of a step, of all processes together (4)")
    parser.add_argument("--steps", type=int, default=200, help="200")
    parser.add_argument("--save-every", type=int, default=50, help="steps between checkpoints (50)")
    parser.add_argument("--layers", type=int, default=2, help="2")
    parser.add_argument("--channels", type=int, default=64, help="64")
    parser.add_argument("--heads", type=int, default=4, help="4")
    parser.add_argument("--cell-size", type=int, default=16, help="tokens of a level-1 cell (16)")
    parser.add_argument("--rank", type=int, default=2, help="summaries of a cell (2)")
    parser.add_argument("--lr", type=float, default=3e-3, help="0.003")
    parser.add_argument("--seed", type=int, default=0, help="0")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/context_parallel"), help="folder of the results")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: the arguments; those of the process when None.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    world = int(os.environ.get("WORLD_SIZE", 1))
    groups, rest = divmod(world, args.context_ranks or world)
    if rest:
        parser.error(f"--context-ranks {args.context_ranks}: expected a divisor of the {world} processes")
    if args.batch % groups:
        parser.error(f"--batch {args.batch}: expected a multiple of the {groups} groups of processes")
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    alone = {} if "RANK" in os.environ else dict(store=dist.HashStore(), rank=0, world_size=1)
    dist.init_process_group("nccl" if cuda else "gloo", **alone)
    try:
        train(args, device)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
