"""Peak memory of a training step without the memory: PyTorch's fake tensors have sizes, and nothing else.

It is what :func:`.step.training_memory` measures, on a model and a batch of any size. Left out, as in every count of
tensors, are the workspace inside operators (those of cuDNN, cuBLAS and the fused kernels), the fragmentation of the
allocator, the CUDA context, and the buffers of distributed training.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from .. import cli
from ..cli import CommandError
from .memory import MemoryLog, Peak

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

#: Optimizers by the names of the command line.
OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


@dataclass(frozen=True)
class Conditions:
    """Batch, image size and precision of a simulated step.

    Attributes:
        batch_size: samples of the batch.
        image_size: height and width of the images; None: those of the config.
        precision: a key of :data:`PRECISIONS`; 16 bits by autocast, with weights in float32.
        optimizer: a key of :data:`OPTIMIZERS`; None: that of the config.
        backbone: take the backbone alone, and the means of its maps as the loss.
    """

    batch_size: int
    image_size: tuple[int, int] | None = None
    precision: str = "bf16"
    optimizer: str | None = None
    backbone: bool = False


def simulate(
    model: nn.Module,
    loss: Callable[[], tuple[Tensor, list[Tensor]]],
    optimizer: Callable[[], torch.optim.Optimizer],
    precision: str = "fp32",
) -> Peak:
    """The peak of a model's second training step, after the first has made the optimizer's state.

    Args:
        model: on the CPU; its parameters become fake.
        loss: makes a batch, and computes the loss on it; returns it, and the tensors of the batch.
        optimizer: makes the optimizer.
        precision: a key of :data:`PRECISIONS`.

    Returns:
        What there is at that moment.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv(), static_shapes=True)
    _make_fake(model, mode)
    dtype = PRECISIONS[precision]
    model.train()
    log = MemoryLog(model)
    with mode, log:
        step = optimizer()
        for _ in range(2):
            log.forget()
            log.phase = "forward"
            with torch.autocast("cpu", dtype) if dtype else contextlib.nullcontext():
                value, batch = loss()
            log.add("inputs", *batch)
            log.phase = "backward"
            value.backward()
            log.phase = "optimizer"
            step.step()
            step.zero_grad(set_to_none=True)
            del value, batch
    return log.peak()


def simulate_config(cfg: Config, conditions: Conditions) -> tuple[nn.Module, Peak]:
    """The peak of a training step of a config of mmpretrain or mmseg.

    Args:
        cfg: the config; its model, losses and optimizer take part, its data and hooks do not.
        conditions: what it is simulated on.

    Returns:
        The model whose modules the peak names, and the peak.

    Raises:
        CommandError: the model has no backbone, or takes other labels than classifiers and segmentors do.
    """
    height, width = size = conditions.image_size or _image_size(cfg)
    if "img_size" in cfg.model.get("backbone", {}) or cfg.model.get("backbone", {}).get("type") == "FMA2D":
        cfg.model.backbone.img_size = size
    whole = cli.build_model(cfg)
    model = whole
    if conditions.backbone:
        if not hasattr(whole, "backbone"):
            raise CommandError(f"config {cfg.filename}: its model has no backbone")
        model = whole.backbone

    def loss() -> tuple[Tensor, list[Tensor]]:
        images = torch.empty(conditions.batch_size, 3, height, width)
        if conditions.backbone:
            maps = model(images)
            maps = maps if isinstance(maps, (tuple, list)) else (maps,)
            return sum(x.float().mean() for x in maps), [images]
        samples, labels = _samples(cfg, conditions.batch_size, size)
        return model.parse_losses(model(images, samples, mode="loss"))[0], [images, *labels]

    def optimizer() -> torch.optim.Optimizer:
        if conditions.optimizer:
            return OPTIMIZERS[conditions.optimizer](model.parameters(), lr=1e-3)
        plain = {key: value for key, value in cfg.optim_wrapper.items() if key not in ("loss_scale", "dtype")}
        logger = MMLogger.get_current_instance()
        level = logger.level
        logger.setLevel("WARNING")  # mmengine has a line for every parameter
        try:
            return build_optim_wrapper(model, dict(plain, type="OptimWrapper")).optimizer
        finally:
            logger.setLevel(level)

    return model, simulate(model, loss, optimizer, conditions.precision)


def _make_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    """Let fake tensors take the place of parameters and buffers; those that are shared stay shared."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    fake = mode.from_tensor(tensor.detach())
                    trained = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if trained else fake
                tensors[name] = made[id(tensor)]


def _image_size(cfg: Config) -> tuple[int, int]:
    preprocessor = cfg.model.get("data_preprocessor") or cfg.get("data_preprocessor") or {}
    size = preprocessor.get("size") or cfg.model.get("backbone", {}).get("img_size") or 224
    return (size, size) if isinstance(size, int) else tuple(size)


def _samples(cfg: Config, batch_size: int, size: tuple[int, int]) -> tuple[list, list[Tensor]]:
    """Samples as datasets give them, and the tensors in them."""
    scope = cli.scope(cfg)
    if scope == "mmpretrain":
        from mmpretrain.structures import DataSample

        head, mixed = cfg.model.get("head") or {}, (cfg.model.get("train_cfg") or {}).get("augments")
        if mixed or (head.get("loss") or {}).get("type") == "LabelSmoothLoss":  # which makes scores of labels
            samples = [DataSample().set_gt_score(torch.empty(head.num_classes)) for _ in range(batch_size)]
            return samples, [sample.gt_score for sample in samples]
        samples = [DataSample().set_gt_label(0) for _ in range(batch_size)]
        return samples, [sample.gt_label for sample in samples]
    if scope == "mmseg":
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        maps = [torch.zeros(1, *size, dtype=torch.int64) for _ in range(batch_size)]
        meta = dict(img_shape=size, ori_shape=size, pad_shape=size)
        samples = [SegDataSample(gt_sem_seg=PixelData(data=x), metainfo=meta) for x in maps]
        return samples, maps
    raise CommandError(f"config {cfg.filename}: models of {scope} take labels of their own; give --backbone")
