"""Handwritten digits that need no download."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from mmengine.registry import DATASETS

from fma_kernels.checks import require

from .in_memory import InMemoryDataset

#: One image in so many is held out for validation, and the seed of the draw.
HELD_OUT, SEED = 5, 0
#: Names of the splits.
SPLITS = "train", "val"


@DATASETS.register_module()
class HandwrittenDigits(InMemoryDataset):
    """The 1,797 real handwritten digits of 8x8 pixels that scikit-learn carries (UCI, E. Alpaydin and C. Kaynak, 1998).

    A fixed fifth of the images of every digit is held out for validation. An item enters the pipeline with its picture
    in place, and the pipeline's ``LoadImageFromFile`` is left out:

    - ``img``: (8, 8, 3) uint8, bright strokes on black, three equal channels.
    - ``img_shape``, ``ori_shape``: (8, 8).
    - ``gt_label``: the digit, 0 to 9.

    Args:
        split: ``"train"`` or ``"val"``.
        **kwargs: arguments of mmengine's ``BaseDataset``, such as ``pipeline`` and ``test_mode``.

    Raises:
        ValueError: ``split`` is none of the above.
        ImportError: scikit-learn is missing.
    """

    METAINFO: ClassVar[dict] = dict(classes=tuple("0123456789"))

    def __init__(self, split: str = "train", **kwargs):
        require(split in SPLITS, "split", split, "'train' or 'val'")
        self.split = split
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict]:
        """Read the images of this split.

        Returns:
            One dict per image with the keys above.
        """
        _, images, labels = read_digits(self.split)
        images = np.repeat(images[..., None], 3, axis=-1)
        shape = images.shape[1:3]
        return [
            dict(img=image, img_shape=shape, ori_shape=shape, gt_label=label)
            for image, label in zip(images, labels.tolist(), strict=True)
        ]

    def get_cat_ids(self, idx: int) -> list[int]:
        """Label of one image, for samplers and wrappers that balance the classes."""
        return [self.get_data_info(idx)["gt_label"]]


def read_digits(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read the digits of one split.

    Args:
        split: ``"train"`` or ``"val"``.

    Returns:
        Their indices in scikit-learn's data (n,), ascending; their pictures (n, 8, 8) uint8, bright strokes on black;
        and their labels (n,).

    Raises:
        ImportError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            'the handwritten digits are those of scikit-learn; install it with: pip install "fma-mm[mm]"'
        ) from error
    digits = load_digits()
    held_out = _held_out(digits.target)
    chosen = np.flatnonzero(held_out if split == "val" else ~held_out)
    images = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)  # the ink is stored as 0 to 16
    return chosen, images, digits.target[chosen]


def _held_out(labels: np.ndarray) -> np.ndarray:
    """Mark the images of the validation split: (n,) bool, a fifth of every class."""
    held_out = np.zeros(len(labels), dtype=bool)
    random = np.random.RandomState(SEED)  # its streams are the same in every version of NumPy
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        held_out[members[: round(len(members) / HELD_OUT)]] = True
    return held_out
