"""Pictures, images and models that the tools refuse, and the cause behind each line."""

import cv2
import numpy as np
import pytest
import torch

from fma_mm.analysis import inspection
from fma_mm.cli import CommandError


def test_pictures(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "there.png").touch()
    path = tmp_path / "new.png"
    assert inspection.output_path("--out", str(path), ".png", force=False) == path
    assert inspection.output_path("--out", str(tmp_path / "there.png"), ".png", force=True).exists()
    for name, message in {
        "new.jpg": "expected the name of a .png file",
        "folder.png": "is a folder",
        "there.png": "exists already; choose another name, or overwrite it with --force",
    }.items():
        with pytest.raises(CommandError, match=f"--out .*{name}: {message}"):
            inspection.output_path("--out", str(tmp_path / name), ".png", force=name == "folder.png")


@pytest.mark.parametrize(
    ("content", "message", "cause"),
    [(None, "no such file", None), (b"", "not an image", cv2.error), (b"text", "not an image", None)],
)
def test_images_that_cannot_be_read(tmp_path, content, message, cause):
    path = tmp_path / "image.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CommandError, match=rf"image .*image\.png: {message}") as refused:
        inspection.read_image(path)
    assert isinstance(refused.value.__cause__, cause or type(None))


@pytest.fixture
def trained(classifier, tmp_path):
    """A checkpoint of the classifier's model."""
    model = inspection.build_model(inspection.read_config(str(classifier), {}))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "model.pth")
    return model, str(tmp_path / "model.pth")


def test_models_have_the_weights_of_their_checkpoint(classifier, trained):
    model, checkpoint = trained
    cfg = inspection.read_config(str(classifier), {})
    loaded = inspection.build_model(cfg, checkpoint)
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert inspection.weights_origin(cfg, checkpoint) == "weights of model.pth"
    assert inspection.weights_origin(cfg, None) == "random initial weights"


def test_a_checkpoint_of_another_model_is_refused(classifier, trained):
    """Loaded in part, it would leave weights random, and the picture would not tell."""
    cfg = inspection.read_config(str(classifier), {"model.backbone.arch.depths": (1, 2)})
    message = r"--checkpoint .*model\.pth: does not load into the model of .*: .* do not match exactly"
    with pytest.raises(CommandError, match=message) as refused:
        inspection.build_model(cfg, trained[1])
    assert isinstance(refused.value.__cause__, RuntimeError)


@pytest.mark.parametrize(("checkpoint", "message"), [("none.pth", "no such file"), ("classifier.py", "does not load")])
def test_checkpoints_that_are_none(classifier, checkpoint, message):
    cfg = inspection.read_config(str(classifier), {})
    with pytest.raises(CommandError, match=f"--checkpoint .*{checkpoint}: {message}"):
        inspection.build_model(cfg, str(classifier.with_name(checkpoint)))


def test_images_are_normalised_as_in_testing(classifier):
    model = inspection.build_model(inspection.read_config(str(classifier), {}))
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    inputs = inspection.preprocess(model, [image])
    expected = (torch.from_numpy(image).permute(2, 0, 1)[None] - 120.0) / 60
    torch.testing.assert_close(inputs.cpu(), expected)
