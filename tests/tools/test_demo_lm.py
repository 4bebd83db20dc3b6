"""The demo of language models."""

import json

import pytest
from helpers.tool_loader import load_tool

tool = load_tool("demo_lm")


@pytest.mark.slow
def test_demo(tmp_path, capfd, monkeypatch):
    """The whole demo on a corpus and for a training so short that it takes seconds."""
    monkeypatch.setattr(tool, "SIZE", 60_000)
    monkeypatch.setattr(tool, "CONTEXT", 128)
    monkeypatch.setattr(tool, "ATTENTIONS", ["fma", "full"])
    changes = ["optimization.max_update=12", "dataset.max_tokens=1024", "lr_scheduler.warmup_updates=2"]
    tool.main(["--out", str(tmp_path / "demo"), "--set", *changes])
    out = capfd.readouterr().out
    found = json.loads((tmp_path / "demo/demo_lm.json").read_text())
    assert [row["name"] for row in found["rows"]] == tool.ATTENTIONS
    for row in found["rows"]:
        assert row["updates"] == 12
        assert 2 < row["bits"] < 7.5, "it has learned something"
        assert row["step_ms"] > 0 and row["step_mib"] > 1
        assert len(row["bits_by_quarter"]) == 4
        # 3,000 bytes of the validation split and the end of its file, in whole samples.
        assert row["tokens"] == 23 * 128
    assert (tmp_path / "demo/demo_lm.png").stat().st_size > 5000
    assert "The frequencies of bytes alone: " in out
    written = out.partition(f"continues {tool.PROMPT!r}:\n")[2]
    assert written.startswith(tool.PROMPT)
    assert len(written.encode()) > len(tool.PROMPT) + 250, "it went on, also behind newlines"
