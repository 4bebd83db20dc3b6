"""Files of results, and tables."""

import json
from argparse import Namespace
from pathlib import Path

import torch

from fma_kernels import __version__
from fma_tools import markdown
from fma_tools.results import write_results


def test_a_file_says_what_its_figures_belong_to(tmp_path):
    path = tmp_path / "new" / "x.json"
    args = Namespace(out=Path("work_dirs/x"), rounds=3, grids=[(4, 5)])
    for rows in ([1], [1, 2]):
        write_results(path, ["python", "tools/x.py", "--rounds", "3"], args, {"device": "a CPU"}, rows=rows)
        assert json.loads(path.read_text()) == dict(
            command="python tools/x.py --rounds 3",
            device="a CPU",
            torch=torch.__version__,
            version=__version__,
            settings=dict(out="work_dirs/x", rounds=3, grids=[[4, 5]]),
            rows=rows,
        )


def test_markdown():
    assert markdown.table([["a", "b"], ["---", "---:"], ["x", 1.5]]) == "| a | b |\n| --- | ---: |\n| x | 1.5 |"
