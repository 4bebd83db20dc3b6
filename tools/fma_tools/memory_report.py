"""tools/compare.py --simulate: the memory of training steps as a table, JSON and a picture."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import nn

from fma_mm import __version__, cli
from fma_mm.analysis.comparison import failures_of
from fma_mm.analysis.flops import count_parameters
from fma_mm.analysis.memory import CATEGORIES, Peak
from fma_mm.analysis.simulation import Conditions, simulate_config
from fma_mm.cli import CommandError

from .markdown import table

GIB = 2**30

MEANING = """\
GiB of tensors at the peak of the second training step, simulated with fake tensors. Not in it: workspace inside
operators, fragmentation of the allocator, the CUDA context, buffers of distributed training. Ratios are to the first
row."""


def simulate(args: Namespace) -> None:
    """Simulate all models, and report.

    Args:
        args: arguments of tools/compare.py.

    Raises:
        CommandError: a config or an argument is not as expected, or --out holds something else.
    """
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise CommandError(f"--out {args.out}: it is there and not empty; give another folder")
    rows = {}
    for name, filename, model, peak in _peaks(args):
        if name in rows:
            raise CommandError(f"{filename}: {name} is there already; the names of the files must differ")
        rows[name] = row_of(model, peak)
        print(f"{name}: {rows[name]['peak'] / GIB:.2f} GiB", flush=True)
    settings = dict(
        batch_size=args.batch_size, image_size=args.image_size, precision=args.precision, optimizer=args.optimizer,
        backbone=args.backbone, words=args.words, torch=torch.__version__, version=__version__,
    )  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    content = dict(command=" ".join(args.command), settings=settings, rows=rows)
    (args.out / "memory.json").write_text(json.dumps(content, indent=1) + "\n")
    report = "\n\n".join([summary(rows), MEANING, *(f"**{name}**\n\n{details(row)}" for name, row in rows.items())])
    (args.out / "memory.md").write_text(f"{report}\n")
    plot(rows, args.out / "memory.png")
    files = ", ".join(str(args.out / f"memory.{suffix}") for suffix in ("md", "json", "png"))
    print(f"\n{summary(rows)}\n\n{MEANING}\n\nwrote {files}")


def _peaks(args: Namespace) -> Iterator[tuple[str, str, nn.Module, Peak]]:
    """Name, file, model and peak of every row."""
    for filename in args.configs:
        stem = Path(filename).stem
        if Path(filename).suffix == ".yaml":
            yield from _recipe_peaks(args, Path(filename), stem)
            continue
        with failures_of(filename):
            cfg = cli.read_config(filename, args.cfg_options)
            batch_size = args.batch_size or (cfg.get("train_dataloader") or {}).get("batch_size")
            if not batch_size:
                raise CommandError(f"config {filename}: its train_dataloader has no batch_size; give --batch-size")
            size = args.image_size and tuple(args.image_size if len(args.image_size) == 2 else 2 * args.image_size)
            conditions = Conditions(batch_size, size, args.precision, args.optimizer, args.backbone)
            yield stem, filename, *simulate_config(cfg, conditions)


def _recipe_peaks(args: Namespace, config: Path, stem: str) -> Iterator[tuple[str, str, nn.Module, Peak]]:
    if not config.is_file():
        raise CommandError(f"config {config}: there is no such file")
    from .language_models.simulation import simulate_recipe  # fairseq is an extra

    for tokens in args.tokens:
        for variant in args.attention or [None]:
            with failures_of(str(config)):
                model, peak = simulate_recipe(
                    config, variant, tokens, args.batch_size or 1, args.words, args.precision
                )  # fmt: skip
            name = f"{stem}, {tokens}" + (f", {variant.text}" if variant else "")
            yield name, str(config), model, peak


def row_of(model: nn.Module, peak: Peak) -> dict:
    """Figures of a model: the number of weights, and bytes by category, by stage and by kind of layer.

    Args:
        model: the model.
        peak: its peak.
    """
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    return dict(
        weights=count_parameters(model), peak=peak.size, **peak.by_category(),
        stages=peak.activations(stage_of), kinds=peak.activations(lambda name: kinds[name]),
    )  # fmt: skip


def stage_of(module: str) -> str:
    """The stage that a module belongs to: its name up to the first number, or its first part.

    Args:
        module: name of the module.
    """
    return re.match(r"(?:[^.]*?\.)*?\d+(?=\.|$)|[^.]*", module).group() or "the model itself"


def summary(rows: dict[str, dict]) -> str:
    """The table of all models.

    Args:
        rows: by name.
    """
    first = next(iter(rows.values()))["peak"]
    lines = [["model", "weights, M", *CATEGORIES, "peak", "ratio"]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for name, row in rows.items():
        sizes = (f"{row[category] / GIB:.2f}" for category in (*CATEGORIES, "peak"))
        lines.append([name, f"{row['weights'] / 1e6:.1f}", *sizes, f"{row['peak'] / first:.2f}"])
    return table(lines)


def details(row: dict) -> str:
    """Activations of a model, by stage and by kind of layer.

    Args:
        row: its figures.
    """
    parts = []
    for title, sizes in (("stage", row["stages"]), ("kind of layer", row["kinds"])):
        lines = [[title, "activations, GiB"], ["---", "---:"]]
        lines += [[name, f"{size / GIB:.2f}"] for name, size in sizes.items() if size >= 0.005 * row["peak"]]
        parts.append(table(lines))
    return "\n\n".join(parts)


def plot(rows: dict[str, dict], path: Path) -> None:
    """Draw what the peaks are made of: categories, and kinds of layers.

    Args:
        rows: by name.
        path: where to.
    """
    figure = Figure(figsize=(13, 2.4 + 0.4 * len(rows)), layout="constrained")
    colors = colormaps["tab20"].colors
    kinds = list(dict.fromkeys(kind for row in rows.values() for kind in list(row["kinds"])[:7]))
    parts = (
        ("peak of a step, GiB", CATEGORIES, lambda row, key: row[key]),
        ("activations by kind of layer, GiB", kinds, lambda row, key: row["kinds"].get(key, 0)),
    )
    for axis, (title, keys, size) in zip(figure.subplots(1, 2), parts, strict=True):
        left = [0.0] * len(rows)
        for i, key in enumerate(keys):
            sizes = [size(row, key) / GIB for row in rows.values()]
            axis.barh(range(len(rows)), sizes, left=left, label=key, color=colors[i % len(colors)])
            left = [a + b for a, b in zip(left, sizes, strict=True)]
        axis.set(title=title, yticks=range(len(rows)))
        axis.set_yticklabels(rows if axis.get_subplotspec().is_first_col() else [])
        axis.invert_yaxis()
        axis.legend(fontsize="small", ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    figure.savefig(path, dpi=110)
