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
from .recipes import MALLOC, Variant, plugin, training_command

CHECKPOINT = "checkpoints/checkpoint_last.pt"


@dataclass(frozen=True)
class Settings:
    """Settings of a comparison.

    Attributes:
        config: the recipe.
        data: folder that ``fairseq-preprocess`` wrote.
        attention: the attentions to compare; ratios are to the first.
        context: tokens per sample.
        out: folder of trainings and results.
        name: name of the files of results.
        split: split to evaluate on.
        samples: samples to evaluate on.
        batch: samples of a timed step.
        rounds: rounds of timing.
        jobs: trainings at a time.
        threads: threads of each training on a CPU.
        set: changes of the recipe, KEY=VALUE.
    """

    config: Path
    data: Path
    attention: list[Variant]
    context: int
    out: Path
    name: str = "comparison"
    split: str = "valid"
    samples: int = 64
    batch: int = 4
    rounds: int = 5
    jobs: int = 1
    threads: int = 1
    set: tuple[str, ...] = ()

    @property
    def folders(self) -> dict[str, Path]:
        """Folders of the trainings, by the texts of the attentions."""
        return {variant.text: self.out / f"{variant.folder}_{self.context}" for variant in self.attention}


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
    folders = settings.folders
    commands = [
        training_command(settings.config, settings.data, folders[v.text], v, settings.context, settings.set)
        for v in settings.attention
    ]
    with ThreadPoolExecutor(settings.jobs) as pool:
        list(pool.map(train, commands, folders.values(), [settings.threads] * len(commands)))
    rows = measure(folders, settings)

    device = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    conditions = f"{settings.config.stem}, context {settings.context}, {rows[0]['updates']} updates"
    title = f"{conditions}; {device}, fma-mm {__version__}"
    text = f"{title}\n\n{table(rows, masked='masked' in settings.config.stem)}\n"
    print(text)
    about = dict(title=title, torch=torch.__version__, command=shlex.join(command), rows=rows)
    (settings.out / f"{settings.name}.json").write_text(json.dumps(about, indent=4) + "\n")
    (settings.out / f"{settings.name}.md").write_text(text)
    plot(rows, settings.out / f"{settings.name}.png", title)


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


def measure(variants: dict[str, Path], settings: Settings) -> list[dict]:
    """Evaluate and time trained models.

    Args:
        variants: folders of the trainings, by the names of the variants.
        settings: the settings.

    Returns:
        A row for each variant.
    """
    from .costs import Step, median_times  # they import fairseq, which plugin() has looked for
    from .evaluation import evaluate
    from .loading import load

    logging.getLogger().setLevel(logging.WARNING)  # fairseq turns every library's messages on
    torch.set_num_threads(settings.jobs * settings.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found, steps, memory = {}, {}, {}
    for name, folder in variants.items():
        trained = load(folder / CHECKPOINT, plugin(), settings.data.resolve(), settings.split, settings.context)
        found[name] = evaluate(trained, settings.split, settings.context, settings.samples)
        steps[name] = Step(trained, settings.split, settings.batch, device)  # after that: a step changes the model
        memory[name] = steps[name].peak_mib()
    times = median_times(steps, settings.rounds)
    return [
        dict(name=name, **found[name], step_ms=times[name], step_mib=memory[name], context=settings.context)
        for name in variants
    ]


def table(rows: list[dict], masked: bool) -> str:
    """The results as a table in Markdown."""
    unit = "perplexity" if masked else "bits per character"
    lines = [["attention", "parameters", unit, "last quarter", "ms per step", "ratio", "MiB per step"], ["---"] * 7]
    for row in rows:
        bits = [row["bits"], row["bits_by_quarter"][-1]]
        shown = [f"{2**x:.1f}" if masked else f"{x:.3f}" for x in bits]
        times = [f"{row['step_ms']:.0f}", f"{row['step_ms'] / rows[0]['step_ms']:.2f}"]
        lines.append([row["name"], f"{row['parameters']:,}", *shown, *times, f"{row['step_mib']:.0f}"])
    return markdown.table(lines)


def plot(rows: list[dict], path: Path, title: str) -> None:
    """Bits against time and memory of a step."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
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
