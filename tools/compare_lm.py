#!/usr/bin/env python
"""Train language models that differ in their attention alone, and say how well they predict and what they cost.

    python tools/compare_lm.py configs/lm/stdlib.yaml --data data/stdlib/bin --context 1024 \\
        --attention full local linear h-transformer fma fma:aggregation=direct fma:aggregation=mean fma-linear
    python tools/compare_lm.py configs/lm/stdlib.yaml --data data/stdlib/bin --context 1024 --name cell_rank \\
        --attention fma:cell={16,32,64},rank={1,2,4}

All models have the same recipe, so as many tokens in the same order from the same seed; it and the meaning of
ATTENTION are those of train_lm.py. Trainings that ended before are not repeated.

* Bits are the mean negative log-likelihood of a token to base 2, over samples that are spread evenly over the
  validation split: bits per character for a corpus of bytes. "last quarter" counts only the tokens whose context is
  longest. For a masked model they are of masked tokens, and perplexity is 2 to their power.
* A step is a forward and backward pass over one batch and an update by Adam. Its time is the median over rounds in
  which the models take turns, its memory the peak of what it allocates beyond weights and the optimizer's state.

Prints a table, and writes NAME.json, NAME.md and NAME.png to --out.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent / "language_models")]

# The profiler that counts memory reports every start otherwise.
os.environ.update({"KINETO_LOG_LEVEL": "99", "TORCH_CPP_LOG_LEVEL": "ERROR"})

from train_lm import MALLOC, RecipeError, Variant, plugin, training_command

CHECKPOINT = "checkpoints/checkpoint_last.pt"


def train(command: list[str], out: Path, threads: int) -> None:
    """Train a model, unless that was done before.

    Args:
        command: the command that trains.
        out: its folder; the log lies there, and a file with the command once it has ended.
        threads: threads of the process.

    Raises:
        RecipeError: the training failed, or the folder has another one.
    """
    done = out / "command.json"
    if done.is_file():
        if json.loads(done.read_text()) != command:
            raise RecipeError(f"{out}: has a training by another command; choose another --out")
        return
    out.mkdir(parents=True, exist_ok=True)
    environment = {**MALLOC, **os.environ, "OMP_NUM_THREADS": str(threads)}
    with (out / "log.txt").open("w") as log:
        code = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode
    if code:
        raise RecipeError(f"{out / 'log.txt'}: the training ended with status {code}")
    done.write_text(json.dumps(command))


def measure(variants: dict[str, Path], args: argparse.Namespace) -> list[dict]:
    """Evaluate and time trained models.

    Args:
        variants: folders of the trainings, by the names of the variants.
        args: the command line.

    Returns:
        A row for each variant.
    """
    import torch
    from costs import Step, median_times
    from evaluation import evaluate
    from loading import load

    logging.getLogger().setLevel(logging.WARNING)  # fairseq turns every library's messages on
    torch.set_num_threads(args.jobs * args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found, steps, memory = {}, {}, {}
    for name, folder in variants.items():
        trained = load(folder / CHECKPOINT, plugin(), args.data.resolve(), args.split, args.context)
        found[name] = evaluate(trained, args.split, args.context, args.samples)
        steps[name] = Step(trained, args.split, args.batch, device)  # after that: a step changes the model
        memory[name] = steps[name].peak_mib()
    times = median_times(steps, args.rounds)
    return [
        dict(name=name, **found[name], step_ms=times[name], step_mib=memory[name], context=args.context)
        for name in variants
    ]


def table(rows: list[dict], masked: bool) -> str:
    """The results as a table in Markdown."""
    unit = "perplexity" if masked else "bits per character"
    lines = [
        f"| attention | parameters | {unit} | last quarter | ms per step | ratio | MiB per step |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        bits = [row["bits"], row["bits_by_quarter"][-1]]
        shown = [f"{2**x:.1f}" if masked else f"{x:.3f}" for x in bits]
        lines.append(
            f"| {row['name']} | {row['parameters']:,} | {shown[0]} | {shown[1]} | {row['step_ms']:.0f} | "
            f"{row['step_ms'] / rows[0]['step_ms']:.2f} | {row['step_mib']:.0f} |"
        )
    return "\n".join(lines)


def plot(rows: list[dict], path: Path, title: str) -> None:
    """Bits against time and memory of a step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, key, label in zip(
        figure.subplots(1, 2), ("step_ms", "step_mib"), ("ms per training step", "MiB per training step"), strict=True
    ):
        for row in rows:
            axes.scatter(row[key], row["bits"], color="tab:red" if row["name"].startswith("fma") else "tab:blue")
            axes.annotate(row["name"], (row[key], row["bits"]), (4, 4), textcoords="offset points", fontsize=7)
        axes.set(xlabel=label, ylabel="bits per token")
        axes.margins(x=0.2)
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="recipe, a file of configs/lm")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="what fairseq-preprocess wrote")
    parser.add_argument(
        "--attention", nargs="+", type=Variant.parse, required=True, metavar="ATTENTION",
        help="what to compare, written as for train_lm.py; ratios are to the first",
    )  # fmt: skip
    parser.add_argument("--context", type=int, required=True, metavar="TOKENS", help="tokens per sample")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/compare_lm"), metavar="DIR", help="%(default)s")
    parser.add_argument("--name", default="comparison", help="of the files that are written (%(default)s)")
    parser.add_argument("--split", default="valid", help="split to evaluate on (%(default)s)")
    parser.add_argument("--samples", type=int, default=64, help="samples to evaluate on (%(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="samples of a timed step (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of timing (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each training on a CPU (%(default)s)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes of the recipe")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: the arguments; those of the process when None.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        for name in ("context", "samples", "batch", "rounds", "jobs", "threads"):
            if getattr(args, name) < 1:
                raise RecipeError(f"--{name}: {getattr(args, name)}, expected an integer >= 1")
        folders = {v.text: args.out / f"{v.folder}_{args.context}" for v in args.attention}
        commands = [
            training_command(args.config, args.data, folders[v.text], v, args.context, args.set) for v in args.attention
        ]
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(train, commands, folders.values(), [args.threads] * len(commands)))
    except RecipeError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    rows = measure(folders, args)

    import torch

    from fma_kernels import __version__
    from fma_kernels.measure import device_name

    masked = "masked" in args.config.stem
    device = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    title = f"{args.config.stem}, context {args.context}, {rows[0]['updates']} updates; {device}, fma-mm {__version__}"
    text = f"{title}\n\n{table(rows, masked)}\n"
    print(text)
    words = ["python", "tools/compare_lm.py", *(sys.argv[1:] if argv is None else argv)]
    about = dict(title=title, torch=torch.__version__, command=shlex.join(words), rows=rows)
    (args.out / f"{args.name}.json").write_text(json.dumps(about, indent=4) + "\n")
    (args.out / f"{args.name}.md").write_text(text)
    plot(rows, args.out / f"{args.name}.png", title)


if __name__ == "__main__":
    main()
