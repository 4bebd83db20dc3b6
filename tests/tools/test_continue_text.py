"""The byte model that ships continues a text."""

import pytest
from helpers.tool_loader import load_tool

from fma_tools.language_models import recipes

tool = load_tool("continue_text")


@pytest.mark.slow
def test_a_text_goes_on(capfd):
    tool.main(["def main(", "--length", "60"])
    out = capfd.readouterr().out
    assert out.startswith("def main(") and len(out.encode()) >= 60


@pytest.mark.parametrize(
    "argv, message",
    [
        (["a\nb"], "expected one line"),
        ([""], "expected one line"),
        (["a", "--length", "0"], "--length 0: expected an integer >= 1"),
    ],
)
def test_mistakes_are_named(argv, message, capsys):
    with pytest.raises(SystemExit) as exit:
        tool.main(argv)
    assert exit.value.code == 2 and message in capsys.readouterr().err


def test_damaged_weights_are_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(recipes, "plugin", lambda: tmp_path)
    for prepare in (lambda: None, lambda: (tmp_path / "weights/fma_lm_stdlib-12345678.pt").write_bytes(b"else")):
        (tmp_path / "weights").mkdir(exist_ok=True)
        prepare()
        with pytest.raises(SystemExit):
            tool.main(["a"])
        assert "weights=" in capsys.readouterr().err
