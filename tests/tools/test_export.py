"""tools/export.py and tools/test.py --onnx: files compute what the model computes; mistakes are named."""

import importlib.util
import json
import pickle
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.command_line import error_of
from helpers.tool_loader import load_tool
from mmengine.config import Config
from mmengine.registry import MODELS

from fma_mm.deployment import OnnxNetwork, run_by_onnx

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

tool = load_tool("export")
ROOT = Path(__file__).parents[2]
DIGITS = "configs/demo/fma2d_digits.py"
SEGMENTOR = """
default_scope = "mmseg"
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(type="SegDataPreProcessor", mean=[90.0, 100.0, 110.0], std=[50.0, 60.0, 70.0],
                           bgr_to_rgb=True),
    backbone=dict(type="FMA2D", arch=dict(embed_dims=8, depths=(1, 1), num_heads=(1, 2)), patch_sizes=3, strides=2,
                  cell_sizes=2, img_size=48, attention="fma_linear", out_indices=(0, 1)),
    decode_head=dict(type="SegformerHead", in_channels=[8, 16], in_index=[0, 1], channels=8, num_classes=4,
                     norm_cfg=dict(type="SyncBN"), align_corners=False),
    test_cfg=dict(mode="whole"),
)
"""
CONVERTED = """
custom_hooks = [dict(type="ConvertAttentionHook", cell_size=2, rank=2, attention="fma")]
"""


@pytest.fixture
def export(tmp_path, capsys, one_thread):
    """Export in this process to a file of that name: the file, and what is printed."""

    def export(config, checkpoint, name, *arguments):
        out = tmp_path / name
        tool.main([*map(str, [config, *([checkpoint] if checkpoint else []), *arguments]), "--out", str(out)])
        return out, capsys.readouterr().out

    return export


def save_weights(config, path):
    """A checkpoint of random weights, that of bases too."""
    torch.manual_seed(0)
    model = tool.cli.build_model(Config.fromfile(config))
    for name, parameter in model.named_parameters():
        parameter.data += (0.2 if "_basis" in name else 0.05) * torch.randn_like(parameter)
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


def test_a_file_has_the_metric_of_its_checkpoint(export, evaluate, tmp_path):
    checkpoint = save_weights(DIGITS, tmp_path / "weights.pth")
    out, said = export(DIGITS, checkpoint, "digits.onnx", "--size", 48, "--normalize", "--time", 1)
    assert re.search(r"input +image \(1, 3, 48, 48\), pixels", said)
    assert re.search(r"time +PyTorch \d+.\d ms, file \d+.\d ms, \d.\d+ times as long; 1 thread", said)
    assert re.search(r"outputs +logits \(10,\)", said) and "opset 20" in said and "MatMul" in said
    found = []
    for source in ([str(checkpoint)], ["--onnx", str(out)]):
        name = f"experiment_name={len(found)}{tmp_path.name}"
        written = [tmp_path / f"{len(found)}.pkl", tmp_path / f"{len(found)}.json"]
        for path, more in zip(written, ([], ["--out-item", "metrics"]), strict=True):
            work_dir = ["--work-dir", str(tmp_path / "run")]
            evaluate.main([DIGITS, *source, *work_dir, "--out", str(path), *more, "--cfg-options", name + path.suffix])
        found.append((pickle.loads(written[0].read_bytes()), json.loads(written[1].read_text())))
    (predictions, metrics), (by_onnx, metrics_by_onnx) = found
    assert metrics["accuracy/top1"] == metrics_by_onnx["accuracy/top1"] and len(predictions) == len(by_onnx) > 300
    for a, b in zip(predictions, by_onnx, strict=True):
        torch.testing.assert_close(a["pred_score"], b["pred_score"], rtol=0, atol=1e-5)
    check_server(tmp_path, [x["pred_label"].item() for x in predictions])


def check_server(folder, predicted):
    """The example of docs/export.md, where PyTorch cannot be imported, says what the model says."""
    from fma_mm.datasets.digits import read_digits

    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/export.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "http.server" in block]
    (folder / "serve.py").write_text("import sys\nsys.modules['torch'] = None\n" + code)
    command = [sys.executable, "serve.py", "0"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            port = server.stdout.readline().split()[-1]
            for picture, digit in list(zip(read_digits("val")[1], predicted, strict=True))[:5]:
                body = cv2.imencode(".png", picture)[1].tobytes()
                with urllib.request.urlopen(f"http://127.0.0.1:{port}", body, timeout=30) as answer:
                    assert json.load(answer) == {"digit": digit}
        finally:
            server.kill()


def test_a_segmentor_gives_maps_of_the_size_of_the_image(export, tmp_path):
    config = tmp_path / "segmentor.py"
    config.write_text(SEGMENTOR)
    checkpoint = save_weights(config, tmp_path / "weights.pth")
    out, said = export(config, checkpoint, "maps.onnx", "--size", 36, 52, "--normalize", "--batch", 2)
    assert re.search(r"outputs +logits \(4, 36, 52\)", said)
    model = MODELS.build(Config.fromfile(config).model).eval()
    model.load_state_dict(torch.load(checkpoint)["state_dict"])
    images = [torch.randint(0, 256, (3, 36, 52), dtype=torch.uint8) for _ in range(3)]  # the file takes two
    with torch.no_grad():
        expected = model.test_step(dict(inputs=images))
        run_by_onnx(model, out)
        model.backbone = model.decode_head = None  # no layer of the model is used any more
        found = model.test_step(dict(inputs=images))
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a.seg_logits.data, b.seg_logits.data, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"image.shape=\(1, 3, 32, 32\): expected images of \[36, 52\]"):
        OnnxNetwork(out)(torch.zeros(1, 3, 32, 32))


def test_a_converted_vit_in_half_precision(export, vit):
    vit.write_text(vit.read_text() + CONVERTED)
    out, said = export(vit, None, "vit.onnx", "--size", 32, "--fp16")
    assert "weights    random initial weights" in said and "at most 0.02 allowed" in said
    network = OnnxNetwork(out)
    assert network(torch.zeros(1, 3, 32, 32))[0].dtype == torch.float32
    assert {x.data_type for x in onnx.load(out).graph.initializer} >= {10}  # float16


def test_feature_maps_on_a_picture(export, tmp_path, monkeypatch):
    from PIL import Image

    config, picture = tmp_path / "segmentor.py", tmp_path / "a.png"
    config.write_text(SEGMENTOR)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(picture)
    options = ["--size", 40, "--part", "backbone", "--format", "pt2", "--image", picture]
    out, said = export(config, None, "features.pt2", *options)
    assert re.search(r"outputs +features0 \(8, 20, 20\), features1 \(16, 10, 10\)", said) and f"on {picture}" in said
    features = torch.export.load(out).module()(torch.zeros(1, 3, 40, 40))
    assert [x.shape for x in features] == [(1, 8, 20, 20), (1, 16, 10, 10)]
    monkeypatch.setattr("fma_tools.exporting.export_program", lambda *args, **options: torch.export.load(out))
    with pytest.raises(SystemExit):
        export(config, None, "other.pt2", *options, "--tolerance", "1e-12")
    assert not (tmp_path / "other.pt2").exists()


MISTAKES = [
    (["--size", "dynamic"], "--size: 'dynamic': expected a number of pixels: the levels .* export one file per size"),
    (["--size", "1", "2", "3"], "--size 1 2 3: expected one or two numbers"),
    (["--size", "48", "--batch", "0"], "--batch: '0': expected a number >= 1, or 'dynamic'"),
    (["--size", "48", "--tolerance", "0"], "--tolerance 0.0: expected a number above 0"),
    (["--size", "48", "--image", "missing.png"], "--image missing.png: no such file"),
    (["missing.pth", "--size", "48"], "checkpoint missing.pth: no such file"),
    (["--size", "48", "--out", "{file}"], "--out .*: expected a new file; it exists"),
    (["--size", "48", "--normalize", "--cfg-options", "data_preprocessor.mean=None"], "normalize=True: expected False"),
    (["--size", "48", "--part", "backbone", "--cfg-options", "model.type=FMA2D"], "its model cannot be built"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda x: "" if isinstance(x, list) else x[:30])
def test_mistakes(arguments, message, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = [argument.replace("{file}", str(tmp_path / "file")) for argument in arguments]
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "a.onnx")]
    assert re.search(message, error_of(tool.main, capsys, DIGITS, *arguments, *out))
    assert not (tmp_path / "a.onnx").exists()


def test_missing_packages_are_named_before_work_starts(monkeypatch, tmp_path, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == "onnx" else find(name, *more))
    message = error_of(tool.main, capsys, DIGITS, "--size", 48, "--out", tmp_path / "a.onnx")
    assert message == "onnx not installed: expected fma-mm[export] for ONNX files"


TEST_MISTAKES = [
    ([], "expected a checkpoint, or --onnx FILE in its place"),
    (["a.pth", "--onnx", "a.onnx"], "expected a checkpoint, or --onnx FILE in its place"),
    (["--onnx", "a.onnx", "--tta"], "--onnx a.onnx: works without --amp and --tta"),
    (["--onnx", "missing.onnx"], "--onnx missing.onnx: path='missing.onnx': expected an ONNX file"),
]


@pytest.mark.parametrize(("arguments", "message"), TEST_MISTAKES)
def test_mistakes_of_testing(arguments, message, evaluate, tmp_path, capsys):
    work_dir = ["--work-dir", str(tmp_path), "--cfg-options", f"experiment_name={tmp_path.name}"]
    assert message in error_of(evaluate.main, capsys, DIGITS, *arguments, *work_dir)
