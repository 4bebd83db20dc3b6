"""fairseq's commands with the plugin, in processes of their own.

They come from a server that has imported fairseq and the operators, but neither the plugin nor any test: importing
takes longer than most commands. The scripts themselves are run by .ci/check_wheel.sh.
"""

import importlib
import json
import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from pathlib import Path
from unittest import mock

PLUGIN = Path(__file__).parents[2] / "lm"
TIMEOUT = 180  # seconds; a command takes about 5

#: Flags of all training: small models on few tokens, where no batch is left out.
TRAINING = (
    "--tokens-per-sample 64 --sample-break-mode none --fma-cell-size 8 --fma-rank 2 --batch-size 4 "
    "--required-batch-size-multiple 1 --num-workers 0 --optimizer adam --lr 0.01 --lr-scheduler inverse_sqrt "
    "--warmup-updates 10 --no-epoch-checkpoints --log-format json --log-interval 1"
)
#: Flags of the models.
MODELS = {
    "fma_lm": "--task language_modeling --arch fma_lm_tiny --decoder-layers 1 --decoder-embed-dim 32 "
    "--decoder-input-dim 32 --decoder-output-dim 32 --decoder-ffn-embed-dim 64 --decoder-attention-heads 2",
    "fma_mlm": "--task masked_lm --criterion masked_lm --arch fma_mlm_tiny --encoder-layers 1 --encoder-embed-dim 32 "
    "--encoder-ffn-embed-dim 64 --encoder-attention-heads 2",
}


def training_flags(model: str, save_dir: Path, flags: str = "") -> list[str]:
    """The flags of ``fairseq-train`` for a model of :data:`MODELS`."""
    return f"{MODELS[model]} {TRAINING} --save-dir {save_dir} {flags}".split()


def logged(output: str, name: str) -> list[dict]:
    """Lines that a command has logged under a name (train_inner, train, valid), with ``--log-format json``."""
    return [json.loads(line) for line in re.findall(rf"\| {name} \| (\{{.*\}})$", output, re.MULTILINE)]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def server() -> BaseContext:
    """multiprocessing's context for processes of the server, which has the environment of a user's shell."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("TRITON_INTERPRET", None)
    commands = ("train", "eval_lm", "validate", "generate", "interactive", "hydra_train", "preprocess")
    forkserver.set_forkserver_preload(["fma_kernels", *(f"fairseq_cli.{name}" for name in commands)])
    with mock.patch.dict(os.environ, environment, clear=True):
        forkserver.ensure_running()
    return multiprocessing.get_context("forkserver")


def _run(name: str, arguments: list[str], log: Path) -> None:
    """Do as the script ``fairseq-NAME`` does, in the folder of the log."""
    os.setsid()
    with open(os.devnull) as nothing, log.open("w") as file:
        for target, source in ((0, nothing), (1, file), (2, file)):
            os.dup2(source.fileno(), target)
    os.chdir(log.parent)
    sys.argv = [f"fairseq-{name}", *arguments]
    importlib.import_module(f"fairseq_cli.{name.replace('-', '_')}").cli_main()


class Command:
    """A running command.

    Args:
        name: what follows ``fairseq-``.
        arguments: the others.
        log: file for what it prints.
        plugin: pass ``--user-dir``.
    """

    def __init__(self, name: str, arguments: list[str], log: Path, plugin: bool = True):
        log.touch()
        arguments = [*arguments, *(["--user-dir", str(PLUGIN)] if plugin else [])]
        self.process = server().Process(target=_run, args=(name, arguments, log))
        self.process.start()
        self.log = log

    def wait(self) -> int:
        """Its exit code."""
        self.process.join(TIMEOUT)
        assert self.process.exitcode is not None, self.log.read_text()
        return self.process.exitcode

    def output(self) -> str:
        """Its output, once it has ended well."""
        code, text = self.wait(), self.log.read_text()
        assert code == 0, text
        return text

    def error(self) -> str:
        """Its output, once it has ended with an error."""
        code, text = self.wait(), self.log.read_text()
        assert code > 0, text
        return text

    def wait_for(self, pattern: str) -> None:
        """Until it has printed something."""
        deadline = time.monotonic() + TIMEOUT
        while not re.search(pattern, self.log.read_text()):
            assert self.process.is_alive() and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)

    def kill(self) -> None:
        """At once, with its children."""
        if self.process.is_alive():
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()
