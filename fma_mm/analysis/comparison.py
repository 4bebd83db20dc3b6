"""Comparison of models of several configs: parameters, FLOPs, memory and time of a training step, and training."""

from __future__ import annotations

import json
import numbers
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.runner import Runner

from fma_kernels.measure import milliseconds, take_turns

from .. import cli
from ..cli import CommandError
from .flops import count_flops, count_parameters
from .step import TrainingStep, first_batch, training_memory

MEANING = """\
FLOPs are multiply-adds of a forward pass over one training image. Step memory is the peak of the tensors that PyTorch
allocates from the building of the model to the end of its second training step. Step time is the median over rounds in
which the models take turns. Ratios are to the first model."""
WARM_UP = 2  # steps of each model before time counts


@dataclass
class ConfigRow:
    """Costs and training of one config."""

    config: str
    parameters: int
    flops: int
    input_shape: list[int]
    memory_mib: float
    step_ms: list[float]
    metrics: dict[str, float] = field(default_factory=dict)
    loss: list[float] = field(default_factory=list)  # after each iteration
    seconds: list[float] = field(default_factory=list)  # of training, until then


@contextmanager
def failures_of(filename: str) -> Iterator[None]:
    """Tell about any error in one line, with the config's name.

    Args:
        filename: the config's.

    Raises:
        CommandError: there was an error.
    """
    try:
        yield
    except CommandError:
        raise
    except Exception as error:  # whatever its parts say
        raise CommandError(f"config {filename}: {type(error).__name__}: {' '.join(str(error).split())}") from error


class Results:
    """The rows, kept in a file that is brought up to date as they come.

    Args:
        folder: where the file is or will be.
        settings: the conditions that the rows depend on.
        command: the arguments, for the record.
        resume: take the rows that are there.

    Raises:
        CommandError: the folder holds something else, or results of other settings.
    """

    def __init__(self, folder: Path, settings: dict, command: list[str], resume: bool):
        self.path, self.settings, self.command, self.rows = folder / "comparison.json", settings, command, {}
        if resume and self.path.is_file():
            earlier = json.loads(self.path.read_text())
            for key, value in json.loads(json.dumps(settings)).items():
                if earlier["settings"].get(key) != value:
                    raise CommandError(f"--resume: the comparison in {folder} has another {key}")
            self.rows = {name: ConfigRow(**row) for name, row in earlier["rows"].items()}
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            hint = "" if resume else ", or --resume to go on with a comparison"
            raise CommandError(f"--out {folder}: it is there and not empty; give another folder{hint}")

    def save(self) -> None:
        """Write the file; at every moment a complete one is there."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = {name: asdict(row) for name, row in self.rows.items()}
        content = dict(command=" ".join(self.command), settings=self.settings, rows=rows)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(self.path)


def measure_costs(configs: dict[str, Config], *, rounds: int, seed: int, device: torch.device) -> dict[str, ConfigRow]:
    """Everything but the training.

    Args:
        configs: the configs.
        rounds: timed steps of each model.
        seed: seed of the batches.
        device: where the models run.

    Returns:
        The rows.
    """
    batches, memory, steps, costs = {}, {}, {}, {}
    for name, cfg in configs.items():
        with failures_of(cfg.filename):
            batches[name] = first_batch(cfg, seed)
            if not memory and device.type == "cuda":  # what CUDA's libraries take once is nobody's
                training_memory(cfg, batches[name], device)
            memory[name] = training_memory(cfg, batches[name], device)
    for name, cfg in configs.items():
        with failures_of(cfg.filename):
            step = steps[name] = TrainingStep(cfg, batches[name], device)
            inputs = step.inputs()
            flops = count_flops(step.model, inputs, mode="tensor")[""]
            costs[name] = dict(parameters=count_parameters(step.model), flops=flops, input_shape=list(inputs.shape[1:]))
    clocks = {name: partial(_time, configs[name], step, device) for name, step in steps.items()}
    times = take_turns(clocks, WARM_UP + rounds)
    return {
        name: ConfigRow(config=cfg.filename, memory_mib=memory[name], step_ms=times[name][WARM_UP:], **costs[name])
        for name, cfg in configs.items()
    }


def _time(cfg: Config, step: TrainingStep, device: torch.device) -> float:
    batch = step.prepare()
    with failures_of(cfg.filename):
        return milliseconds(partial(step.run, batch), device)


class Record(Hook):
    """Keeps the loss and the time of each iteration, and the metrics of the last validation."""

    def before_train(self, runner: Runner) -> None:
        """Start the clock.

        Args:
            runner: the runner.
        """
        self.losses, self.seconds, self.metrics, self.start = [], [], {}, time.perf_counter()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Keep the loss and the time.

        Args:
            runner: the runner.
            batch_idx: number of the iteration.
            data_batch: the batch.
            outputs: the losses of the step.
        """
        self.losses.append(torch.as_tensor(outputs["loss"]).detach())  # its value is not waited for
        self.seconds.append(time.perf_counter() - self.start)

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Keep the metrics that are numbers.

        Args:
            runner: the runner.
            metrics: the metrics.
        """
        self.metrics = {key: float(value) for key, value in metrics.items() if isinstance(value, numbers.Real)}


def train(cfg: Config, folder: Path, seed: int) -> Record:
    """Train a config, as tools/train.py does.

    Args:
        cfg: the config.
        folder: where logs and weights go.
        seed: the seed.

    Returns:
        What was recorded.
    """
    name = f"{folder.name}_{time.time_ns()}"  # mmengine's loggers and the like are global, by name
    cfg.work_dir, cfg.experiment_name, cfg.launcher, cfg.resume = str(folder), name, "none", False
    if cfg.get("visualizer"):
        cfg.visualizer.name = name
    cfg.randomness = ConfigDict(cfg.get("randomness") or {}, seed=seed)
    cli.enable_exact_resume(cfg)  # the same data for all, however many random numbers a model draws
    cfg.default_hooks.checkpoint = ConfigDict(
        type="AtomicCheckpointHook", by_epoch=False, interval=cfg.train_cfg.max_iters
    )
    cfg.log_processor = ConfigDict(cfg.get("log_processor") or {}, by_epoch=False)
    runner, record = cli.build_runner(cfg), Record()
    runner.register_hook(record)
    runner.train()
    return record


def table(rows: dict[str, ConfigRow]) -> str:
    """The rows as a Markdown table.

    Args:
        rows: the rows by name; times and memory relate to the first.
    """
    first = next(iter(rows.values()))
    metrics = list(dict.fromkeys(key for row in rows.values() for key in row.metrics))
    costs = ["parameters, M", "FLOPs, G", "step memory, MiB", "ratio", "step time, ms", "minimum", "ratio"]
    lines = [["config", *costs, *metrics]]
    for name, row in rows.items():
        median = statistics.median(row.step_ms)
        lines.append(
            [
                name,
                f"{row.parameters / 1e6:.2f}",
                f"{row.flops / 1e9:.3f}",
                f"{row.memory_mib:.0f}",
                f"{row.memory_mib / first.memory_mib:.2f}",
                f"{median:.1f}",
                f"{min(row.step_ms):.1f}",
                f"{median / statistics.median(first.step_ms):.2f}",
                *(f"{row.metrics[key]:.4g}" if key in row.metrics else "" for key in metrics),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    pad = [str.ljust, *[str.rjust] * (len(widths) - 1)]
    padded = [[align(cell, n) for align, cell, n in zip(pad, line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def describe(settings: dict) -> str:
    """The conditions in a line."""
    training = f"{settings['iterations']} iterations, " if settings["iterations"] else ""
    return f"{settings['device']}; {training}batch size {settings['batch_size']}, seed {settings['seed']}"


def smooth(values: list[float]) -> list[float]:
    """Means over a window of a fiftieth of the values, which ends at each of them."""
    window = max(1, len(values) // 50)
    return [statistics.fmean(values[max(0, i - window + 1) : i + 1]) for i in range(len(values))]


def plot(rows: dict[str, ConfigRow], title: str, path: Path) -> None:
    """Draw memory and time, and the loss if there is one.

    Args:
        rows: the rows by name.
        title: title of the picture.
        path: where to.
    """
    curves = any(row.loss for row in rows.values())
    figure = Figure(figsize=(14 if curves else 8, 4), layout="constrained")
    *loss_axes, memory, step = figure.subplots(1, 4 if curves else 2)
    colors = {name: f"C{i}" for i, name in enumerate(rows)}
    for name, row in rows.items():
        for axis, xs in zip(loss_axes, (range(1, len(row.loss) + 1), row.seconds), strict=False):
            axis.plot(xs, smooth(row.loss), color=colors[name], label=name)
    for axis, label in zip(loss_axes, ("iteration", "seconds"), strict=False):
        axis.set(xlabel=label, title="training loss")
        axis.grid(alpha=0.3)
    bars = {
        memory: ([row.memory_mib for row in rows.values()], "memory of a step, MiB"),
        step: ([statistics.median(row.step_ms) for row in rows.values()], "time of a step, ms"),
    }
    for axis, (values, label) in bars.items():
        axis.bar_label(axis.bar(range(len(rows)), values, color=colors.values(), label=list(rows)), fmt="%.4g")
        axis.set(xticks=[], title=label)
        axis.margins(y=0.1)
    figure.legend(*memory.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
