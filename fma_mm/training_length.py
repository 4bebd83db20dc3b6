"""A training of a given number of iterations instead of the length that a config states."""

from __future__ import annotations

import math

from mmengine.config import Config, ConfigDict

from fma_kernels.checks import require

from . import cli

#: Schedules that are given by where they begin and end, and by what happens in between.
SCALABLE = ("ConstantLR", "CosineAnnealingLR", "LinearLR", "MultiStepLR", "PolyLR", "StepLR")
#: Their arguments that are lengths or points in time.
LENGTHS = ("begin", "end", "T_max", "step_size", "milestones")


def train_for(cfg: Config, iterations: int) -> None:
    """Let a config train for a number of iterations and validate once, at the end.

    The schedule of the learning rate keeps its shape: every length in it is multiplied by ``iterations`` over the
    length of the config's own training, in iterations or epochs as the config counts. So a rate that the config
    changes epoch by epoch changes iteration by iteration. A part that shrinks to less than two iterations is left out:
    a linear warm-up would not get beyond its start.

    Args:
        cfg: the config, changed in place.
        iterations: number of iterations, at least 1.

    Raises:
        ValueError: the config does not say how long it trains, or a schedule cannot be scaled; the message names it.
    """
    require(isinstance(iterations, int) and iterations >= 1, "iterations", iterations, "an integer >= 1")
    own = {unit: cfg.train_cfg.get(unit) for unit in ("max_iters", "max_epochs")}
    length = own["max_iters"] or own["max_epochs"]
    require(length, "train_cfg", dict(cfg.train_cfg), "max_iters or max_epochs")
    schedulers = cfg.get("param_scheduler") or []
    schedulers = [schedulers] if isinstance(schedulers, dict) else schedulers
    by_epoch = own["max_iters"] is None
    scaled = [_scaled(scheduler, by_epoch, iterations / length) for scheduler in schedulers]
    cfg.param_scheduler = [s for s in scaled if s.get("end", math.inf) - s.get("begin", 0) > 1]
    cfg.train_cfg = ConfigDict(type="IterBasedTrainLoop", max_iters=iterations, val_interval=iterations)


def _scaled(scheduler: dict, by_epoch: bool, factor: float) -> ConfigDict:
    name = cli.type_name(scheduler)
    require(name in SCALABLE, "param_scheduler", name, f"one of {', '.join(SCALABLE)}")
    unit = "epochs" if by_epoch else "iterations"
    require(scheduler.get("by_epoch", True) == by_epoch, "param_scheduler", name, f"one in {unit}, as train_cfg counts")
    result = ConfigDict(scheduler, by_epoch=False)
    result.pop("convert_to_iter_based", None)
    for key in LENGTHS:
        value = result.get(key)
        if isinstance(value, (list, tuple)):
            result[key] = [round(point * factor) for point in value]
        elif value is not None and math.isfinite(value):
            result[key] = round(value * factor)
    return result
