"""A small corpus of the standard library's source code, and what a model of its bytes writes."""

from __future__ import annotations

import math
import os
import random
import re
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

from ..prepare.byte_text import encode, split_sizes
from ..prepare.stdlib import find_sources
from .recipes import plugin


def sample_library(size: int, seed: int = 0) -> bytes:
    """Files of the standard library in random order, up to a number of bytes."""
    paths = find_sources(Path(sysconfig.get_paths()["stdlib"]))
    random.Random(seed).shuffle(paths)
    text = b""
    for path in paths:
        text += path.read_bytes()
        if len(text) >= size:
            break
    return text[:size]


def prepare(text: bytes, out: Path) -> Path:
    """Write a text for fairseq, unless it is there: the last 5 % for tests, the 5 % before for validation.

    Args:
        text: its bytes.
        out: folder to write to.

    Returns:
        The folder that fairseq reads.
    """
    done = out / "bin"
    if (done / "test.bin").is_file():
        return done
    out.mkdir(parents=True, exist_ok=True)
    start, flags = 0, []
    for split, size in split_sizes(len(text)).items():
        path = out / f"{split}.txt"
        path.write_bytes(b"".join(encode([text[start : start + size]])))
        flags += [f"--{split}pref", str(path)]
        start += size
    command = ["fairseq_cli.preprocess", "--only-source", *flags, "--destdir", str(done), "--workers", "2"]
    subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True)
    return done


def unigram_bits(text: bytes) -> float:
    """Bits per character of the validation split by the frequencies of bytes in the training split, plus one each."""
    sizes = split_sizes(len(text))
    train, valid = text[: sizes["train"]], text[sizes["train"] :][: sizes["valid"]]
    counts = Counter(train)
    total = len(train) + 256
    return -sum(math.log2((counts[byte] + 1) / total) for byte in valid) / len(valid)


def continuation(checkpoint: Path, data: Path, prompt: str, length: int = 300, seed: int = 1) -> str:
    """A prompt, and what a model writes behind it: sampled from the most probable 90 % of every token's distribution.

    Args:
        checkpoint: of the model.
        data: folder that fairseq reads.
        prompt: one line.
        length: number of bytes to write.
        seed: of the samples.
    """
    command = [
        "fairseq_cli.interactive", str(data), "--user-dir", str(plugin()), "--task", "byte_language_modeling",
        "--path", str(checkpoint), "--tokenizer", "byte_values", "--beam", "1", "--sampling", "--sampling-topp", "0.9",
        "--max-len-b", str(len(prompt) + length), "--seed", str(seed),
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", *command], input=prompt + "\n", check=True, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return re.search(r"^D-0\t\S+\t(.*?)^P-0\t", done.stdout, re.DOTALL | re.MULTILINE).group(1).rstrip("\n")
