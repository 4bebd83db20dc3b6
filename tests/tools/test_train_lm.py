"""The script that trains language models from their recipes: the commands that it starts."""

import importlib.util
import shlex
from pathlib import Path

import pytest
from helpers.tool_loader import load_tool
from hydra.core.override_parser.overrides_parser import OverridesParser

tool = load_tool("train_lm")
CONFIGS = Path(__file__).parents[2] / "configs/lm"


@pytest.fixture
def data(tmp_path):
    """A folder that looks as if fairseq-preprocess had written it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("dict.txt", "train.bin"):
        (folder / name).touch()
    return folder


def dry_run(capsys, *argv: object) -> list[str]:
    tool.main([*map(str, argv), "--dry-run"])
    return shlex.split(capsys.readouterr().out)


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_command(config, data, tmp_path, capsys):
    out = tmp_path / "run"
    command = dry_run(
        capsys, config, "--data", data, "--attention", "fma:rank=2", "--context", 256, "--out", out, "common.seed=5"
    )
    assert command[1:3] == ["-m", "fairseq_cli.hydra_train"]
    assert command[command.index("--config-name") + 1] == config.stem
    assert command[command.index("--config-dir") + 1] == str(CONFIGS)
    changes = dict(text.removeprefix("++").split("=", 1) for text in command if text.startswith("++"))
    assert Path(changes["common.user_dir"], "models/fma_lm.py").is_file()
    assert changes["task.data"] == str(data)
    assert changes["task.tokens_per_sample"] == "256"
    assert changes["model.fma_rank"] == "2"
    assert changes["common.seed"] == "5"
    assert Path(changes["checkpoint.save_dir"]).is_relative_to(out)
    assert not out.exists(), "a dry run writes nothing"


@pytest.mark.parametrize("name", ["run=1,2", "it's (a) [run]", "é ~ #", r"a\'b c\\"])
def test_hydra_reads_the_names_of_folders_as_they_are(name, data, tmp_path, capsys):
    command = dry_run(capsys, CONFIGS / "stdlib.yaml", "--data", data.rename(tmp_path / name), "--out", tmp_path / name)
    texts = [text for text in command if text.startswith(("++task.data", "++checkpoint", "hydra.run"))]
    changes = {change.key_or_group: change.value() for change in OverridesParser.create().parse_overrides(texts)}
    assert changes == {
        "task.data": str(tmp_path / name),
        "checkpoint.save_dir": str(tmp_path / name / "checkpoints"),
        "hydra.run.dir": str(tmp_path / name),
    }


def test_the_recipe_speaks_where_the_command_line_is_silent(data, capsys):
    command = dry_run(capsys, CONFIGS / "stdlib.yaml", "--data", data)
    assert not [text for text in command if "fma_attention" in text or "tokens_per_sample" in text]


@pytest.mark.parametrize(
    "argv, message",
    [
        (["missing.yaml"], "config: missing.yaml, expected a recipe"),
        ([CONFIGS / "stdlib.yaml", "--data", "nowhere"], "--data: nowhere, expected a folder that fairseq-preprocess"),
        ([CONFIGS / "stdlib.yaml", "--context", "0"], "--context: 0, expected a number of tokens >= 1"),
        ([CONFIGS / "stdlib.yaml", "rank"], "'rank': expected KEY=VALUE"),
    ],
)
def test_mistakes_are_named(argv, message, data, capsys):
    with pytest.raises(SystemExit) as exit:
        tool.main([*map(str, argv), *([] if "--data" in argv else ["--data", str(data)])])
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


def test_without_fairseq(data, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        tool.main([str(CONFIGS / "stdlib.yaml"), "--data", str(data)])
    assert "pip install 'fma-mm[lm]'" in capsys.readouterr().err
