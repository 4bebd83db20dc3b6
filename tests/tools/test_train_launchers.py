"""The launchers hand over what they are told, to programs that stand in for torchrun and srun; and train on CPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.fairseq_commands import free_port
from helpers.plain_training import CONFIG
from helpers.tool_loader import TOOLS

SCRIPTS = sorted(TOOLS.glob("*.sh"))
DEFAULTS = ["--nnodes=1", "--node-rank=0", "--nproc-per-node=4", "--master-addr=127.0.0.1", "--master-port=29500"]


@pytest.fixture
def launch(tmp_path):
    """Run a launcher; the answer is the program that it starts and the arguments."""
    for program in ("torchrun", "srun"):
        stand_in = tmp_path / program
        stand_in.write_text('#!/bin/sh\nprintf "%s\n" "$(basename "$0")" "$@"\n')
        stand_in.chmod(0o755)

    def launch(script: str, *arguments: str, **environment: str) -> list[str]:
        path = f"{tmp_path}:{os.environ['PATH']}"
        result = subprocess.run(
            [TOOLS / script, *arguments], env=environment | {"PATH": path}, capture_output=True, text=True, check=True
        )
        return result.stdout.splitlines()

    return launch


def test_dist_train(launch):
    started = launch("dist_train.sh", "a config.py", "4", "--cfg-options", "work_dir=a b")
    script = [f"{TOOLS}/train.py", "a config.py", "--launcher", "pytorch", "--cfg-options", "work_dir=a b"]
    assert started == ["torchrun", *DEFAULTS, *script]
    started = launch("dist_train.sh", "c.py", "2", NNODES="3", NODE_RANK="1", MASTER_ADDR="node0", PORT="1234")
    assert started[1:6] == [
        "--nnodes=3",
        "--node-rank=1",
        "--nproc-per-node=2",
        "--master-addr=node0",
        "--master-port=1234",
    ]


def test_dist_test(launch):
    started = launch("dist_test.sh", "c.py", "a b.pth", "4", "--out", "o.pkl")
    assert started == [
        "torchrun",
        *DEFAULTS,
        *[f"{TOOLS}/test.py", "c.py", "a b.pth", "--launcher", "pytorch", "--out", "o.pkl"],
    ]


def test_slurm_train(launch):
    started = launch("slurm_train.sh", "gpu", "name", "c.py", "--resume")
    script = ["python", "-u", f"{TOOLS}/train.py", "c.py", "--launcher", "slurm", "--resume"]
    tasks = ["--gres=gpu:8", "--ntasks=8", "--ntasks-per-node=8", "--cpus-per-task=5", "--kill-on-bad-exit=1"]
    assert started == ["srun", "--partition=gpu", "--job-name=name", *tasks, *script]
    started = launch("slurm_train.sh", "gpu", "name", "c.py", GPUS="16", CPUS_PER_TASK="9", SRUN_ARGS="--mem=0 --quiet")
    assert {"--gres=gpu:8", "--ntasks=16", "--cpus-per-task=9", "--mem=0", "--quiet"} <= set(started)
    assert {"--gres=gpu:2", "--ntasks=2"} <= set(launch("slurm_train.sh", "gpu", "name", "c.py", GPUS="2"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_usage(script):
    assert os.access(script, os.X_OK)
    result = subprocess.run([script, "one"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"usage: {script} ")


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_two_processes_on_a_cpu_train_as_one(train, tmp_path):
    """Each takes half of the batch, and the gradients are exchanged."""
    config = tmp_path / "plain.py"
    config.write_text(CONFIG)
    train.main([str(config), "--work-dir", str(tmp_path / "one")])
    config.write_text(CONFIG.replace("batch_size=2", "batch_size=1"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = dict(
        PATH=path, PYTHONPATH=f"{TOOLS.parent}:{TOOLS.parent / 'tests'}", PORT=str(free_port()), OMP_NUM_THREADS="1"
    )
    command = [TOOLS / "dist_train.sh", config, "2", "--work-dir", tmp_path / "two"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / name / "epoch_1.pth", weights_only=False) for name in ("one", "two"))
    assert one["meta"]["iter"] == two["meta"]["iter"] == 2
    assert one["state_dict"].keys() == two["state_dict"].keys()
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value)
