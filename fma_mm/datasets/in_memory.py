"""Data sets whose pictures are in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mmengine.dataset import BaseDataset

#: The step of a pipeline that reads a picture from its file.
LOADING = "LoadImageFromFile"


class InMemoryDataset(BaseDataset):
    """A data set whose items enter the pipeline with their picture in place.

    A ``LoadImageFromFile`` in the pipeline is left out. A config should have it all the same: the inference interfaces
    of mmpretrain and mmseg put the pictures of their callers in its place.

    Args:
        pipeline: steps of the pipeline.
        **kwargs: other arguments of mmengine's ``BaseDataset``.
    """

    def __init__(self, *, pipeline: Sequence[dict | Callable] = (), **kwargs: Any):
        steps = [step for step in pipeline if not (isinstance(step, dict) and step["type"] == LOADING)]
        super().__init__(pipeline=steps, **kwargs)
