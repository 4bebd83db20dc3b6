"""The inference interfaces of mmpretrain and mmseg take the shipped configs, and images as files and as arrays."""

from pathlib import Path

import cv2
import mmpretrain
import mmseg.apis
import numpy as np
import pytest
import torch
from mmengine.config import Config

ROOT = Path(__file__).parents[2] / "configs"
CLASSIFIERS = ["demo/fma2d_digits.py", "cifar10/fma2d-nano_b64-3k_cifar10.py"]
SEGMENTORS = [
    "demo/fma2d_segformer_digits.py",
    "camvid/fma2d-tiny_segformer_b4-800_camvid-160x160.py",
    "ade20k/fma2d-tiny_segformer_8xb2-160k_ade20k-512x512.py",
]


def load(name: str) -> Config:
    """A shipped config with a narrow backbone."""
    cfg = Config.fromfile(ROOT / name)
    arch = cfg.model.backbone.arch
    depth = 4 if isinstance(arch, str) else len(arch["depths"])
    cfg.model.backbone.arch = dict(embed_dims=8, depths=[1] * depth, num_heads=[1] * depth)
    channels = [8 * 2**i for i in range(depth)]
    if "head" in cfg.model:
        cfg.model.head.in_channels = channels[-1]
    else:
        cfg.model.decode_head.in_channels = channels
    return cfg


@pytest.fixture
def image(tmp_path) -> np.ndarray:
    """An image, which lies in the file image.png as well."""
    image = np.random.default_rng(0).integers(0, 256, (72, 96, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "image.png"), image)
    return image


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classification(name, image, tmp_path):
    model = mmpretrain.get_model(load(name))
    infer = mmpretrain.ImageClassificationInferencer(model)
    (of_array,), (of_file,) = infer(image), infer(str(tmp_path / "image.png"))
    assert of_array["pred_scores"].shape == (10,)
    np.testing.assert_array_equal(of_array["pred_scores"], of_file["pred_scores"])


@pytest.mark.parametrize("name", SEGMENTORS)
def test_segmentation(name, image, tmp_path):
    model = mmseg.apis.init_model(load(name), device="cpu")
    of_file = mmseg.apis.inference_model(model, str(tmp_path / "image.png")).pred_sem_seg.data
    of_array = mmseg.apis.inference_model(model, image).pred_sem_seg.data  # changes the config of the model
    assert of_array.shape == (1, 72, 96) and len(of_array.unique()) > 1
    assert torch.equal(of_array, of_file)

    inferencer = mmseg.apis.MMSegInferencer(load(name), device="cpu", show_progress=False)
    inferencer.model.load_state_dict(model.state_dict())
    assert torch.equal(inferencer(image, return_datasamples=True).pred_sem_seg.data, of_array)
