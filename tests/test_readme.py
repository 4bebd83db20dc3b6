"""The README is true: its code runs, its files and targets exist, its figures are those of the measurements."""

import json
import re
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_plain_pytorch_example_is_two_lines_that_run():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    one_call, more = [block for block in blocks if "fma_kernels" in block]
    assert len(one_call.splitlines()) == 2
    names = {}
    exec(one_call, names)
    assert names["out"].shape == (1, 8, 16384, 64)
    assert names["out"].isfinite().all()
    # Random keys weigh about the same: the output is near the mean of the values, which have a standard deviation of 1.
    assert names["out"].std() < 0.2
    exec(more, names)
    assert names["out"].shape == (1, 8, 64 * 48, 64) and names["y"].shape == (2, 4096, 512)


def test_weights_example_runs(tmp_path, capsys):
    import numpy as np
    from PIL import Image

    import fma_mm

    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "PICTURE.jpg" in block]
    picture = tmp_path / "PICTURE.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(picture)
    exec(code.replace("PICTURE.jpg", str(picture)), {})
    printed = capsys.readouterr().out.strip()  # behind the bar of progress that mmpretrain draws
    classes = fma_mm.get_model("fma2d-nano_b64-33k_cifar10", pretrained=True)._dataset_meta["classes"]
    assert printed.endswith(tuple(classes))


def test_config_example_builds():
    from mmengine.config import Config
    from mmengine.registry import MODELS

    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "custom_imports" in block]
    cfg = Config.fromstring(code.replace("    ...)", ")"), ".py")
    backbone = MODELS.build(cfg.model.backbone)
    assert [x.shape[1] for x in backbone(torch.zeros(1, 3, 64, 64))] == [96, 192, 384, 768]


def test_conversion_example_runs():
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "convert_attention" in block]
    names = {}
    exec(code, names)
    bases = {name.split("_basis")[0] for name, _ in names["model"].named_parameters() if "_basis" in name}
    assert len(bases) == 2 * 8  # of keys and of values, in eight layers
    with torch.no_grad():
        assert names["model"].eval()(torch.rand(1, 3, 224, 224)).isfinite().all()


def test_paths_and_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([\w-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    paths = re.findall(
        r"\]\(([^):]+)\)|src=\"([^\"]+)\"|((?:configs|tools)/[\w./-]+)|^\| `([\w/]+/)`", README, re.MULTILINE
    )
    paths = {path for group in paths for path in group if path}
    assert len(paths) > 10
    for path in paths:
        path, _, anchor = path.partition("#")
        assert (ROOT / path).exists(), path
        titles = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [title.lower().replace(" ", "-") for title in titles], anchor


def test_speed_table_is_the_measured_one():
    rows = json.loads((ROOT / "benchmarks/results/attention-cpu.json").read_text())["rows"]
    times = {(row["method"], tuple(row["grid"])): (row["forward_ms"], row["forward_backward_ms"]) for row in rows}
    measured = []
    for grid in [(1024,), (4096,), (16384,), (32, 32), (64, 64), (128, 128)]:
        ratios = [full / fma for full, fma in zip(times["SDPA", grid], times["FMA", grid], strict=True)]
        measured.append(" / ".join(f"{ratio:.1f}x" for ratio in ratios))
    (line,) = re.findall(r"^\| FMA \|(.*)\|$", README, re.MULTILINE)
    assert [cell.strip(" *") for cell in line.split("|")] == measured
