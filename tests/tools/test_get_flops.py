import pytest
from helpers import flops_by_hand
from helpers.command_line import error_of
from helpers.tool_loader import load_tool

from fma_kernels import Hierarchy
from fma_mm import FMA2D

SMALL = dict(embed_dims=8, depths=(1, 1), num_heads=(1, 2))  # of the configs of these tests


@pytest.fixture(scope="module")
def tool():
    return load_tool("get_flops")


@pytest.fixture
def counted(tool, capsys):
    """Run the tool: the lines of its table by module, and what stands below."""

    def run(*arguments: object) -> tuple[dict[str, list[str]], dict[str, str]]:
        tool.main([str(argument) for argument in arguments])
        table, totals = capsys.readouterr().out.split("module ", 1)[1].split("\n\n")
        _, *lines = table.split("\n")
        rows = {line.strip().split()[0].rstrip(":"): line.split() for line in lines}
        return rows, dict(line.split(": ", 1) for line in totals.strip().split("\n"))

    return run


def test_classifier(counted, classifier):
    rows, totals = counted(classifier)
    flops = flops_by_hand.fma2d(8, (1, 1), 32, 2) + 16 * 1000
    backbone = FMA2D(arch=SMALL, patch_sizes=(7, 3), strides=(4, 2), cell_sizes=2, img_size=32)
    parameters = sum(p.numel() for p in backbone.parameters()) + 16 * 1000 + 1000
    assert totals["Input shape"] == "3 x 32 x 32"
    assert totals["Parameters"].strip() == f"{parameters:,}"
    assert totals["FLOPs"].strip() == f"{flops:,} multiply-adds"
    assert rows["ImageClassifier"][1:] == [f"{parameters / 1e6:.3f}", "M", f"{flops / 1e9:.3f}", "G", "100.0", "%"]
    assert {"backbone", "stages.0", "stages.1", "head"} <= rows.keys()
    assert not {"patch_embed", "blocks.0"} & rows.keys()
    shares = [float(rows[name][-2]) for name in ("backbone", "head")]
    assert sum(shares) == pytest.approx(100, abs=0.11)


def test_shape_and_depth(counted, classifier):
    for shape in (["64"], ["64", "64"]):
        rows, totals = counted(classifier, "--depth", 0, "--shape", *shape)
        assert list(rows) == ["ImageClassifier"]
        assert totals["Input shape"] == "3 x 64 x 64"
        assert totals["FLOPs"].strip().startswith(f"{flops_by_hand.fma2d(8, (1, 1), 64, 2) + 16 * 1000:,} ")
    assert counted(classifier, "--shape", 64, 96)[1]["Input shape"] == "3 x 64 x 96"
    rows, _ = counted(classifier, "--depth", 4)
    assert {"patch_embed", "blocks.0", "attn", "ffn"} <= rows.keys()


def test_options_of_the_config(counted, classifier):
    _, before = counted(classifier)
    _, after = counted(classifier, "--cfg-options", "model.backbone.arch.embed_dims=16", "model.head.in_channels=32")
    count = flops_by_hand.fma2d(16, (1, 1), 32, 2) + 32 * 1000
    assert before["FLOPs"] != after["FLOPs"] and after["FLOPs"].strip().startswith(f"{count:,} ")


def test_segmentor(counted, segmentor):
    rows, totals = counted(segmentor)
    assert totals["Input shape"] == "3 x 32 x 32"  # what the preprocessor pads to
    head = 4 * 4 * (16 * 8 * 9 + (16 + 8) * 8 * 9 + 8 * 150)  # its second convolution sees its input as well
    assert totals["FLOPs"].strip().startswith(f"{flops_by_hand.fma2d(8, (1, 1), 32, 2) + head:,} ")
    assert float(rows["decode_head"][-2]) == pytest.approx(100 - float(rows["backbone"][-2]), abs=0.11)


def test_attention_that_a_hook_converts(counted, vit):
    """The figures are of the model that is trained: 8x8 patches in cells of one, and a class token that reads all."""
    _, full = counted(vit)
    vit.write_text(vit.read_text() + "custom_hooks = [dict(type='ConvertAttentionHook', cell_size=1)]\n")
    _, converted = counted(vit)
    full, converted = (int(totals["FLOPs"].split()[0].replace(",", "")) for totals in (full, converted))
    hierarchy = Hierarchy((8, 8), 1)
    near, far, _ = flops_by_hand.pairs_of_tokens(hierarchy)
    with_class_token = 65 + 64
    summaries = 2 * flops_by_hand.nested_summaries(hierarchy)
    attention = 2 * (near + far + with_class_token) + summaries
    assert full - converted == 2 * 16 * (2 * 65 * 65 - attention)


def test_default_shape(tool):
    def shape(**cfg: object) -> tuple[int, int]:
        return tool.input_shape(tool.make_parser().parse_args(["config.py"]), tool.Config(cfg))

    assert shape() == shape(model=dict(type="A")) == (224, 224)
    assert shape(default_scope="mmseg") == (512, 512)
    assert shape(model=dict(backbone=dict(img_size=384))) == (384, 384)
    assert shape(model=dict(backbone=dict(img_size=[64, 96]))) == (64, 96)
    crop = dict(type="RandomCrop", crop_size=(480, 500))
    steps = [dict(type="LoadImageFromFile"), crop, dict(type="RandomFlip")]
    assert shape(train_pipeline=steps, model=dict(backbone=dict(img_size=384))) == (480, 500)
    resized = dict(type="mmpretrain.RandomResizedCrop", scale=96)
    assert shape(train_pipeline=[*steps, resized], default_scope="mmseg") == (96, 96)
    assert shape(model=dict(data_preprocessor=dict(size=(32, 40))), train_pipeline=steps) == (32, 40)
    assert shape(data_preprocessor=dict(size=(32, 40)), default_scope="mmseg") == (32, 40)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["none.py"], "config none.py: no such file"),
        (["{config}", "--shape", "0"], "--shape 0: expected one or two positive numbers"),
        (["{config}", "--shape", "1", "2", "3"], "--shape 1 2 3: expected one or two positive numbers"),
        (["{config}", "--depth", "-1"], "--depth -1: expected 0 or more"),
        (["{config}", "--cfg-options", "model=None"], "config {config}: it has no model"),
        (["{config}", "--cfg-options", "model.backbone.arch=huge"], "config {config}: its model cannot be built: arch"),
        (["{config}", "--cfg-options", "model.backbone.in_channels=4"], "config {config}: no forward pass over 32x32"),
    ],
)
def test_mistakes(tool, capsys, classifier, arguments, message):
    said = error_of(tool.main, capsys, *(argument.format(config=classifier) for argument in arguments))
    assert said.startswith(message.format(config=classifier))
