"""Scenes in which one digit, in the corner, says which digits to segment: a dense task that needs the whole image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import cv2
import numpy as np
from mmengine.registry import DATASETS

from fma_kernels.checks import require

from .digit_scenes import DigitScenes
from .digits import SPLITS

#: Side of the cue in pixels.
CUE = 24


@DATASETS.register_module()
class CuedScenes(DigitScenes):
    """:class:`DigitScenes` with a cue: asked for are the pixels of the digits that are like the one in the corner.

    A real digit, bright on black, covers the upper left 24x24 pixels. Class 1 ("asked") are the pixels of the other
    digits of its kind, class 0 ("other") is everything else, the cue included. All kinds are equally likely as the cue,
    so a model that cannot see the corner from where a digit lies cannot know what is asked.

    An item has the keys of :class:`DigitScenes`, and ``cue``, the digit in the corner.

    Args:
        split, num_scenes, size, seed: as for :class:`DigitScenes`.
        digits: the kinds of digits in the scenes, two or more.
        **kwargs: arguments of mmengine's ``BaseDataset``, such as ``pipeline`` and ``test_mode``.

    Raises:
        ValueError: an argument is outside of the values stated above.
        ImportError: scikit-learn is missing.
    """

    METAINFO: ClassVar[dict] = dict(classes=("other", "asked"), palette=[(40, 40, 40), (60, 180, 75)])

    def __init__(self, *args, digits: Sequence[int] = tuple(range(10)), **kwargs):
        known = len(set(digits)) == len(digits) > 1 and set(digits) <= set(range(10))
        require(known, "digits", digits, "two or more different digits")
        self.digits = tuple(digits)
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Read the digits of this split and these kinds, and number the scenes."""
        scenes = super().load_data_list()
        sources, images, labels = self._digits
        chosen = np.isin(labels, self.digits)
        self._digits = sources[chosen], images[chosen], labels[chosen]
        return scenes

    def get_data_info(self, idx: int) -> dict:
        """Compose one scene, and put the cue into its corner.

        Args:
            idx: its index in the data set.

        Returns:
            A dict with the keys above.
        """
        info = super().get_data_info(idx)
        random = np.random.RandomState([self.seed, SPLITS.index(self.split), info["scene"], 1])
        _, images, labels = self._digits
        cue = self.digits[random.randint(len(self.digits))]
        chosen = random.choice(np.flatnonzero(labels == cue))
        picture = cv2.resize(images[chosen], (CUE, CUE), interpolation=cv2.INTER_LINEAR_EXACT)
        info["img"][:CUE, :CUE] = picture[..., None]
        seg_map = (info["gt_seg_map"] == 1 + cue).astype(np.uint8)
        seg_map[:CUE, :CUE] = 0
        return info | dict(gt_seg_map=seg_map, cue=cue)
