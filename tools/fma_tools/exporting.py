"""Files of exported models: written, compared with the model, and described."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.export import ExportedProgram

from fma_kernels.checks import require
from fma_kernels.export import export_program, require_onnx, require_onnxruntime, save_onnx
from fma_kernels.measure import milliseconds, take_turns
from fma_mm.analysis import inspection
from fma_mm.deployment import INPUT_PROPERTY, DeployedModel, OnnxNetwork

from .onnx_files import counts, difference, operators, removed_on_failure, require_difference


@dataclass(frozen=True, kw_only=True)
class Request:
    """Settings of an export.

    Attributes:
        size: height and width of the image.
        batch: images at a time, or "dynamic".
        format: "onnx" or "pt2".
        part, normalize, half: as in :class:`fma_mm.deployment.DeployedModel`.
        image: picture to compare on; None for random pixels.
        tolerance: largest difference, as a share of the largest output.
        out: the file.
        rounds: rounds of timing, 0 for none.
    """

    size: tuple[int, int]
    batch: int | str
    format: str
    part: str
    normalize: bool
    half: bool
    image: Path | None
    tolerance: float
    out: Path
    rounds: int = 0


def export_model(cfg: Config, checkpoint: str | None, request: Request) -> str:
    """Write a file, compare it with the model in float32, and remove it if it differs.

    Args:
        cfg: the config of the model.
        checkpoint: weights to load; None: those that its training starts from.
        request: what to export, and how.

    Returns:
        A description of the file.

    Raises:
        CommandError: the config builds no model, or the checkpoint is that of another one.
        ImportError: a package that writes or runs the format is missing.
        ValueError: a part of the request does not fit the model, or the file differs from it.
    """
    if request.format == "onnx":
        require_onnx()
        require_onnxruntime()
    if request.rounds:
        torch.set_num_threads(1)
    model = inspection.build_model(cfg, checkpoint).cpu()
    options = dict(part=request.part, normalize=request.normalize)
    reference = DeployedModel(model, request.size, **options)
    deployed = DeployedModel(model, request.size, half=True, **options) if request.half else reference
    images = _images(request, model)
    with torch.no_grad():
        wanted = reference(images)
    start = time.perf_counter()
    program = export_program(deployed, (images,), dynamic_batch=request.batch == "dynamic")
    names = deployed.output_names(wanted)
    with removed_on_failure(request.out):
        _write(program, request, names, {INPUT_PROPERTY: deployed.input_kind})
        seconds = time.perf_counter() - start
        run = _runner(request)
        largest = max(difference(a, b) for a, b in zip(run(images), wanted, strict=True))
        require_difference(largest, request.tolerance, "output")
    shapes = [f"{name} {tuple(x.shape[1:])}" for name, x in zip(names, wanted, strict=True)]
    return "\n".join(
        [
            f"{request.out}: {request.out.stat().st_size / 2**20:.1f} MiB, written in {seconds:.1f} s",
            f"input      image ({request.batch}, 3, {request.size[0]}, {request.size[1]}), {deployed.input_kind}",
            f"outputs    {', '.join(shapes)}",
            *_operators(program, request),
            f"weights    {inspection.weights_origin(cfg, checkpoint)}",
            f"difference {largest:.2g} of the largest output, at most {request.tolerance:g} allowed, "
            f"on {request.image or 'random pixels'}",
            *_times(reference, run, images, request.rounds),
        ]
    )


def _write(program: ExportedProgram, request: Request, outputs: Sequence[str], metadata: dict[str, str]) -> None:
    request.out.parent.mkdir(parents=True, exist_ok=True)
    if request.format == "onnx":
        save_onnx(program, request.out, inputs=["image"], outputs=outputs, metadata=metadata)
    else:
        torch.export.save(program, request.out)


def _images(request: Request, model: nn.Module) -> Tensor:
    """A batch to compare on, as the file takes it."""
    count = 2 if request.batch == "dynamic" else request.batch
    if request.image is None:
        image = np.random.default_rng(0).integers(0, 256, (*request.size, 3), dtype=np.uint8)
    else:
        image = mmcv.imresize(inspection.read_image(request.image), request.size[::-1])
    if request.normalize or not hasattr(model, "data_preprocessor"):
        found = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].float()
    else:
        found = inspection.preprocess(model, [image])
    size = tuple(found.shape[2:])
    require(size == request.size, "size", request.size, f"{size}, to which the config pads images")
    return found.repeat(count, 1, 1, 1)


def _times(model: nn.Module, run: Callable[[Tensor], object], images: Tensor, rounds: int) -> Iterator[str]:
    """A line with the times of model and file, which take turns."""
    if not rounds:
        return
    calls = {"PyTorch": model, "file": run}
    clocks = {name: partial(milliseconds, partial(call, images), images.device) for name, call in calls.items()}
    with torch.inference_mode():
        times = take_turns(clocks, rounds + 1)  # the first round warms up
    by_name = {name: median(found[1:]) for name, found in times.items()}
    ratio = by_name["file"] / by_name["PyTorch"]
    listed = ", ".join(f"{name} {ms:.1f} ms" for name, ms in by_name.items())
    yield f"time       {listed}, {ratio:.2f} times as long; {torch.get_num_threads()} thread(s), {rounds} rounds"


def _runner(request: Request) -> Callable[[Tensor], list[Tensor]]:
    """The runtime that runs the file."""
    if request.format == "onnx":
        return OnnxNetwork(request.out)
    module = torch.export.load(request.out).module()
    return lambda x: list(module(x))


def _operators(program: ExportedProgram, request: Request) -> list[str]:
    if request.format == "onnx":
        return operators(request.out)
    names = (str(node.target) for node in program.graph.nodes if node.op == "call_function")
    return [f"format     pt2, torch {torch.__version__}", counts(names)]
