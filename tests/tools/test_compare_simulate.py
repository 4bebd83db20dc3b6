"""tools/compare.py --simulate: tables that add up, for configs of mmpretrain and mmseg and for recipes of lm."""

import json

import pytest
import torch
from helpers.command_line import error_of
from helpers.tool_loader import TOOLS, load_tool

from fma_kernels.measure import peak_mib
from fma_mm.analysis.memory import CATEGORIES
from fma_tools.language_models.recipes import Variant
from fma_tools.memory_report import stage_of

CONFIGS = TOOLS.parent / "configs"


@pytest.fixture(scope="module")
def tool():
    return load_tool("compare")


@pytest.fixture
def simulate(tool, tmp_path, capsys):
    def run(*arguments: object, out: str = "out") -> tuple[dict, str]:
        tool.main([*map(str, arguments), "--simulate", "--out", str(tmp_path / out)])
        printed = capsys.readouterr().out
        assert (tmp_path / out / "memory.png").stat().st_size > 1000
        result = json.loads((tmp_path / out / "memory.json").read_text())
        for row in result["rows"].values():
            assert sum(row[category] for category in CATEGORIES) == row["peak"]
            assert sum(row["stages"].values()) == sum(row["kinds"].values()) == row["activations"]
        return result, printed

    return run


def test_classifiers(simulate):
    """Labels, mixed labels; a batch twice as large needs about twice the activations."""
    configs = [CONFIGS / "imagenet" / f"{name}.py" for name in ("fma2d-tiny_8xb128_in1k", "vit-base-p16_8xb128_in1k")]
    rows = {}
    for batch in (64, 128):
        result, printed = simulate(*configs, "--batch-size", batch, "--image-size", 96, out=str(batch))
        assert result["command"].startswith("python tools/compare.py") and "GiB" in printed
        rows[batch] = result["rows"]
    for name, row in rows[128].items():
        assert row["parameters"] >= 4 * row["weights"]
        assert row["optimizer"] == pytest.approx(8 * row["weights"], rel=0.01)
        assert row["activations"] == pytest.approx(2 * rows[64][name]["activations"], rel=0.2)
        assert row["inputs"] > 4 * 128 * 3 * 96 * 96
    assert "backbone.stages.0" in rows[128]["fma2d-tiny_8xb128_in1k"]["stages"]
    assert "Conv2d" in rows[128]["fma2d-tiny_8xb128_in1k"]["kinds"]


def test_precision_optimizer_and_backbone(simulate):
    config, size = CONFIGS / "imagenet" / "fma2d-tiny_8xb128_in1k.py", ["--batch-size", "128", "--image-size", "96"]
    name = config.stem
    half, full, plain = (
        simulate(config, *size, "--backbone", *more, out=str(i))[0]["rows"][name]
        for i, more in enumerate(([], ["--precision", "fp32"], ["--optimizer", "sgd"]))
    )
    assert half["activations"] < 0.8 * full["activations"]
    assert plain["optimizer"] == 0 < half["optimizer"]


def test_segmentors(simulate):
    config = CONFIGS / "ade20k" / "fma2d-tiny_segformer_8xb2-160k_ade20k-512x512.py"
    result, _ = simulate(config, "--batch-size", 32, "--image-size", 64, 96)
    (row,) = result["rows"].values()
    assert {"decode_head", "backbone.stages.0"} <= {stage.partition(".convs")[0] for stage in row["stages"]}


@pytest.mark.slow
def test_recipes(simulate):
    """A decoder: keys and values of full attention are as long as its context, whatever reads them."""
    arguments = [CONFIGS / "lm" / "stdlib.yaml", "--attention", "full", "fma:cell=32,rank=2", "fma-linear"]
    result, _ = simulate(*arguments, "--tokens", 256, 512)
    rows = result["rows"]
    assert [*rows] == [
        f"stdlib, {tokens}, {name}" for tokens in (256, 512) for name in ("full", "fma:cell=32,rank=2", "fma-linear")
    ]
    for name in ("full", "fma-linear"):
        assert rows[f"stdlib, 512, {name}"]["activations"] > 1.8 * rows[f"stdlib, 256, {name}"]["activations"]


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["full", "near", "fma", "fma-linear", "h-transformer"])
def test_recipes_as_measured(attention):
    """Within 5 % of what PyTorch's allocator gives out on the CPU."""
    from fma_tools.language_models.simulation import simulate_recipe, training

    case = (CONFIGS / "lm" / "stdlib.yaml", Variant.parse(attention), 512, 4, 260)

    def train():
        model, loss = training(*case)
        optimizer = torch.optim.Adam(model.train().parameters(), foreach=False)
        for _ in range(2):
            value, batch = loss()
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            del value, batch

    train()  # tables that are kept per geometry are nobody's
    _, peak = simulate_recipe(*case, "fp32")
    assert peak.size / 2**20 == pytest.approx(peak_mib(train, torch.device("cpu")), rel=0.05)


@pytest.mark.parametrize(
    ("module", "stage"),
    [
        ("backbone.stages.1.blocks.0.ffn.act", "backbone.stages.1"),
        ("layers.11", "layers.11"),
        ("decode_head.fusion_conv.conv", "decode_head"),
        ("", "the model itself"),
    ],
)
def test_stages(module, stage):
    assert stage_of(module) == stage


def test_mistakes(tool, tmp_path, capsys):
    config = str(CONFIGS / "imagenet" / "vit-base-p16_8xb128_in1k.py")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for arguments, message in [
        ([config, "--out", str(tmp_path / "full")], "it is there and not empty"),
        ([config, "--batch-size", "0"], "--batch-size 0: expected 1 or more"),
        ([config, "--image-size", "1", "2", "3"], "--image-size 1 2 3: expected one or two numbers"),
        (["no.yaml", "--out", str(tmp_path / "a")], "config no.yaml: there is no such file"),
        (["no.py", "--out", str(tmp_path / "b")], "no.py"),
        ([config, config, "--batch-size", "1", "--out", str(tmp_path / "c")], "the names of the files must differ"),
    ]:
        assert message in error_of(tool.main, capsys, *arguments, "--simulate")
