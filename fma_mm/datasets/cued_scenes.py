"""Scenes in which one digit, in the corner, says which digits to segment: a dense task that needs the whole image."""

from __future__ import annotations

from typing import ClassVar

import cv2
import numpy as np
from mmengine.registry import DATASETS

from .digit_scenes import DigitScenes
from .digits import SPLITS

#: Side of the cue in pixels.
CUE = 24
#: The two colours of digits, blue and red, as factors of the channels BGR.
COLORS = np.array([[1.0, 0.3, 0.3], [0.3, 0.3, 1.0]])


@DATASETS.register_module()
class CuedScenes(DigitScenes):
    """:class:`DigitScenes` with a cue: asked for are the pixels of the digits in the colour of the one in the corner.

    Every digit is painted blue or red, at random. Another real digit in one of the two colours, on black, covers the
    upper left 24x24 pixels: the cue. Class 1 ("asked") are the pixels of the other digits in its colour, class 0
    ("other") is everything else, the cue included. Both colours are equally likely as the cue, and do not depend on the
    scene: a model that cannot see the corner from where a digit lies cannot know what is asked.

    An item has the keys of :class:`DigitScenes`, and ``cue``, the number of the colour in the corner. The dicts of
    ``digits`` have the number of their ``color``.

    Args:
        **kwargs: those of :class:`DigitScenes`.

    Raises:
        ValueError: an argument is outside of the values stated there.
        ImportError: scikit-learn is missing.
    """

    METAINFO: ClassVar[dict] = dict(classes=("other", "asked"), palette=[(40, 40, 40), (60, 180, 75)])

    def get_data_info(self, idx: int) -> dict:
        """Compose one scene, paint its digits, and put the cue into its corner.

        Args:
            idx: its index in the data set.

        Returns:
            A dict with the keys above.
        """
        info = super().get_data_info(idx)
        random = np.random.RandomState([self.seed, SPLITS.index(self.split), info["scene"], 1])
        cue, (_, images, _) = random.randint(2), self._digits
        img, ink, asked = info["img"], info["gt_seg_map"] > 0, np.zeros_like(info["gt_seg_map"])
        for digit in info["digits"]:
            digit["color"] = color = random.randint(2)
            window = tuple(slice(digit[start], digit[start] + digit["side"]) for start in ("top", "left"))
            img[window][ink[window]] = img[window][ink[window]] * COLORS[color]
            asked[window] |= (ink[window] & (color == cue)).astype(asked.dtype)
        picture = cv2.resize(images[random.randint(len(images))], (CUE, CUE), interpolation=cv2.INTER_LINEAR_EXACT)
        img[:CUE, :CUE] = picture[..., None] * COLORS[cue]
        asked[:CUE, :CUE] = 0
        return info | dict(gt_seg_map=asked, cue=cue)
