"""FullyShardedStrategy: two processes, stopped and resumed, learn what one process learns."""

import os
import subprocess
import sys

import pytest
import torch
from helpers import sharded_training
from mmengine.registry import STRATEGIES
from mmengine.runner import Runner

from fma_mm import FullyShardedStrategy


def test_it_is_found_by_name_and_refuses_what_is_no_dtype():
    assert STRATEGIES.get("FullyShardedStrategy") is FullyShardedStrategy
    with pytest.raises(ValueError, match="param_dtype='half-ish': expected None or the name of a dtype"):
        FullyShardedStrategy(param_dtype="half-ish")


@pytest.mark.slow
def test_sharded_over_two_processes_and_resumed(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [sharded_training.__file__, str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "resumed epoch: 1, iter: 2" in done.stdout + done.stderr
    Runner.from_cfg(sharded_training.make_config(tmp_path / "one", 2, 32)).train()
    two, one = (torch.load(tmp_path / name / "epoch_2.pth", weights_only=False) for name in ("two", "one"))
    assert two["state_dict"].keys() == one["state_dict"].keys()  # whole, under the usual names
    for name, weight in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], weight, rtol=1e-3, atol=1e-5, msg=name)
