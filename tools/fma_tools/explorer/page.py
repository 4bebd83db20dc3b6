"""One self-contained HTML file: the recordings, the picture or the text, and the script that shows them."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import numpy as np

from fma_kernels.checks import require

from .recording import Recording

#: Bytes of a page up to which queries and keys are in float32; a larger one has them in float16.
LARGEST_EXACT = 4 * 2**20
#: The largest file that is written, in bytes: browsers open it at once, and it can be sent by mail.
LARGEST = 12 * 2**20


@dataclass(frozen=True)
class ImageInput:
    """The image that a vision model has read.

    Attributes:
        pixels: (H, W, 3) uint8 in RGB.
        strides: side of a token in pixels, for each layer.
    """

    pixels: np.ndarray
    strides: Sequence[int]

    def data(self) -> dict:
        """The image as JSON."""
        from PIL import Image

        stream = BytesIO()
        Image.fromarray(self.pixels).save(stream, format="PNG")
        height, width = self.pixels.shape[:2]
        picture = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
        return dict(kind="image", width=width, height=height, strides=list(self.strides), picture=picture)


@dataclass(frozen=True)
class TextInput:
    """The text that a language model has read.

    Attributes:
        tokens: one string per token, as the page shows it.
    """

    tokens: Sequence[str]

    def data(self) -> dict:
        """The text as JSON."""
        return dict(kind="text", tokens=list(self.tokens))


def write_page(path: Path, recordings: Sequence[Recording], shown: ImageInput | TextInput, about: str) -> None:
    """Write the page.

    Args:
        path: the file; its folder is made.
        recordings: what the layers have read, in the order in which the page offers them.
        shown: what the model has read.
        about: a line on the model and its weights.

    Raises:
        ValueError: there is no recording, or the page would be larger than :data:`LARGEST`.
    """
    require(len(recordings) > 0, "recordings", list(recordings), "at least one")
    page = _page(recordings, shown, about, "float32")
    if len(page.encode()) > LARGEST_EXACT:
        page = _page(recordings, shown, about, "float16")
    size = len(page.encode())
    expected = f"at most {LARGEST / 2**20:.0f}: fewer layers, or a smaller input"
    require(size <= LARGEST, "size of the page in MiB", round(size / 2**20, 1), expected)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _page(recordings: Sequence[Recording], shown: ImageInput | TextInput, about: str, dtype: str) -> str:
    """The text of the page."""
    data = dict(input=shown.data(), layers=[recording.data(dtype) for recording in recordings])
    here = files(__package__)
    parts = dict(
        about=html.escape(about), dtype=dtype, style=here.joinpath("page.css").read_text(),
        # "</script>" inside a string would end the element.
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        script=here.joinpath("page.js").read_text(),
    )  # fmt: skip
    return re.sub(r"{{(\w+)}}", lambda place: parts[place[1]], here.joinpath("page.html").read_text())
