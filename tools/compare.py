#!/usr/bin/env python
"""Costs and metrics of the models of several configs, side by side, under the same conditions.

    python tools/compare.py configs/imagenet/fma2d-tiny_8xb128_in1k.py configs/imagenet/swin-base_8xb128_in1k.py
    python tools/compare.py A.py B.py --iterations 1000 --batch-size 32 --out work_dirs/a_and_b
    python tools/compare.py A.py B.py --simulate --batch-size 128 --precision bf16
    python tools/compare.py configs/lm/enwik8.yaml --simulate --tokens 4096 65536 --attention full fma fma-linear

For each config: parameters; FLOPs (multiply-adds of a forward pass over one training image); memory and time of a
training step; and, with --iterations, the metric after that many iterations.

* A step is the config's own: preprocessing, losses, optimizer. All configs take the same batch size, and the same batch
  if they agree about their data.
* Times are medians over rounds in which the models take turns.
* Memory is the peak of all tensors from the building of the model to the end of its second step, as PyTorch allocates
  them: weights, gradients, the optimizer's state, activations.
* All configs train for the same number of iterations, with the same batch size and seed, as by tools/train.py. The
  schedule of the learning rate is scaled to that number; nothing else in the recipe is. Validation comes at the end.

With --simulate, nothing is measured and no data is needed: the peak memory of a training step of any size is simulated,
on any machine, by what it is for (weights, gradients, the optimizer's state, activations), by stage and by kind of
layer. The configs may also be recipes of configs/lm. Writes memory.md, memory.json and memory.png.

Otherwise prints a table, and writes comparison.md, comparison.json and comparison.png. Training logs and the last
weights lie in a folder for each config beside them.
"""

from __future__ import annotations

import hashlib
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.device import get_device

from fma_kernels.measure import device_name
from fma_mm import __version__, cli  # the package registers the project's components
from fma_mm.analysis.comparison import MEANING, Results, describe, failures_of, measure_costs, plot, table, train
from fma_mm.analysis.simulation import OPTIMIZERS, PRECISIONS
from fma_mm.cli import CommandError
from fma_mm.training_length import train_for
from fma_tools.language_models.recipes import Variant
from fma_tools.memory_report import simulate

FOR_A_STEP = ("model", "train_dataloader", "optim_wrapper")
FOR_TRAINING = ("train_cfg", "val_cfg", "val_dataloader", "val_evaluator")


def make_parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="config files; ratios are to the first")
    parser.add_argument("--iterations", type=int, default=0, metavar="N", help="train each that long; 0 by default")
    parser.add_argument("--batch-size", type=int, metavar="B", help="images per step; the first config's by default")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each model, at least 5; 7 by default")
    parser.add_argument("--seed", type=int, default=0, help="of weights, data order and augmentation; 0 by default")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="the GPU by default, if there is one")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/compare"), metavar="DIR", help="folder of results")
    parser.add_argument("--resume", action="store_true", help="go on with what an interrupted comparison left in --out")
    cli.add_config_options(parser)
    group = parser.add_argument_group("with --simulate")
    group.add_argument("--simulate", action="store_true", help="simulate the memory of a step, and nothing else")
    group.add_argument("--image-size", type=int, nargs="+", metavar="N", help="side of the images, or height and width")
    group.add_argument("--precision", choices=list(PRECISIONS), default="bf16", help="of the computation; bf16")
    group.add_argument("--optimizer", choices=list(OPTIMIZERS), help="the config's by default; of recipes always Adam")
    group.add_argument("--backbone", action="store_true", help="take the backbones alone")
    group.add_argument("--tokens", type=int, nargs="+", default=[4096], metavar="N", help="of recipes; 4096")
    group.add_argument("--attention", type=Variant.parse, nargs="+", metavar="NAME", help="of recipes, as train_lm.py")
    group.add_argument("--words", type=int, default=260, help="of recipes, in the dictionary; 260, those of bytes")
    return parser


def read_configs(args: Namespace) -> dict[str, Config]:
    """Read and complete all configs.

    Args:
        args: parsed arguments; ``batch_size`` is filled in.

    Returns:
        The configs by the name that their results go by.

    Raises:
        CommandError: a config is missing or lacks a part, or two have one name.
    """
    configs = {}
    for filename in args.configs:
        name = Path(filename).stem
        if name in configs:
            raise CommandError(f"configs {configs[name].filename} and {filename}: the names of the files must differ")
        with failures_of(filename):
            cfg = configs[name] = cli.read_config(filename, args.cfg_options)
        for part in FOR_A_STEP + (FOR_TRAINING if args.iterations else ()):
            if cfg.get(part) is None:
                raise CommandError(f"config {filename}: it has no {part}")
        args.batch_size = args.batch_size or cfg.train_dataloader.get("batch_size")
        if not args.batch_size:
            raise CommandError(f"config {filename}: its train_dataloader has no batch_size; give --batch-size")
        cfg.train_dataloader.batch_size = args.batch_size
        cli.complete_dataloaders(cfg)
        if args.iterations:
            with failures_of(filename):
                train_for(cfg, args.iterations)
    return configs


def check(args: Namespace) -> torch.device:
    """Check the numbers and the device.

    Args:
        args: parsed arguments.

    Raises:
        CommandError: an argument cannot be had.
    """
    least = dict(iterations=0, batch_size=1, rounds=5, seed=0, image_size=1, tokens=1, words=5)
    for option, smallest in least.items():
        values = getattr(args, option)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and value < smallest:
                raise CommandError(f"--{option.replace('_', '-')} {value}: expected {smallest} or more")
    if args.image_size and len(args.image_size) > 2:
        raise CommandError(f"--image-size {' '.join(map(str, args.image_size))}: expected one or two numbers")
    device = args.device or ("cuda" if get_device() == "cuda" else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise CommandError("--device cuda: PyTorch sees no GPU on this machine")
    if args.iterations and device != get_device():
        raise CommandError(f"--device {device}: mmengine trains on {get_device()} here; hide it, or train 0 iterations")
    return torch.device(device)


def conditions_of(args: Namespace, configs: dict[str, Config], device: torch.device) -> dict:
    """The conditions that the results depend on.

    Args:
        args: parsed arguments.
        configs: the configs.
        device: where the models run.
    """
    return dict(
        configs={name: hashlib.sha256(repr(cfg.to_dict()).encode()).hexdigest()[:16] for name, cfg in configs.items()},
        iterations=args.iterations,
        batch_size=args.batch_size,
        rounds=args.rounds,
        seed=args.seed,
        device=device_name(device),
        torch=torch.__version__,
        version=__version__,
    )


def compare(args: Namespace) -> None:
    """Check, measure, train and report.

    Args:
        args: parsed arguments.
    """
    device = check(args)
    if args.simulate:
        simulate(args)
        return
    configs = read_configs(args)
    settings = conditions_of(args, configs, device)
    results = Results(args.out, settings, args.command, args.resume)
    if not results.rows:
        results.rows = measure_costs(configs, rounds=args.rounds, seed=args.seed, device=device)
        results.save()
    for name, cfg in configs.items():
        row = results.rows[name]
        if args.iterations and not row.metrics:
            with failures_of(cfg.filename):
                record = train(cfg, args.out / name, args.seed)
            row.loss, row.seconds, row.metrics = [float(x) for x in record.losses], record.seconds, record.metrics
            results.save()
    report = f"{describe(settings)}\n\n{table(results.rows)}\n\n{MEANING}\n"
    (args.out / "comparison.md").write_text(report)
    plot(results.rows, describe(settings), args.out / "comparison.png")
    print(f"\n{report}\nwrote {', '.join(str(args.out / f'comparison.{suffix}') for suffix in ('md', 'json', 'png'))}")


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: the arguments; those of the process when None.
    """
    parser = make_parser()
    parser.set_defaults(command=["python", "tools/compare.py", *(sys.argv[1:] if argv is None else argv)])
    cli.run(parser, argv, compare)


if __name__ == "__main__":
    main()
