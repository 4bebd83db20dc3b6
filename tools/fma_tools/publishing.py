"""Checkpoints as they are published: without what only resuming needs, and without paths of a machine."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from fma_kernels import __version__

from .command import CommandError


def publish(checkpoint: Path, name: str, out: Path) -> Path:
    """Write the weights of a checkpoint of mmengine or fairseq as a file of their own.

    Args:
        checkpoint: the checkpoint.
        name: name of the model.
        out: folder to write to.

    Returns:
        The file, ``NAME-HASH`` and the checkpoint's suffix, with the first eight digits of its SHA-256.

    Raises:
        CommandError: there is no checkpoint, or it is neither mmengine's nor fairseq's.
    """
    if not checkpoint.is_file():
        raise CommandError(f"checkpoint: {checkpoint}, expected a file")
    state = torch.load(checkpoint, map_location="cpu", weights_only=False)
    if {"state_dict", "meta"} <= state.keys():
        kept = _of_mmengine(state)
    elif {"model", "cfg"} <= state.keys():
        kept = _of_fairseq(state)
    else:
        raise CommandError(f"checkpoint: {checkpoint}, expected one of mmengine or fairseq")
    out.mkdir(parents=True, exist_ok=True)
    partial = out / f".{name}.partial"
    torch.save(kept, partial)
    target = out / f"{name}-{hashlib.sha256(partial.read_bytes()).hexdigest()[:8]}{checkpoint.suffix}"
    os.replace(partial, target)
    return target


def _of_mmengine(state: dict) -> dict:
    meta = {key: state["meta"][key] for key in ("epoch", "iter", "seed", "dataset_meta") if key in state["meta"]}
    return dict(state_dict=state["state_dict"], meta=meta | dict(version=__version__))


def _of_fairseq(state: dict) -> dict:
    history = state["optimizer_history"][-1:]
    kept = dict(args=None, cfg=_without_paths(state["cfg"]), model=state["model"], extra_state={})
    return kept | dict(last_optimizer_state=None, optimizer_history=history, version=__version__)


def _without_paths(value: Any) -> Any:
    """A configuration with an empty text in place of every absolute path."""
    if isinstance(value, dict):
        return {key: _without_paths(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_paths(part) for part in value]
    return "" if isinstance(value, str) and Path(value).is_absolute() else value
