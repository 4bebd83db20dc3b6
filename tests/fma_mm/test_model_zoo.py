"""The classifiers by name: fma_mm.get_model, and mmpretrain's functions once they are told of the models."""

import copy
from pathlib import Path

import mmpretrain
import numpy as np
import pytest
import torch
import yaml

import fma_mm
from fma_mm.model_zoo import files_root

ROOT = Path(__file__).parents[2]
METAFILES = [ROOT / "configs" / folder / "metafile.yml" for folder in ("imagenet", "cifar10")]
ENTRIES = [entry for path in METAFILES for entry in yaml.safe_load(path.read_text())["Models"]]
NANO = "fma2d-nano_b64-33k_cifar10"
TINY = "fma2d-tiny_8xb128_in1k"
SMALL = dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))


@pytest.fixture(autouse=True)
def registered():
    """A second call must do nothing: mmpretrain refuses a name that it knows."""
    fma_mm.register_models()


def small(name: str, **options) -> torch.nn.Module:
    """A model of the zoo with a narrow backbone."""
    changes = dict(backbone=dict(arch=dict(_delete_=True, **SMALL)), head=dict(in_channels=64))
    return fma_mm.get_model(name, **copy.deepcopy(changes), **options)


def test_files_of_a_checkout():
    assert files_root() == ROOT


def test_mmpretrain_lists_the_models_beside_its_own():
    names = {entry["Name"] for entry in ENTRIES}
    assert set(mmpretrain.list_models("fma2d*")) == {name for name in names if name.startswith("fma2d")}
    assert names | {"resnet50_8xb32_in1k"} <= set(mmpretrain.list_models())
    classifiers = mmpretrain.list_models(task="Image Classification")
    assert names - set(classifiers) == {"fma2d-large_8xb128_in22k"}, "pre-training has no validation images"


@pytest.mark.parametrize("get_model", [fma_mm.get_model, mmpretrain.get_model])
def test_backbone_by_name(get_model):
    model = get_model(TINY.upper(), backbone=dict(out_indices=(1, -1)), neck=None, head=None)
    maps = model.extract_feat(torch.rand(1, 3, 64, 96))
    assert [tuple(x.shape) for x in maps] == [(1, 192, 8, 12), (1, 768, 2, 3)]


@pytest.mark.parametrize(
    "name", [entry["Name"] for entry in ENTRIES if entry["Name"].startswith("fma2d") and "nano" not in entry["Name"]]
)
def test_every_fma2d_is_built_by_name(name):
    model = small(name)
    assert not model.training
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 21841 if name.endswith("in22k") else 1000)


def test_inference_by_model_and_by_name(monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    result = mmpretrain.inference_model(small(TINY), image)
    assert result["pred_scores"].shape == (1000,) and result["pred_scores"].sum() == pytest.approx(1, abs=1e-4)
    assert isinstance(result["pred_class"], str)
    arch_zoo = dict(fma_mm.FMA2D.arch_zoo, tiny=SMALL | dict(embed_dims=96))  # a quarter of the layers
    monkeypatch.setattr(fma_mm.FMA2D, "arch_zoo", arch_zoo)
    result = mmpretrain.inference_model(TINY, image, pretrained=False)
    assert result["pred_scores"].argmax() == result["pred_label"]


@pytest.mark.parametrize(
    "ask",
    [
        lambda: fma_mm.get_model(TINY, pretrained=True),
        lambda: mmpretrain.get_model(TINY, pretrained=True),
        lambda: mmpretrain.inference_model(TINY, np.zeros((32, 32, 3), np.uint8)),  # asks for weights by default
    ],
)
def test_published_weights_are_refused(ask):
    with pytest.raises(ValueError, match=f"^model='{TINY}': no weights are published; expected .*pretrained=PATH"):
        ask()


def test_weights_that_ship():
    """They name the ten classes, offline, by every way in; a picture of any size is reduced to theirs."""
    picture = np.random.default_rng(0).integers(0, 256, (48, 60, 3), dtype=np.uint8)
    model = fma_mm.get_model(NANO, pretrained=True)
    results = [
        mmpretrain.inference_model(model, picture),
        mmpretrain.inference_model(NANO, picture),
        mmpretrain.ImageClassificationInferencer(NANO)(picture)[0],
    ]
    for result in results:
        assert result["pred_class"] in model._dataset_meta["classes"] and result["pred_scores"].shape == (10,)
        assert np.allclose(result["pred_scores"], results[0]["pred_scores"], atol=1e-6)
    other = fma_mm.get_model(NANO, pretrained=False)
    assert not torch.equal(other.head.fc.weight, model.head.fc.weight)


def test_damaged_weights_are_refused(monkeypatch, tmp_path):
    (name,) = [entry["Weights"] for entry in ENTRIES if entry["Name"] == NANO]
    (tmp_path / "weights").mkdir()
    monkeypatch.setattr(fma_mm.model_zoo, "__file__", str(tmp_path / "model_zoo.py"))
    with pytest.raises(ValueError, match=r"weights=.*expected the file that the package came with"):
        fma_mm.model_zoo.weights_file(name)
    (tmp_path / "weights" / name).write_bytes(b"else")
    with pytest.raises(ValueError, match=r"weights=.*its hash is"):
        fma_mm.get_model(NANO, pretrained=True)


def test_own_checkpoint(tmp_path):
    model = small(TINY)
    for parameter in model.parameters():
        parameter.data.normal_()
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=["cat"]))), tmp_path / "x.pth")
    loaded = small(TINY, pretrained=str(tmp_path / "x.pth"))
    assert all(torch.equal(x, y) for x, y in zip(loaded.parameters(), model.parameters(), strict=True))
    assert loaded._dataset_meta == dict(classes=["cat"])


def test_unknown_name():
    with pytest.raises(ValueError, match="fma2d-huge"):
        fma_mm.get_model("fma2d-huge")
