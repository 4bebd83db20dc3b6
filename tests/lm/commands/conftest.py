"""A corpus and models of a few seconds, and fairseq's commands for them."""

import importlib
import sys
import sysconfig
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from helpers.fairseq_commands import PLUGIN, Command, training_flags

from fma_tools.prepare.byte_text import encode

SIZES = {"train": 8192, "valid": 1000, "test": 800}


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Command]]:
    """Start a command: start("train", *arguments)."""
    folder, numbers, commands = tmp_path_factory.mktemp("commands"), count(), []

    def start(name: str, *arguments: object, plugin: bool = True) -> Command:
        commands.append(Command(name, [str(a) for a in arguments], folder / f"{next(numbers)}.txt", plugin))
        return commands[-1]

    yield start
    for command in commands:
        command.kill()


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a command in this process, which saves its start: call("eval-lm", *arguments)."""

    def call(name: str, *arguments: object) -> None:
        argv = [f"fairseq-{name}", *arguments, "--cpu", "--user-dir", PLUGIN]
        monkeypatch.setattr(sys, "argv", [str(a) for a in argv])
        importlib.import_module(f"fairseq_cli.{name.replace('-', '_')}").cli_main()

    return call


@pytest.fixture(scope="session")
def source() -> dict[str, bytes]:
    """Bytes of the standard library, by split."""
    text, splits = Path(sysconfig.get_paths()["stdlib"], "heapq.py").read_bytes(), {}
    for split, size in SIZES.items():
        splits[split], text = text[:size], text[size:]
    return splits


@pytest.fixture(scope="session")
def preprocessed(start, source, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The corpus, and what ``fairseq-preprocess`` printed."""
    folder, flags = tmp_path_factory.mktemp("corpus"), []
    for split, text in source.items():
        (folder / f"{split}.txt").write_bytes(b"".join(encode([text])))
        flags += [f"--{split}pref", folder / f"{split}.txt"]
    command = start("preprocess", "--only-source", *flags, "--destdir", folder / "bin", plugin=False)
    return folder / "bin", command.output()


@pytest.fixture(scope="session")
def corpus(preprocessed) -> Path:
    return preprocessed[0]


@pytest.fixture(scope="session")
def train(start, corpus, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Path, str]]:
    """Train a model: train("fma_lm", "--bf16") returns its folder, and what the command printed."""

    def train(model: str, flags: str) -> tuple[Path, str]:
        folder = tmp_path_factory.mktemp(model)
        return folder, start("train", corpus, *training_flags(model, folder, flags)).output()

    return train


#: Of the runs that others are compared with: dropout, two epochs and a checkpoint between are in them.
REFERENCE = "--dropout 0.1 --attention-dropout 0.1 --max-update 60 --save-interval-updates 20"


@pytest.fixture(scope="session")
def reference_flags() -> str:
    return REFERENCE


@pytest.fixture(scope="session")
def lm(train) -> tuple[Path, str]:
    """The folder of a trained ``fma_lm``, and what training printed."""
    return train("fma_lm", REFERENCE)


@pytest.fixture
def opened(lm) -> tuple[torch.nn.Module, Dictionary]:
    """The trained model, for full forwards, and its dictionary."""
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(lm[0] / "checkpoint_last.pt")])
    return model.eval(), task.target_dictionary


@pytest.fixture(scope="session")
def mlm(train) -> tuple[Path, str]:
    """The folder of a trained ``fma_mlm``, and what training printed."""
    return train("fma_mlm", REFERENCE)


@pytest.fixture(scope="session")
def learned(train) -> tuple[Path, str]:
    """The same in bfloat16, of a model that has the near field alone and learned positions, and recomputes layers."""
    flags = "--fma-attention near --fma-positions learned --bf16 --checkpoint-activations --max-update 10"
    return train("fma_lm", flags)


@pytest.fixture(scope="session")
def sinusoidal(train) -> tuple[Path, str]:
    """The same in float16, of a model with sinusoidal positions, and samples that are sentences."""
    return train("fma_lm", "--memory-efficient-fp16 --sample-break-mode eos --fma-positions sinusoidal --max-update 10")
