"""Tasks that need a part of the sequence far away: accuracies of models that differ in their attention alone."""

from __future__ import annotations

import json
import logging
import shlex
import statistics
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from fma_kernels import __version__
from fma_kernels.measure import device_name

from .. import markdown
from ..command import CommandError
from .comparison import CHECKPOINT, Settings, train
from .recipes import plugin
from .seeds import mean

#: Largest distances from a pair to its question, or lengths of a list, of the ranges that accuracies are given for.
LIMITS = (16, 32)


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of a model.

    Attributes:
        right, count: by range of distance (recall) or of length (ListOps).
    """

    right: list[int]
    count: list[int]

    @property
    def total(self) -> float:
        """Of all, from 0 to 1."""
        return sum(self.right) / sum(self.count)

    @property
    def by_range(self) -> list[float | None]:
        """Of each range, None where there is no sample."""
        return [right / count if count else None for right, count in zip(self.right, self.count, strict=True)]


def ranges() -> list[str]:
    """Names of the ranges of distance, or of length."""
    starts = [1, *(limit + 1 for limit in LIMITS)]
    return [*(f"{start}-{limit}" for start, limit in zip(starts, LIMITS, strict=False)), f"> {LIMITS[-1]}"]


@torch.no_grad()
def accuracy(checkpoint: Path, data: Path, split: str) -> Accuracy:
    """Share of samples whose most probable class, or answer, is right.

    Args:
        checkpoint: of a model of the task ``sentence_prediction`` or ``recall``.
        data: folder of the data.
        split: name of the split.
    """
    folder = plugin()
    from .loading import open_model  # it imports fairseq, which plugin() has looked for

    model, cfg, task, _ = open_model(checkpoint, folder, data)
    task.load_dataset(split)
    dataset, model = task.dataset(split), model.eval()
    recall = cfg.task._name == "recall"
    limits, size = torch.tensor(LIMITS), len(LIMITS) + 1
    right, count = torch.zeros(size, dtype=torch.long), torch.zeros(size, dtype=torch.long)
    for start in range(0, len(dataset), 32):
        batch = dataset.collater([dataset[i] for i in range(start, min(start + 32, len(dataset)))])
        if recall:
            target = batch["target"]
            asked = target != task.target_dictionary.pad()
            hits = (model(**batch["net_input"])[0].argmax(-1) == target)[asked]
            spans = distances(batch["net_input"]["src_tokens"], asked)
        else:
            logits, _ = model(**batch["net_input"], classification_head_name=cfg.task.classification_head_name)
            hits = logits.argmax(-1) == batch["target"].view(-1)
            spans = lengths(batch["net_input"]["src_tokens"], task.source_dictionary.nspecial)
        places = torch.bucketize(spans, limits)
        right += torch.bincount(places[hits], minlength=size)
        count += torch.bincount(places, minlength=size)
    return Accuracy(right.tolist(), count.tolist())


def distances(tokens: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """Tokens from each key that is asked for back to where it stood first, in the order of ``asked``.

    Args:
        tokens: (B, N) token numbers.
        asked: (B, N) bool, True at the keys that are asked for.
    """
    rows, places = asked.nonzero(as_tuple=True)
    same = tokens[rows] == tokens[rows, places][:, None]
    return places - same.int().argmax(1)


def lengths(tokens: torch.Tensor, special: int) -> torch.Tensor:
    """Tokens of each sample, without padding and the special ones around it.

    Args:
        tokens: (B, N) token numbers.
        special: how many special tokens there are; their numbers are the lowest.
    """
    return (tokens >= special).sum(1)


def compare(settings: Settings, command: list[str]) -> None:
    """Train, test, print the table, and write the results.

    Args:
        settings: the settings; those of the timing are not read.
        command: words of the command, for the record.

    Raises:
        CommandError: a number is too small, a file is missing, or a training failed.
    """
    for name in ("jobs", "threads"):
        if getattr(settings, name) < 1:
            raise CommandError(f"--{name}: {getattr(settings, name)}, expected an integer >= 1")
    trainings = settings.trainings
    with ThreadPoolExecutor(settings.jobs) as pool:
        list(pool.map(train, trainings.values(), trainings, [settings.threads] * len(trainings)))
    logging.getLogger().setLevel(logging.WARNING)
    torch.set_num_threads(settings.jobs * settings.threads)
    rows = []
    for name, folders in settings.folders.items():
        found = [accuracy(folder / CHECKPOINT, settings.data.resolve(), settings.split) for folder in folders]
        by_range = [mean(values) for values in zip(*(one.by_range for one in found), strict=True)]
        rows.append(dict(name=name, accuracy=[one.total for one in found], by_range=by_range, count=found[0].count))
    device = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    title = f"{settings.config.stem}, {settings.data.name}, {settings.split}; {device}, fma-mm {__version__}"
    text = f"{title}\n\n{table(rows)}\n"
    print(text)
    about = dict(title=title, torch=torch.__version__, command=shlex.join(command), rows=rows)
    (settings.out / f"{settings.name}.json").write_text(json.dumps(about, indent=4) + "\n")
    (settings.out / f"{settings.name}.md").write_text(text)


def table(rows: list[dict]) -> str:
    """The results as a table in Markdown; of several seeds the mean, and the least and the most of them."""
    far = ranges() if sum(count > 0 for count in rows[0]["count"]) > 1 else []
    lines = [["attention", "accuracy, %", *far], ["---"] * (2 + len(far))]
    for row in rows:
        values = [100 * value for value in row["accuracy"]]
        spread = f" ({min(values):.1f}-{max(values):.1f})" if len(values) > 1 else ""
        parts = [markdown.number(None if part is None else 100 * part, 1) for part in row["by_range"]] if far else []
        lines.append([row["name"], f"{statistics.fmean(values):.1f}{spread}", *parts])
    return markdown.table(lines)


def settings_from(args: Namespace) -> Settings:
    """Settings of the command line, which has no options of timing and no context."""
    known = {field.name for field in fields(Settings)}
    return Settings(**{key: value for key, value in vars(args).items() if key in known}, context=None)
