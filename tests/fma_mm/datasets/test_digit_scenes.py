import pickle
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, METRICS, MODELS, DefaultScope
from scipy.ndimage import map_coordinates
from sklearn.datasets import load_digits

from fma_mm import DigitScenes, HandwrittenDigits

DIGITS = load_digits()


def ink_of(source: int, side: int) -> np.ndarray:
    """An 8x8 digit, 0 to 255, sampled at the centres of side x side pixels; the outermost values go on outside."""
    image = np.rint(DIGITS.images[source] * (255 / 16))
    centers = (np.arange(side) + 0.5) * 8 / side - 0.5
    return map_coordinates(image, np.meshgrid(centers, centers, indexing="ij"), order=1, mode="nearest")


@settings(max_examples=15)
@given(st.sampled_from(["train", "val"]), st.integers(0, 50), st.integers(0, 2**32 - 1), st.integers(40, 130))
def test_masks_are_exact(split, index, seed, size):
    scene = DigitScenes(split=split, num_scenes=51, size=size, seed=seed)[index]
    expected, certain = np.zeros((size, size)), np.ones((size, size), dtype=bool)
    for digit in scene["digits"]:
        window = np.s_[digit["top"] : digit["top"] + digit["side"], digit["left"] : digit["left"] + digit["side"]]
        ink = ink_of(digit["source"], digit["side"])
        expected[window] = np.where(ink >= 96, 1 + digit["label"], 0)
        certain[window] = abs(ink - 96) > 1  # a value between two integers may be rounded either way
        assert digit["label"] == DIGITS.target[digit["source"]] and 24 <= digit["side"] <= 36
    assert np.array_equal(scene["gt_seg_map"][certain], expected[certain])
    assert certain.mean() > 0.98
    assert len(scene["digits"]) >= 1


def test_digits_do_not_overlap_and_stand_out():
    for scene in DigitScenes(num_scenes=20):
        boxes = np.zeros((96, 96), dtype=int)
        for digit in scene["digits"]:
            top, left, side = digit["top"], digit["left"], digit["side"]
            boxes[top : top + side, left : left + side] += 1
        assert boxes.max() == 1
        bright = scene["img"].mean(-1)
        assert bright[scene["gt_seg_map"] > 0].mean() > bright[scene["gt_seg_map"] == 0].mean() + 40


@pytest.mark.slow
def test_scenes_are_the_same_in_every_instance_and_process():
    scene = DigitScenes(split="val", num_scenes=9, seed=3)[7]
    for other in (
        DigitScenes(split="val", num_scenes=8, seed=3)[-1],
        pickle.loads(pickle.dumps(DigitScenes("val", 9, seed=3)))[7],
    ):
        assert np.array_equal(scene["img"], other["img"]) and scene["digits"] == other["digits"]
    code = (
        "from fma_mm import DigitScenes; import sys; sys.stdout.buffer.write(DigitScenes('val', 9, seed=3)[7]['img'])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == scene["img"].tobytes()
    )


def test_scenes_differ_by_index_seed_and_split():
    scenes = [DigitScenes(split, 5, seed=seed)[i] for split in ("train", "val") for seed in (0, 1) for i in range(5)]
    assert (
        len({scene["img"].tobytes() for scene in scenes})
        == len({scene["gt_seg_map"].tobytes() for scene in scenes})
        == 20
    )


def test_splits_share_no_digit_and_show_all_classes():
    originals = {
        split: {item["img"][..., 0].tobytes() for item in HandwrittenDigits(split)} for split in ("train", "val")
    }
    seen = {}
    for split in ("train", "val"):
        digits = [digit for scene in DigitScenes(split, num_scenes=100) for digit in scene["digits"]]
        seen[split] = {digit["source"] for digit in digits}
        labels = Counter(digit["label"] for digit in digits)
        assert len(labels) == 10 and min(labels.values()) > 15
        for source in seen[split]:
            assert np.rint(DIGITS.images[source] * (255 / 16)).astype(np.uint8).tobytes() in originals[split]
    assert not seen["train"] & seen["val"]


def test_items():
    dataset = DigitScenes(split="val", num_scenes=4, test_mode=True)
    assert len(dataset) == 4 and len(dataset.metainfo["classes"]) == len(set(dataset.metainfo["palette"])) == 11
    item = dataset[3]
    assert item["img"].shape == (96, 96, 3) and item["img"].dtype == np.uint8
    assert item["gt_seg_map"].shape == item["img_shape"] == item["ori_shape"] == (96, 96)
    assert item["gt_seg_map"].dtype == np.uint8 and item["gt_seg_map"].max() <= 10
    assert item["seg_fields"] == ["gt_seg_map"] and item["img_path"] == "val_00003.png" and item["sample_idx"] == 3
    item["img"][:] = 0  # a pipeline may write into what it is given
    assert dataset[3]["img"].any()
    assert DigitScenes(split="val", num_scenes=4, indices=[3])[0]["img_path"] == "val_00003.png"


def test_mmseg_pipeline_preprocessor_and_metric():
    import mmseg.datasets
    import mmseg.evaluation
    import mmseg.models  # noqa: F401

    with DefaultScope.overwrite_default_scope("mmseg"):
        rotate = dict(type="RandomRotate", prob=1.0, degree=10, pad_val=0, seg_pad_val=255)
        turned = DATASETS.build(dict(type="DigitScenes", num_scenes=2, pipeline=[rotate, dict(type="PackSegInputs")]))
        upright = DATASETS.build(
            dict(type="DigitScenes", split="val", num_scenes=50, pipeline=[dict(type="PackSegInputs")], test_mode=True)
        )
        preprocessor = MODELS.build(dict(type="SegDataPreProcessor", mean=[0.0] * 3, std=[1.0] * 3, size=(96, 96)))
        metric = METRICS.build(dict(type="IoUMetric"))

    batch = preprocessor(pseudo_collate([turned[0], turned[1]]), training=True)
    assert batch["inputs"].shape == (2, 3, 96, 96)
    for i, sample in enumerate(batch["data_samples"]):
        assert sample.ori_shape == sample.img_shape == (96, 96) and not sample.reduce_zero_label
        turned_map = sample.gt_sem_seg.data
        classes = set(np.unique(turned.get_data_info(i)["gt_seg_map"]))
        assert turned_map.shape == (1, 96, 96) and set(turned_map.unique().tolist()) == classes | {255}

    # What whoever answers with one class everywhere reaches: the background's share, over 11 classes.
    metric.dataset_meta = upright.metainfo
    maps = [upright[i]["data_samples"].gt_sem_seg.data for i in range(len(upright))]
    metric.process({}, [dict(pred_sem_seg=dict(data=0 * truth), gt_sem_seg=dict(data=truth)) for truth in maps])
    constant = metric.evaluate(len(maps))["mIoU"]
    assert constant == pytest.approx(
        100 * np.mean([float((truth == 0).float().mean()) for truth in maps]) / 11, abs=0.01
    )
    assert 7 < constant < 9
    metric.process({}, [dict(pred_sem_seg=dict(data=truth), gt_sem_seg=dict(data=truth)) for truth in maps])
    assert metric.evaluate(len(maps))["mIoU"] == 100


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(split="test"), r"split='test'.*'train' or 'val'"),
        (dict(num_scenes=0), r"num_scenes=0.*integer >= 1"),
        (dict(size=35), r"size=35.*integer >= 36"),
        (dict(size=64.0), r"size=64.0.*integer >= 36"),
        (dict(seed=-1), r"seed=-1.*2\*\*32"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DigitScenes(**kwargs)
