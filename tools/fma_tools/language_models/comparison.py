"""Language models that differ in their attention alone: training, evaluation, costs, and the report."""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure

from fma_kernels import __version__
from fma_kernels.measure import device_name

from .. import markdown
from ..command import CommandError
from .curves import ahead_from, mean_curve, read_curve
from .recipes import MALLOC, Variant, plugin, training_command
from .repetition import RANGES
from .seeds import over_seeds

CHECKPOINT = "checkpoints/checkpoint_last.pt"


@dataclass(frozen=True)
class Settings:
    """Settings of a comparison.

    Attributes:
        config: the recipe.
        data: folder that ``fairseq-preprocess`` wrote.
        attention: the attentions to compare; ratios are to the first.
        context: tokens per sample; None where the recipe says it.
        out: folder of trainings and results.
        name: name of the files of results.
        split: split to evaluate on.
        samples: samples to evaluate on.
        batch: samples of a timed step.
        rounds: rounds of timing.
        jobs: trainings at a time.
        threads: threads of each training on a CPU.
        seeds: seeds to train each with; that of the recipe alone if there are none.
        set: changes of the recipe, KEY=VALUE.
    """

    config: Path
    data: Path
    attention: list[Variant]
    context: int | None
    out: Path
    name: str = "comparison"
    split: str = "valid"
    samples: int = 64
    batch: int = 4
    rounds: int = 5
    jobs: int = 1
    threads: int = 1
    seeds: tuple[int, ...] = ()
    set: tuple[str, ...] = ()

    @property
    def folders(self) -> dict[str, list[Path]]:
        """Folders of the trainings by the texts of the attentions, one for each seed."""
        places = [self.out / f"seed{seed}" for seed in self.seeds] or [self.out]
        behind = "" if self.context is None else f"_{self.context}"
        names = {variant.text: f"{variant.folder}{behind}" for variant in self.attention}
        return {text: [place / name for place in places] for text, name in names.items()}

    @property
    def trainings(self) -> dict[Path, list[str]]:
        """Commands that train, by their folders, seed after seed."""
        changes = [[*self.set, f"common.seed={seed}"] for seed in self.seeds] or [list(self.set)]
        return {
            self.folders[variant.text][i]: training_command(
                self.config, self.data, self.folders[variant.text][i], variant, self.context, change
            )
            for i, change in enumerate(changes)
            for variant in self.attention
        }


def compare(settings: Settings, command: list[str]) -> None:
    """Train, measure, print the table, and write the results.

    Args:
        settings: the settings.
        command: words of the command, for the record.

    Raises:
        CommandError: a number is too small, a file is missing, or a training failed.
    """
    for name in ("context", "samples", "batch", "rounds", "jobs", "threads"):
        if getattr(settings, name) < 1:
            raise CommandError(f"--{name}: {getattr(settings, name)}, expected an integer >= 1")
    trainings = settings.trainings
    with ThreadPoolExecutor(settings.jobs) as pool:
        list(pool.map(train, trainings.values(), trainings, [settings.threads] * len(trainings)))
    rows = measure(settings.folders, settings)

    device = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    conditions = f"{settings.config.stem}, context {settings.context}, {rows[0]['updates']} updates"
    title = f"{conditions}; {device}, fma-mm {__version__}"
    masked = "masked" in settings.config.stem
    text = f"{title}\n\n{table(rows, masked)}\n" + ("" if masked else f"\n{distance_table(rows)}\n")
    print(text)
    about = dict(title=title, torch=torch.__version__, command=shlex.join(command), rows=rows)
    (settings.out / f"{settings.name}.json").write_text(json.dumps(about, indent=4) + "\n")
    (settings.out / f"{settings.name}.md").write_text(text)
    plot(rows, title).savefig(settings.out / f"{settings.name}.png", dpi=110)


def train(command: list[str], out: Path, threads: int) -> None:
    """Train a model, unless that was done before.

    Args:
        command: the command that trains.
        out: its folder; the log lies there, and a file with the command once it has ended.
        threads: threads of the process.

    Raises:
        CommandError: the training failed, or the folder has another one.
    """
    done = out / "command.json"
    if done.is_file():
        if json.loads(done.read_text()) != command:
            raise CommandError(f"{out}: has a training by another command; choose another --out")
        return
    out.mkdir(parents=True, exist_ok=True)
    environment = {**MALLOC, **os.environ, "OMP_NUM_THREADS": str(threads)}
    with (out / "log.txt").open("w") as log:
        code = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode
    if code:
        raise CommandError(f"{out / 'log.txt'}: the training ended with status {code}")
    done.write_text(json.dumps(command))


def measure(variants: dict[str, list[Path]], settings: Settings) -> list[dict]:
    """Evaluate and time trained models.

    Args:
        variants: folders of the trainings, one for each seed, by the names of the variants.
        settings: the settings.

    Returns:
        A row for each variant: means over the seeds, and the bits of each.
    """
    from .costs import Step, median_times  # they import fairseq, which plugin() has looked for
    from .evaluation import evaluate
    from .loading import load

    logging.getLogger().setLevel(logging.WARNING)  # fairseq turns every library's messages on
    torch.set_num_threads(settings.jobs * settings.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows, steps = {}, {}
    for name, folders in variants.items():
        found = []
        for folder in folders:
            trained = load(folder / CHECKPOINT, plugin(), settings.data.resolve(), settings.split, settings.context)
            found.append(evaluate(trained, settings.split, settings.context, settings.samples))
        rows[name] = dict(name=name, context=settings.context, **over_seeds(found))
        rows[name]["curve"] = mean_curve([read_curve(folder / "log.txt") for folder in folders])
        rows[name]["step_tokens"] = settings.batch * settings.context
        steps[name] = Step(trained, settings.split, settings.batch, device)  # after that: a step changes the model
        rows[name]["step_mib"] = steps[name].peak_mib()
    for name, time in median_times(steps, settings.rounds).items():
        rows[name]["step_ms"] = time
    return list(rows.values())


def table(rows: list[dict], masked: bool) -> str:
    """The results as a table in Markdown; of several seeds the mean, and the least and the most of them."""

    def shown(bits: float) -> str:
        return f"{2**bits:.1f}" if masked else f"{bits:.3f}"

    unit = "perplexity" if masked else "bits per character"
    lines = [["attention", "parameters", unit, "last quarter", "ms per step", "ratio", "MiB per step"], ["---"] * 7]
    for row in rows:
        seeds = row.get("bits_by_seed", [])  # results of earlier versions have none
        spread = f" ({shown(min(seeds))}-{shown(max(seeds))})" if len(seeds) > 1 else ""
        bits = [shown(row["bits"]) + spread, shown(row["bits_by_quarter"][-1])]
        times = [f"{row['step_ms']:.0f}", f"{row['step_ms'] / rows[0]['step_ms']:.2f}"]
        lines.append([row["name"], f"{row['parameters']:,}", *bits, *times, f"{row['step_mib']:.0f}"])
    return markdown.table(lines)


def distance_table(rows: list[dict]) -> str:
    """Bits by place in the context, and by how far back the text of a token stood last, as a table in Markdown."""
    quarters = [f"quarter {i + 1}" for i in range(len(rows[0]["bits_by_quarter"]))]
    lines = [["attention", *quarters, *RANGES, f"ahead of {rows[0]['name']} from"]]
    lines.append(["---"] * len(lines[0]))
    counts = rows[0]["tokens_by_repetition"]
    lines.append(["tokens", *[""] * len(quarters), *(f"{count / sum(counts):.0%}" for count in counts), ""])
    for row in rows:
        bits = [markdown.number(bits, 3) for bits in row["bits_by_quarter"] + row["bits_by_repetition"]]
        start = ahead_from(row["curve"], rows[0]["curve"])
        lines.append([row["name"], *bits, "-" if start is None else f"{start / 1e6:.1f} M tokens"])
    return markdown.table(lines)


def plot(rows: list[dict], title: str) -> Figure:
    """Bits against tokens and seconds of training, and against time and memory of a step.

    The curves begin at the bits that the slowest has after a tenth of the training: above, they fall as one.
    """
    figure = Figure(figsize=(11, 8.5), layout="constrained")
    (by_tokens, by_time), costs = figure.subplots(2, 2)
    for row in rows:
        style = "-" if row["name"].startswith("fma") else "--"
        if row["curve"]:
            tokens, bits = zip(*row["curve"], strict=True)
            seconds = [n / row["step_tokens"] * row["step_ms"] / 1e3 for n in tokens]
            by_tokens.plot([n / 1e6 for n in tokens], bits, style, label=row["name"])
            by_time.plot(seconds, bits, style, label=row["name"])
    by_tokens.set(xlabel="tokens of training, millions", ylabel="bits per token, training")
    by_time.set(xlabel="seconds of training, by the time of a step", ylabel="bits per token, training")
    late = [bits for row in rows for tokens, bits in row["curve"] if 10 * tokens >= row["curve"][-1][0]]
    if late:
        by_tokens.legend(fontsize=7)
        for axes in (by_tokens, by_time):
            axes.set_ylim(top=max(late))
    for axes, key, label in zip(costs, ("step_ms", "step_mib"), ("ms per step", "MiB per step"), strict=True):
        for row in rows:
            axes.scatter(row[key], row["bits"], color="tab:red" if row["name"].startswith("fma") else "tab:blue")
            axes.annotate(
                row["name"], (row[key], row["bits"]), (0, 5), textcoords="offset points", fontsize=7, ha="center"
            )
        axes.set(xlabel=label, ylabel="bits per token, evaluation")
        axes.margins(x=0.2)
    for axes in (by_tokens, by_time, *costs):
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    return figure
