"""A trained model, and its task with samples of another length."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from fairseq import checkpoint_utils, tasks, utils
from fairseq.models import BaseFairseqModel
from fairseq.tasks import FairseqTask
from omegaconf import DictConfig


def load(
    checkpoint: Path, plugin: Path, data: Path, split: str, context: int
) -> tuple[BaseFairseqModel, DictConfig, FairseqTask]:
    """Open a checkpoint.

    Args:
        checkpoint: of the model.
        plugin: folder of the fairseq plugin.
        data: folder that ``fairseq-preprocess`` wrote.
        split: name of the split that the task loads.
        context: tokens per sample of the task; the model stays as it was trained.

    Returns:
        The model, the configuration that it was trained with, and the task.
    """
    utils.import_user_module(Namespace(user_dir=str(plugin)))
    cfg = checkpoint_utils.load_checkpoint_to_cpu(str(checkpoint))["cfg"]
    cfg.task.data, cfg.task.tokens_per_sample = str(data), context
    task = tasks.setup_task(cfg.task)
    (model,), cfg, _ = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], task=task)
    task.load_dataset(split)
    return model, cfg, task
