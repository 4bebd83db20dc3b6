"""Models out of checkpoints of fairseq, with their tasks."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils, tasks, utils
from fairseq.models import BaseFairseqModel
from fairseq.tasks import FairseqTask
from omegaconf import DictConfig


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
        model: the model.
        cfg: the configuration that it was trained with.
        task: its task, with one split loaded.
        updates: updates that it was trained for.
    """

    model: BaseFairseqModel
    cfg: DictConfig
    task: FairseqTask
    updates: int


def open_model(
    checkpoint: Path, plugin: Path, data: Path, **settings: Any
) -> tuple[BaseFairseqModel, DictConfig, FairseqTask, dict[str, Any]]:
    """Open a checkpoint.

    Args:
        checkpoint: of the model.
        plugin: folder of the fairseq plugin.
        data: folder of the task's data and dictionary.
        settings: other changes of the task.

    Returns:
        The model as it was trained, the configuration that it was trained with, its task, and the checkpoint's state.
    """
    utils.import_user_module(Namespace(user_dir=str(plugin)))
    state = checkpoint_utils.load_checkpoint_to_cpu(str(checkpoint))
    for name, value in dict(data=str(data), **settings).items():
        state["cfg"].task[name] = value
    task = tasks.setup_task(state["cfg"].task)
    (model,), cfg, _ = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], task=task, state=state)
    return model, cfg, task, state


def load(checkpoint: Path, plugin: Path, data: Path, split: str, context: int) -> Trained:
    """Open a checkpoint with data for samples of another length.

    Args:
        checkpoint: of the model.
        plugin: folder of the fairseq plugin.
        data: folder that ``fairseq-preprocess`` wrote.
        split: name of the split that the task loads.
        context: tokens per sample of the task; the model stays as it was trained.
    """
    model, cfg, task, state = open_model(checkpoint, plugin, data, tokens_per_sample=context)
    task.load_dataset(split)
    return Trained(model, cfg, task, state["optimizer_history"][-1]["num_updates"])
