"""tools/visualize_text.py: the page of the byte model that ships, and clear words about mistakes."""

import re

import pytest
import torch
from helpers.browser import opened
from helpers.command_line import error_of
from helpers.tool_loader import load_tool

tool = load_tool("visualize_text")
TEXT = 'def square(x):\n\treturn x * x  # "größer"\n' * 8


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.py"
    path.write_text(TEXT)
    return path


def test_the_model_that_ships_reads_a_text(browser, text, tmp_path, capsys):
    tool.main([str(text), "--html", str(tmp_path / "a.html"), "--length", "300"])
    assert capsys.readouterr().out.endswith(f"wrote {tmp_path / 'a.html'}\n")
    with opened(browser, tmp_path / "a.html") as page:
        assert page.locator("#layer option").all_inner_texts() == ["layer 0", "layer 1"]
        shown = page.inner_text("#view")
        assert shown.startswith('def square(x):↵\n\treturn x * x  # "gr\\xc3\\xb6\\xc3\\x9fer"↵\ndef')
        assert page.locator("#view span").count() == 300
        page.hover("#view span >> nth=280")
        assert page.inner_text("#query").startswith("Query: token 280, ")
        shares = [float(share) for share in re.findall(r"([\d.]+) %", page.inner_text("#levels"))]
        assert len(shares) >= 3 and sum(shares) == pytest.approx(100, abs=0.03)
        # A causal model: no later token is shaded.
        shaded = page.evaluate("[...document.querySelectorAll('#view span')].map(span => span.style.background != '')")
        assert shaded == [i <= 280 for i in range(300)]


def test_the_tokens_are_those_of_the_corpus():
    from fma_tools.language_models.reading import open_bytes

    checkpoint = tool.shipped_checkpoint()
    model, tokens = open_bytes(checkpoint, checkpoint.parent, b"import os\nimport sys\n\ndef main(argv=None):\n")
    with torch.no_grad():
        logits = model(tokens)[0]
    bits = torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:]) / torch.log(torch.tensor(2.0))
    assert bits < 3.2  # a text of other numbers costs about 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--html", "a.png"], "--html a.png: expected the name of a .html file"),
        (["--html", "a.html", "--length", "0"], "--length 0: expected at least 1"),
        (["--html", "a.html", "--data", "lm"], "--checkpoint and --data: expected both or none"),
        (["--html", "a.html", "--data", "lm", "--checkpoint", "none.pt"], "checkpoint='none.pt': expected a file"),
    ],
)
def test_mistakes(text, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert error_of(tool.main, capsys, text, *arguments) == message
    assert not (tmp_path / "a.html").exists()


def test_other_mistakes(text, tmp_path, capsys):
    out = tmp_path / "a.html"
    assert error_of(tool.main, capsys, tmp_path / "none.py", "--html", out).endswith("none.py: no such file")
    out.write_text("precious")
    assert "exists already" in error_of(tool.main, capsys, text, "--html", out)
    assert out.read_text() == "precious"
    text.write_bytes(b"")
    assert error_of(tool.main, capsys, text, "--html", out, "--force").startswith("text=b''")
