"""tools/receptive_field.py: it measures what it says, and clear words about mistakes."""

import re

import numpy as np
import pytest
import torch
from helpers.command_line import error_of
from helpers.tool_loader import load_tool
from mmengine.config import Config
from mmengine.runner import set_random_seed
from PIL import Image

from fma_mm.analysis import inspection
from fma_mm.analysis.receptive_field import receptive_field

TRANSFORMER = """
default_scope = "mmpretrain"
model = dict(
    type="ImageClassifier",
    data_preprocessor=dict(mean=[120.0] * 3, std=[60.0] * 3),
    backbone=dict(
        type="VisionTransformer",
        arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=16),
        img_size=32,
        patch_size=8,
    ),
    head=dict(type="VisionTransformerClsHead", num_classes=3, in_channels=16),
)
"""

#: One convolution of 5 x 5 pixels whose map is 1/2 of the image: what the centre reads is known.
CONVOLUTION = """
default_scope = "mmpretrain"
model = dict(
    type="ImageClassifier",
    data_preprocessor=dict(mean=[120.0] * 3, std=[60.0] * 3),
    backbone=dict(type="mmengine.Conv2d", in_channels=3, out_channels=4, kernel_size=5, stride=2, padding=2),
)
"""


@pytest.fixture(scope="module")
def tool():
    return load_tool("receptive_field")


@pytest.fixture
def transformer(tmp_path):
    path = tmp_path / "transformer.py"
    path.write_text(TRANSFORMER)
    return path


@pytest.fixture
def run(tool, tmp_path, capsys):
    """Run on small images; returns what was printed for each model, and the picture."""

    def run(*arguments: object) -> tuple[list[str], Image.Image]:
        out = tmp_path / "field.png"
        tool.main([*map(str, arguments), "--size", "32", "--out", str(out), "--force"])
        *lines, last = capsys.readouterr().out.splitlines()
        assert last == f"wrote {out}"
        with Image.open(out) as picture:
            return lines, picture.convert("RGB")

    return run


def sides(line: str) -> list[int]:
    return [int(side) for side in re.findall(r"within (\d+) pixels", line)]


def test_side_by_side(run, classifier, segmentor, transformer):
    lines, picture = run(classifier, segmentor, transformer, classifier, "--num-images", "2", "--num-seeds", "2")
    names = ["classifier", "segmentor", "transformer", "4: classifier"]
    assert [line.split(",")[0] for line in lines] == names
    for line in lines:
        assert "random initial weights: 50 % within" in line
        half, nearly_all = sides(line)
        assert 1 <= half < nearly_all <= 32
    assert lines[0] == lines[3].removeprefix("4: "), "the same images, and the same initial weights"
    assert picture.width > 3 * picture.height / 2
    assert len(picture.getcolors(2**24)) > 1000


def test_measures_the_backbone_on_normalised_images(tool, classifier):
    """The mean over images and initialisations, in eval mode: the config has dropout and stochastic depth."""
    cfg = Config.fromfile(classifier)
    images = list(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8))
    expected = torch.zeros(32, 32, dtype=torch.float64)
    for seed in range(2):
        set_random_seed(seed)
        backbone = inspection.build_model(cfg).backbone
        for image in images:
            x = (torch.from_numpy(image).permute(2, 0, 1)[None] - 120.0) / 60
            expected += receptive_field(lambda x, backbone=backbone: backbone(x)[0], x)
    torch.testing.assert_close(tool.measure(cfg, None, images, 2, -1), expected / expected.sum(), rtol=1e-4, atol=1e-9)


def test_a_convolution_reads_its_kernel(tool, tmp_path):
    path = tmp_path / "convolution.py"
    path.write_text(CONVOLUTION)
    images = tool.load_images(tool.make_parser().parse_args([str(path), "--size", "32"]))
    field = tool.measure(inspection.read_config(str(path), {}), None, images, 1, -1)
    read = torch.zeros(32, 32, dtype=torch.bool)
    read[14:19, 14:19] = True  # around pixel 2 * 8, of which the centre of the map is made
    assert torch.equal(field > 0, read)


def test_images_that_are_too_small(tool, tmp_path, capsys):
    path = tmp_path / "convolution.py"
    path.write_text(CONVOLUTION.replace("padding=2", "padding=0"))
    said = error_of(tool.main, capsys, path, "--size", "4", "--out", tmp_path / "out.png")
    assert re.match(r"config .*convolution.py, images of 4x4: .*Kernel size", said)


def test_images_of_a_folder(tool, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 50, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no image")

    def load(count: int, size: int) -> np.ndarray:
        options = ["CONFIG", "--images", tmp_path, "--num-images", count, "--size", size]
        return np.stack(tool.load_images(tool.make_parser().parse_args([str(option) for option in options])))

    assert np.array_equal(load(9, 32), pixels[:, :, 9:41, ::-1]), "the centre squares, in BGR"
    assert np.array_equal(load(3, 32), load(9, 32)[::2])
    assert load(1, 20).shape == (1, 20, 20, 3)


def test_checkpoints_and_stages(run, classifier, transformer, tmp_path):
    for path in (classifier, transformer):
        cfg = inspection.read_config(str(path), {})
        torch.save({"state_dict": inspection.build_model(cfg).state_dict()}, tmp_path / f"{path.stem}.pth")
    checkpoints = [tmp_path / "classifier.pth", tmp_path / "transformer.pth"]
    deep, _ = run(classifier, transformer, "--checkpoint", *checkpoints)
    assert [line.split(":")[0] for line in deep] == [
        "classifier, weights of classifier.pth",
        "transformer, weights of transformer.pth",
    ]


def test_stages(run, segmentor, classifier):
    (deep,), _ = run(segmentor)
    (same,), _ = run(segmentor, "--stage", "1")
    (shallow,), _ = run(segmentor, "--stage", "0")
    assert deep == same
    assert sides(shallow)[1] < sides(deep)[1], "a first stage sees less"
    (option,), _ = run(classifier, "--cfg-options", "model.backbone.out_indices=0")
    assert sides(option)[1] < 32


MISTAKES = [
    (["--checkpoint", "a.pth"], "--checkpoint: expected one for each config, 2, got 1"),
    (["--checkpoint", "a.pth", "b.pth"], "--checkpoint a.pth: no such file"),
    (["--checkpoint", "a.pth", "b.pth", "--num-seeds", "2"], "--num-seeds: is about random weights"),
    (["--images", "none"], "--images none: no such folder"),
    (["--images", "{empty}"], "--images .*empty: no images in it"),
    (["--size", "0"], "argument --size: expected a whole number from 1 on, got '0'"),
    (["--num-images", "x"], "argument --num-images: expected a whole number from 1 on, got 'x'"),
    (["--stage", "1"], r"--stage 1: the backbone of .*classifier.py returns 1 map\(s\)"),
    (["--cfg-options", "model.backbone.ranks=3"], "config .*classifier.py: .*rank=3: expected a divisor"),
    (["--out", "field.pdf"], "--out field.pdf: expected the name of a .png file"),
    (["none.py"], "config none.py: no such file"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes(tool, classifier, transformer, tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out.png"
    rest = [argument.format(empty=tmp_path / "empty") for argument in arguments]
    configs = rest if rest[0].endswith(".py") else [str(classifier), str(transformer), *rest]
    assert re.match(message, error_of(tool.main, capsys, "--out", out, *configs))
    assert not out.exists()
