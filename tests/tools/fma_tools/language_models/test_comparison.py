"""Trainings of a comparison, its table and its picture."""

import json
import sys
from pathlib import Path

import pytest

from fma_tools.command import CommandError
from fma_tools.language_models import comparison
from fma_tools.language_models.recipes import Variant

CONFIG = Path(__file__).parents[4] / "configs/lm/stdlib.yaml"

ROWS = [
    dict(
        name=name,
        parameters=1000,
        bits=bits,
        bits_by_seed=[bits],
        bits_by_quarter=[bits] * 3 + [bits - 1],
        bits_by_repetition=[bits, 0.5, 0.25, 0.125, 4.0],
        tokens_by_repetition=[10, 20, 30, 0, 40],
        curve=[(1000, 5.0), (2000, bits)],
        step_tokens=100,
        step_ms=ms,
        step_mib=10.0,
    )
    for name, bits, ms in [("full", 3.0, 50.0), ("fma:rank=2", 2.0, 25.0)]
]


def test_table():
    lines = comparison.table(ROWS, masked=False).splitlines()
    assert "bits per character" in lines[0]
    assert lines[2] == "| full | 1,000 | 3.000 | 2.000 | 50 | 1.00 | 10 |"
    assert lines[3] == "| fma:rank=2 | 1,000 | 2.000 | 1.000 | 25 | 0.50 | 10 |"
    masked = comparison.table(ROWS, masked=True).splitlines()
    assert "perplexity" in masked[0] and "| 4.0 | 2.0 |" in masked[3]
    seeds = comparison.table([ROWS[0] | dict(bits_by_seed=[2.5, 3.5])], masked=False)
    assert "| 3.000 (2.500-3.500) |" in seeds


def test_table_of_distances():
    title, _, tokens, full, fma = comparison.distance_table(ROWS).splitlines()
    assert "| quarter 4 | 1-16 | 17-64 | 65-256 | > 256 | new | ahead of full from |" in title
    assert "| 10% | 20% | 30% | 0% | 40% |" in tokens
    assert full.endswith("| 3.000 | 0.500 | 0.250 | 0.125 | 4.000 | - |")
    assert fma.endswith("| 0.0 M tokens |")


def test_distances_that_no_token_has():
    """A dash in the table."""
    rows = [row | dict(bits_by_repetition=[None] * 4 + [4.0], tokens_by_repetition=[0] * 4 + [9]) for row in ROWS]
    assert "| - | - | - | - | 4.000 | - |" in comparison.distance_table(rows).splitlines()[3]


def test_plot(tmp_path):
    figure = comparison.plot([row | dict(curve=[(10, 5.0), (200, 3.5), (2000, row["bits"])]) for row in ROWS], "title")
    for axes in figure.axes[:2]:  # the curves, from a tenth of the training on
        assert axes.get_ylim()[1] == 3.5 and axes.get_ylim()[0] < 2.0 and len(axes.lines) == 2
    figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_plot_without_curves():
    figure = comparison.plot([row | dict(curve=[]) for row in ROWS], "title")
    assert not figure.axes[0].lines and len(figure.axes[2].texts) == 2


def test_every_attention_is_trained_with_every_seed(tmp_path):
    (tmp_path / "dict.txt").touch()
    (tmp_path / "train.bin").touch()
    variants = [Variant.parse("full"), Variant.parse("fma:rank=2")]
    settings = comparison.Settings(CONFIG, tmp_path, variants, 64, tmp_path / "out", seeds=(3, 5), set=("a.b=1",))
    names = ["full_64", "fma_rank_2_64"]
    folders = [tmp_path / "out" / place / name for place in ("seed3", "seed5") for name in names]
    assert list(settings.trainings) == folders
    assert settings.folders == {"full": folders[::2], "fma:rank=2": folders[1::2]}
    for folder, command in settings.trainings.items():
        assert command[-2:] == ["++a.b=1", f"++common.seed={folder.parent.name[4:]}"]
    alone = comparison.Settings(CONFIG, tmp_path, variants, 64, tmp_path / "out")
    assert list(alone.trainings) == [tmp_path / "out" / name for name in names]
    assert not any("seed" in word for command in alone.trainings.values() for word in command)


def test_a_training_is_not_repeated_nor_mixed_with_another(tmp_path):
    count = "import sys; from pathlib import Path; p = Path(sys.argv[1]); p.write_text(p.read_text() + 'x')"
    counter = tmp_path / "count"
    counter.touch()
    command = [sys.executable, "-c", count, str(counter)]
    for _ in range(2):
        comparison.train(command, tmp_path / "run", threads=1)
    assert counter.read_text() == "x"
    with pytest.raises(CommandError, match="another command"):
        comparison.train([*command, "more"], tmp_path / "run", threads=1)
    with pytest.raises(CommandError, match="ended with status 3"):
        comparison.train([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "failing", threads=1)
    assert not (tmp_path / "failing/command.json").exists(), "it is tried again"
    assert json.loads((tmp_path / "run/command.json").read_text()) == command
