"""tools/visualize_attention.py: what it says is what the model does, and clear words about mistakes."""

import re
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from helpers.browser import opened
from helpers.command_line import error_of
from helpers.tool_loader import load_tool
from mmengine.config import Config
from mmengine.registry import MODELS
from PIL import Image

from fma_mm.analysis.attention_map import capture_inputs, query_attention


@pytest.fixture(scope="module")
def tool():
    return load_tool("visualize_attention")


@pytest.fixture
def image(tmp_path) -> Path:
    """50 x 36 pixels: 13 x 9 tokens in the first stage, 7 x 5 in the second."""
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (36, 50, 3), dtype=np.uint8)).save(path)
    return path


def shares(printed: str) -> list[float]:
    return [float(share) for share in re.findall(r"([\d.]+) % of the attention", printed)]


@pytest.fixture
def trained(classifier, tmp_path) -> tuple[torch.nn.Module, Path]:
    """A classifier whose attention is far from uniform, and its checkpoint."""
    torch.manual_seed(3)
    backbone = MODELS.build(Config.fromfile(classifier).model.backbone).eval()
    for name, parameter in backbone.named_parameters():
        if "qkv" in name or "basis" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    state = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    state |= {"head.fc.weight": torch.zeros(1000, 16), "head.fc.bias": torch.zeros(1000)}
    torch.save({"state_dict": state}, tmp_path / "model.pth")
    return backbone, tmp_path / "model.pth"


@pytest.mark.parametrize(
    ("options", "stage", "token", "head"),
    [([], 0, (8, 12), slice(None)), (["--stage", "1", "--block", "0", "--head", "1"], 1, (4, 6), slice(1, 2))],
)
def test_shows_the_attention_of_the_checkpoint(
    tool, classifier, trained, image, tmp_path, capsys, options, stage, token, head
):
    backbone, checkpoint = trained
    out = tmp_path / "new" / "attention.png"
    arguments = [image, "--config", classifier, "--checkpoint", checkpoint, "--point", "49,35", "--out", out, *options]
    tool.main([str(argument) for argument in arguments])
    printed = capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.format == "PNG" and min(picture.size) >= 500
        assert len(picture.convert("RGB").getcolors(2**24)) > 1000

    module = backbone.stages[stage].blocks[0].attn
    inputs = (torch.from_numpy(mmcv.imread(str(image))).permute(2, 0, 1)[None] - 120.0) / 60
    tokens, hw_shape = capture_inputs(module, lambda: backbone(inputs))
    weights = query_attention(module, tokens[0], hw_shape, token).weights
    expected = torch.stack([level.sum(1)[head].mean() for level in weights])
    assert len(expected) == (3, 2)[stage]
    assert shares(printed) == pytest.approx((100 * expected).tolist(), abs=0.006)
    assert "weights of model.pth" in printed and "random" not in printed
    assert f"column {token[1]}, row {token[0]} of" in printed


@pytest.mark.parametrize("config", ["classifier", "segmentor"])
@pytest.mark.parametrize(("attention", "levels"), [("fma", 3), ("fma_linear", 3), ("near", 1), ("full", 1)])
def test_without_a_checkpoint_says_that_weights_are_random(
    tool, request, image, tmp_path, monkeypatch, capsys, config, attention, levels
):
    path = request.getfixturevalue(config)
    path.write_text(path.read_text().replace('type="FMA2D",', f'type="FMA2D", attention="{attention}",'))
    monkeypatch.chdir(tmp_path)
    arguments = [str(image), "--config", str(path), "--point", "0,0"]
    tool.main(arguments)
    printed = capsys.readouterr().out
    assert f"{config}, random initial weights\n" in printed
    assert len(shares(printed)) == levels and sum(shares(printed)) == pytest.approx(100, abs=0.02)
    assert printed.endswith("wrote picture_attention.png\n")

    before = Path("picture_attention.png").read_bytes()
    with pytest.raises(SystemExit):
        tool.main(arguments)
    assert "picture_attention.png: exists already; choose another name" in capsys.readouterr().err
    assert Path("picture_attention.png").read_bytes() == before
    tool.main([*arguments[:-1], "30,30", "--force"])
    assert Path("picture_attention.png").read_bytes() != before


def test_initial_weights_may_be_pretrained(tool, classifier, trained, image, tmp_path, capsys):
    def init_from(checkpoint: Path) -> str:
        init = f'init_cfg=dict(type="Pretrained", checkpoint="{checkpoint}", prefix="backbone.")'
        (tmp_path / "pretrained.py").write_text(classifier.read_text().replace('"FMA2D",', f'"FMA2D", {init},'))
        arguments = [image, "--point", "9,9", "--config", tmp_path / "pretrained.py", "--out", tmp_path / "out.png"]
        tool.main([*map(str, arguments), "--force"])
        return capsys.readouterr().out

    printed = init_from(trained[1])
    assert "pretrained, initial weights of the config's init_cfg\n" in printed
    tool.main([str(a) for a in [image, "--point", "9,9", "--config", classifier, "--checkpoint", trained[1],
                                "--out", tmp_path / "same.png"]])  # fmt: skip
    assert shares(printed) == shares(capsys.readouterr().out)
    with pytest.raises(SystemExit):
        init_from(tmp_path / "none.pth")
    assert re.fullmatch(".*error: config .*pretrained.py: no initial weights: .*none.pth.*\n", capsys.readouterr().err)


def test_full_attention_is_called_that(tool, classifier, tmp_path, capsys):
    Image.new("RGB", (16, 12), "gray").save(tmp_path / "small.png")
    arguments = [str(tmp_path / "small.png"), "--config", str(classifier), "--point", "5,5", "--stage", "0"]
    tool.main([*arguments, "--out", str(tmp_path / "small_attention.png")])
    printed = capsys.readouterr().out
    assert "no far levels: this is full attention" in printed
    assert re.search(r"all tokens +12 read  100.00 %", printed)


def test_more_levels_than_colors(tool, classifier, tmp_path, capsys):
    classifier.write_text(classifier.read_text().replace("cell_sizes=2", "cell_sizes=1"))
    Image.new("RGB", (280, 4), "gray").save(tmp_path / "wide.png")
    arguments = [str(tmp_path / "wide.png"), "--config", str(classifier), "--point", "5,2"]
    tool.main([*arguments, "--out", str(tmp_path / "wide_attention.png")])
    assert len(shares(capsys.readouterr().out)) == 7


def test_a_page_for_the_browser(tool, browser, classifier, trained, image, tmp_path, capsys):
    backbone, checkpoint = trained
    given = [image, "--config", classifier, "--checkpoint", checkpoint, "--html", tmp_path / "a.html"]
    given = [str(argument) for argument in given]
    tool.main(given)
    assert capsys.readouterr().out.endswith(f"wrote {tmp_path / 'a.html'}\n")
    inputs = (torch.from_numpy(mmcv.imread(str(image))).permute(2, 0, 1)[None] - 120.0) / 60
    with opened(browser, tmp_path / "a.html") as page:
        assert page.locator("#layer option").all_inner_texts() == ["stage 0, block 0", "stage 1, block 0"]
        for stage, token, side in ((0, (8, 12), 4), (1, (4, 6), 8)):
            page.select_option("#layer", str(stage))
            # The pixel (49, 35), the last one: the canvas shows the image in full.
            area = page.locator("#view canvas").bounding_box()
            page.mouse.move(*(area[at] + (49, 35)[i] * area["width"] / 50 for i, at in enumerate("xy")))
            assert page.inner_text("#query") == f"Query: row {token[0]}, column {token[1]}"
            assert page.evaluate("data.input.strides[state.layer]") == side
            module = backbone.stages[stage].blocks[0].attn
            tokens, hw_shape = capture_inputs(module, lambda: backbone(inputs))
            weights = query_attention(module, tokens[0], hw_shape, token).weights
            expected = [100 * level.mean(0).sum().item() for level in weights]
            printed = [float(share) for share in re.findall(r"([\d.]+) %", page.inner_text("#levels"))]
            assert printed == pytest.approx(expected, abs=0.006)

    before = (tmp_path / "a.html").read_bytes()
    assert "a.html: exists already; choose another name" in error_of(tool.main, capsys, *given)
    assert (tmp_path / "a.html").read_bytes() == before
    tool.main([*given, "--force", "--stage", "1"])
    assert len((tmp_path / "a.html").read_bytes()) < len(before)


MISTAKES = [
    (["--html", "a.html"], "argument --html: not allowed with argument --point"),
    (["--point", "50,3"], "--point 50,3: expected x from 0 to 49 and y from 0 to 35, the image"),
    (["--point=-1,3"], "--point -1,3: expected x"),
    (["--point", "3"], "argument --point: expected two whole numbers x,y, got '3'"),
    (["--head", "first"], "argument --head: expected the number of a head or mean, got 'first'"),
    (["--head", "1"], "--head 1: expected 0 to 0, the heads of stage 0, or mean"),
    (["--stage", "2"], "--stage 2: expected 0 to 1, the backbone's stages"),
    (["--stage", "-1"], "--stage -1: expected 0 to 1"),
    (["--block", "1"], "--block 1: expected 0 to 0, the blocks of stage 0"),
    (["--checkpoint", "none.pth"], "--checkpoint none.pth: no such file"),
    (["--config", "none.py"], "config none.py: no such file"),
    (["--out", "picture.jpg"], "--out picture.jpg: expected the name of a .png file"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes(tool, classifier, image, tmp_path, capsys, arguments, message):
    out = tmp_path / "out.png"
    given = [image, "--config", classifier, "--point", "3,3", "--out", out]
    assert re.match(message, error_of(tool.main, capsys, *given, *arguments))
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--html", "a.html", "--head", "0"], "--head 0: expected with --point alone; the page has all heads"),
        (["--html", "a.html", "--out", "a.png"], "--out a.png: expected with --point alone"),
        (["--html", "a.png"], "--html a.png: expected the name of a .html file"),
        (["--html", "a.html", "--stage", "2"], "--stage 2: expected 0 to 1, the backbone's stages"),
        (["--html", "a.html", "--block", "1"], "--block 1: expected 0 to 0, the blocks of the stages"),
        (["--html", "a.html", "--cfg-options", "model.backbone.attention=none"], "--html a.html: attention='none'"),
    ],
)
def test_mistakes_of_pages(tool, classifier, image, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert error_of(tool.main, capsys, image, "--config", classifier, *arguments).startswith(message)
    assert not (tmp_path / "a.html").exists()


def test_an_image_that_is_not_there(tool, classifier, tmp_path, capsys):
    given = [tmp_path / "image.png", "--config", classifier, "--point", "3,3", "--out", tmp_path / "out.png"]
    assert error_of(tool.main, capsys, *given) == f"image {tmp_path / 'image.png'}: no such file"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('type="FMA2D"', 'type="SwinTransformer"', "its backbone is SwinTransformer, not FMA2D"),
        ('type="FMA2D"', 'type="Nothing"', "its backbone is Nothing, not FMA2D"),
        ("model = dict(", "model = None; unused = dict(", "it has no model with a backbone"),
        ("cell_sizes=2", "cell_sizes=0", ".*cell_size=0: expected an integer >= 1"),
    ],
)
def test_mistakes_in_the_config(tool, classifier, image, tmp_path, capsys, old, new, message):
    classifier.write_text(classifier.read_text().replace(old, new, 1))
    given = [image, "--config", classifier, "--point", "3,3", "--out", tmp_path / "out.png"]
    assert re.match(f"config .*classifier.py: {message}", error_of(tool.main, capsys, *given))
