"""The release check finds every step on its page; the pages cannot change without it."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("walk", ROOT / ".ci/walk.py")
walk = importlib.util.module_from_spec(spec)
spec.loader.exec_module(walk)


@pytest.mark.parametrize("step", walk.STEPS, ids=lambda step: step.name)
def test_every_step_stands_on_a_page(step):
    code = walk.code_of(step)
    if step.language == "python":
        compile(code, step.page, "exec")
    assert all(any(line.startswith(start) for line in code.splitlines()) for start in step.lines)


def test_commands_are_whole():
    by_name = {step.name: walk.code_of(step) for step in walk.STEPS}
    assert by_name["set-up"].startswith("make setup") and by_name["set-up"].count("\n") == 1
    train = by_name["fairseq"].split("fairseq-train")[1]
    assert "--user-dir lm" in train and "--save-dir work_dirs/lm" in train and "compare_lm" not in train
    assert "--onnx step.onnx" in by_name["export"] and "my_config.py" in by_name["own config"]


def test_a_step_that_is_gone_is_named(monkeypatch):
    with pytest.raises(ValueError, match=r"README.md, Nothing: expected bash"):
        walk.code_of(walk.Step("x", "README.md", "Nothing"))


def test_contributing_has_the_walk():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert "python3 .ci/walk.py" in text
    assert all(f"| {step.name} |" in text for step in walk.STEPS)


def test_steps_run_in_order_and_are_timed(tmp_path, monkeypatch, capfd):
    (tmp_path / "page.md").write_text("# Page\n\n```bash\necho one\necho two > made.txt\n```\n")
    monkeypatch.setattr(walk, "ROOT", tmp_path)
    monkeypatch.setattr(walk, "STEPS", [walk.Step("a", "page.md", "Page"), walk.Step("b", "page.md", "Page")])
    ((name, seconds),) = walk.walk(tmp_path, skip=["b"])
    assert name == "a" and 0 <= seconds < 60
    assert "one" in capfd.readouterr().out and (tmp_path / "made.txt").read_text() == "two\n"
