"""The script that compares attentions of language models: mistakes are named before work starts."""

from pathlib import Path

import pytest
from helpers.tool_loader import load_tool

tool = load_tool("compare_lm")
CONFIG = Path(__file__).parents[2] / "configs/lm/stdlib.yaml"


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--context", "0"], "--context: 0, expected an integer >= 1"),
        (["--context", "64", "--samples", "0"], "--samples: 0, expected an integer >= 1"),
        (["--context", "64"], "expected a folder that fairseq-preprocess wrote"),
    ],
)
def test_mistakes_are_named_before_work_starts(flags, message, tmp_path, capsys):
    argv = [str(CONFIG), "--data", str(tmp_path), "--attention", "fma", "--out", str(tmp_path / "out"), *flags]
    with pytest.raises(SystemExit) as exit:
        tool.main(argv)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
