import sys
from collections import Counter

import numpy as np
import pytest
from mmengine.dataset import ClassBalancedDataset, default_collate
from mmengine.registry import DATASETS, MODELS, DefaultScope
from sklearn.datasets import load_digits

from fma_mm import HandwrittenDigits


def items(split: str) -> list[tuple[bytes, int]]:
    dataset = HandwrittenDigits(split=split)
    return [(item["img"].tobytes(), item["gt_label"]) for item in map(dataset.get_data_info, range(len(dataset)))]


def test_splits_share_nothing_and_cover_everything():
    original = load_digits()
    expected = Counter(
        (np.rint(np.repeat(image[..., None], 3, 2) * 255 / 16).astype(np.uint8).tobytes(), label)
        for image, label in zip(original.images, original.target.tolist(), strict=True)
    )
    train, val = items("train"), items("val")
    assert Counter(train + val) == expected
    assert len(train) + len(val) == 1797


def test_held_out_fifth_is_fixed_and_stratified():
    train, val = items("train"), items("val")
    assert val == items("val") and train == items("train")
    assert len(val) == 359
    total = Counter(label for _, label in train + val)
    for label, count in Counter(label for _, label in val).items():
        assert abs(count - total[label] / 5) <= 0.5


def test_items():
    dataset = HandwrittenDigits(split="val", test_mode=True)
    assert dataset.metainfo["classes"] == tuple("0123456789")
    item = dataset[3]
    assert item["img"].shape == (8, 8, 3) and item["img"].dtype == np.uint8 and item["img"].max() > 200
    assert item["img_shape"] == item["ori_shape"] == (8, 8)
    assert item["sample_idx"] == 3
    assert dataset.get_cat_ids(3) == [item["gt_label"]]
    item["img"][:] = 0  # a pipeline may write into what it is given
    assert dataset[3]["img"].any()


def test_mmengine_wrapper_can_balance_the_classes():
    dataset = HandwrittenDigits(split="val", indices=50)
    assert len(ClassBalancedDataset(dataset, oversample_thr=0.5)) > 50


def test_mmpretrain_pipeline_and_preprocessor():
    import mmpretrain.datasets  # noqa: F401

    with DefaultScope.overwrite_default_scope("mmpretrain"):
        pipeline = [dict(type="Resize", scale=(20, 12)), dict(type="PackInputs")]
        dataset = DATASETS.build(dict(type="HandwrittenDigits", split="train", pipeline=pipeline))
        batch = default_collate([dataset[i] for i in range(4)])
        preprocessor = MODELS.build(dict(type="ClsDataPreprocessor", mean=[78.0] * 3, std=[96.0] * 3))
    batch = preprocessor(batch)
    assert batch["inputs"].shape == (4, 3, 12, 20)
    for i, sample in enumerate(batch["data_samples"]):
        assert sample.gt_label.tolist() == [dataset.get_data_info(i)["gt_label"]]
        assert sample.ori_shape == (8, 8) and sample.img_shape == (12, 20)


def test_bad_split():
    with pytest.raises(ValueError, match=r"split='test'.*'train' or 'val'"):
        HandwrittenDigits(split="test")


def test_missing_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"scikit-learn.*pip install \"fma-mm\[mm\]\""):
        HandwrittenDigits()
