"""tools/export_lm.py on the weights that ship: a file that continues a text as fairseq does."""

import re

import pytest
from helpers.command_line import error_of
from helpers.tool_loader import load_tool

from fma_kernels.export import open_onnx
from fma_tools.language_models import exporting

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

tool, continue_text = load_tool("export_lm"), load_tool("continue_text")


@pytest.fixture
def weights():
    return continue_text.shipped_checkpoint()


@pytest.mark.slow
def test_a_step_continues_a_text(weights, tmp_path, capsys, one_thread):
    out = tmp_path / "step.onnx"
    tool.main([str(weights), "--data", str(weights.parent), "--length", "300", "--step", "--out", str(out)])
    said = capsys.readouterr().out
    assert re.search(r"state +\d+\.\d KiB per sequence in 6 tensors", said) and "opset 20" in said
    continue_text.main(["import os", "--length", "40", "--onnx", str(out)])
    text = capsys.readouterr().out
    assert text.startswith("import os") and len(text.encode()) == 9 + 40 + 1
    message = error_of(continue_text.main, capsys, "import os", "--length", "300", "--onnx", out)
    assert message.endswith("position=300: expected less than the 300 tokens of the file")


@pytest.mark.slow
def test_a_file_of_a_whole_sequence(weights, tmp_path, capsys, one_thread, monkeypatch):
    out = tmp_path / "model.onnx"
    programs, trace, save = [], exporting.export_program, exporting.save_onnx  # traces once for two files
    monkeypatch.setattr(exporting, "export_program", lambda *args: programs[0] if programs else trace(*args))

    def save_and_keep(program, *args, **options):
        programs.append(program)
        save(program, *args, **options)

    monkeypatch.setattr(exporting, "save_onnx", save_and_keep)
    options = ["--data", str(weights.parent), "--length", "70", "--batch", "2", "--out", str(out)]
    tool.main([str(weights), *options])
    assert "difference" in capsys.readouterr().out
    (given,), (found,) = open_onnx(out).get_inputs(), open_onnx(out).get_outputs()
    assert given.shape == [2, 70] and found.shape[:2] == [2, 70]
    message = error_of(continue_text.main, capsys, "a", "--onnx", out)
    assert "inputs=['tokens']: expected a file of tools/export_lm.py --step" in message
    assert "expected a new file; it exists" in error_of(tool.main, capsys, weights, *options)
    options[-1] = str(tmp_path / "other.onnx")
    assert "difference=" in error_of(tool.main, capsys, weights, *options, "--tolerance", "1e-12")
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.pt"], "checkpoint missing.pt: no such file"),
        (["{weights}", "--data", "missing"], "--data missing: no dict.txt in it"),
        (["{weights}", "--length", "0"], "--length 0: expected at least 1"),
        (["{weights}", "--tolerance", "-1"], "--tolerance -1.0: expected a number above 0"),
    ],
)
def test_mistakes(arguments, message, weights, tmp_path, capsys):
    arguments = [argument.replace("{weights}", str(weights)) for argument in arguments]
    given = ["--length", "8", "--data", str(weights.parent), "--out", str(tmp_path / "a.onnx")]
    assert message in error_of(tool.main, capsys, *given, *arguments)
