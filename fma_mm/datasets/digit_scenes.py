"""Scenes of handwritten digits with exact masks, for semantic segmentation without a download."""

from __future__ import annotations

from typing import ClassVar

import cv2
import numpy as np
from mmengine.registry import DATASETS

from fma_kernels.checks import require

from .digits import SPLITS, read_digits
from .in_memory import InMemoryDataset

#: A pixel belongs to a digit where the ink, from 0 to 255, is at least this.
INK = 96
#: Smallest and largest side of an enlarged digit, in pixels.
SIDES = 24, 36
#: How often a digit is thrown into a scene, and the largest number of arcs.
THROWS, ARCS = 30, 4


@DATASETS.register_module()
class DigitScenes(InMemoryDataset):
    """Pictures of several real digits on a textured ground, with the class of every pixel.

    The digits are those of :class:`HandwrittenDigits`: training scenes show training digits only, validation scenes
    only digits that were held out. A scene is composed when it is read, and is a function of ``split``, its number and
    ``seed`` alone (and of ``size``), in every process.

    Digits of random size (24 to 36 pixels) and colour are thrown to random places. A throw onto another digit does not
    count, so that digits do not overlap. Under them lie a coarse texture and up to four arcs in colours like theirs,
    over everything fine noise.

    The ink of a digit is its 8x8 picture, 0 to 255, enlarged bilinearly (pixel centres aligned, rounded to integers).
    It blends the colour of the digit over the ground, and a pixel is of the digit's class exactly where its ink is at
    least 96. Every other pixel is background, the arcs included.

    An item enters the pipeline with its picture in place, and the pipeline's ``LoadImageFromFile`` is left out:

    - ``img``: (size, size, 3) uint8, BGR.
    - ``gt_seg_map``: (size, size) uint8, 0 for background and 1 + digit elsewhere; ``seg_fields`` names it.
    - ``img_shape``, ``ori_shape``: (size, size).
    - ``img_path``: a name for results, such as ``"val_00003.png"``; there is no such file.
    - ``reduce_zero_label``: False.
    - ``digits``: one dict per digit: ``source`` (index in scikit-learn's data), ``label`` (0 to 9), ``top``, ``left``
      and ``side`` in pixels.

    Args:
        split: ``"train"`` or ``"val"``.
        num_scenes: number of scenes.
        size: side of the scenes in pixels, at least 36.
        seed: another seed gives other scenes of the same digits.
        **kwargs: arguments of mmengine's ``BaseDataset``, such as ``pipeline`` and ``test_mode``.

    Raises:
        ValueError: an argument is outside of the values stated above.
        ImportError: scikit-learn is missing.
    """

    METAINFO: ClassVar[dict] = dict(
        classes=("background", *"0123456789"),
        palette=[
            (40, 40, 40),
            (230, 25, 75),
            (60, 180, 75),
            (255, 225, 25),
            (67, 99, 216),
            (245, 130, 49),
            (145, 30, 180),
            (66, 212, 244),
            (240, 50, 230),
            (191, 239, 69),
            (250, 190, 212),
        ],
    )

    def __init__(self, split: str = "train", num_scenes: int = 1000, size: int = 96, seed: int = 0, **kwargs):
        require(split in SPLITS, "split", split, "'train' or 'val'")
        require(isinstance(num_scenes, int) and num_scenes >= 1, "num_scenes", num_scenes, "an integer >= 1")
        require(isinstance(size, int) and size >= SIDES[1], "size", size, f"an integer >= {SIDES[1]}")
        require(isinstance(seed, int) and 0 <= seed < 2**32, "seed", seed, "an integer from 0 to 2**32 - 1")
        self.split, self.num_scenes, self.size, self.seed = split, num_scenes, size, seed
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict]:
        """Read the digits of this split and number the scenes.

        Returns:
            One dict per scene, with its number ``scene`` and its ``img_path``.
        """
        self._digits = read_digits(self.split)
        return [dict(scene=i, img_path=f"{self.split}_{i:05d}.png") for i in range(self.num_scenes)]

    def get_data_info(self, idx: int) -> dict:
        """Compose one scene.

        Args:
            idx: its index in the data set.

        Returns:
            A dict with the keys above.
        """
        info = super().get_data_info(idx)
        # RandomState's streams are the same in every version of NumPy.
        random = np.random.RandomState([self.seed, SPLITS.index(self.split), info["scene"]])
        canvas = _ground(self.size, random)
        seg_map, digits = self._throw_digits(canvas, random)
        canvas += random.normal(0, 8, canvas.shape)
        shape = (self.size, self.size)
        return info | dict(
            img=np.rint(canvas.clip(0, 255)).astype(np.uint8),
            gt_seg_map=seg_map,
            seg_fields=["gt_seg_map"],
            img_shape=shape,
            ori_shape=shape,
            reduce_zero_label=False,
            digits=digits,
        )

    def _throw_digits(self, canvas: np.ndarray, random: np.random.RandomState) -> tuple[np.ndarray, list[dict]]:
        """Draw digits on the canvas, in place; return their mask and their positions."""
        sources, images, labels = self._digits
        seg_map = np.zeros(canvas.shape[:2], dtype=np.uint8)
        taken = np.zeros(canvas.shape[:2], dtype=bool)
        digits = []
        for _ in range(THROWS):
            chosen, side = random.randint(len(sources)), random.randint(SIDES[0], SIDES[1] + 1)
            top, left = random.randint(self.size - side + 1, size=2).tolist()
            window = np.s_[top : top + side, left : left + side]
            if taken[window].any():
                continue
            taken[window] = True
            ink = cv2.resize(images[chosen], (side, side), interpolation=cv2.INTER_LINEAR_EXACT)
            canvas[window] += ink[..., None] / 255 * (_color(random) - canvas[window])
            seg_map[window][ink >= INK] = 1 + labels[chosen]
            digits.append(dict(source=int(sources[chosen]), label=int(labels[chosen]), top=top, left=left, side=side))
        return seg_map, digits


def _color(random: np.random.RandomState) -> np.ndarray:
    """A bright colour of digits and arcs: (3,), 0 to 255."""
    return random.uniform(150, 255, size=3)


def _ground(size: int, random: np.random.RandomState) -> np.ndarray:
    """A dark, coarse texture under bright arcs: (size, size, 3) float64, 0 to 255."""
    texture = cv2.resize(random.uniform(0, 90, size=(6, 6, 3)), (size, size), interpolation=cv2.INTER_LINEAR)
    canvas = np.rint(texture).astype(np.uint8)  # OpenCV draws smooth lines on bytes only
    for _ in range(random.randint(ARCS + 1)):
        cv2.ellipse(
            canvas,
            center=random.randint(size, size=2).tolist(),
            axes=random.randint(6, 24, size=2).tolist(),
            angle=random.randint(360),
            startAngle=0,
            endAngle=random.randint(45, 180),
            color=_color(random).tolist(),
            thickness=random.randint(2, 6),
            lineType=cv2.LINE_AA,
        )
    return canvas.astype(np.float64)
