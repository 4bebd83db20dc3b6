"""The compiled library of the CPU kernels, compiled by the machine's compiler at first use, or found in the cache.

It is made for the processor at hand from sources without headers of PyTorch or Python. Its file is named by the
sources, the compiler with its flags, and the processor.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch

from . import cache, compiler

#: Environment variable: "0" switches the kernels off.
SWITCH = "FMA_CPU_KERNELS"
SOURCES = Path(__file__).parent / "source"
#: Instructions that the kernels are written for; without them the blockwise backend is faster.
INSTRUCTIONS = {"avx2", "fma"}

_logger = logging.getLogger("fma_kernels")
_importing_process = os.getpid()


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL | str:
    """The library, or the reason why there is none. It is looked for once in a process."""
    try:
        return _load()
    except (RuntimeError, OSError) as error:
        return str(error)
    except Exception as error:  # whatever it is, PyTorch can do the work
        return repr(error)


def loaded() -> ctypes.CDLL:
    """The library, where :func:`load` has one: the choice of a backend has asked before."""
    return cast(ctypes.CDLL, load())


def threads() -> int:
    """Number of threads to work with: PyTorch's, but one in a forked process, which OpenMP's threads are missing in."""
    return torch.get_num_threads() if os.getpid() == _importing_process else 1


def processor_flags() -> str:
    """The instruction sets of the processor, as Linux names them, in order."""
    with suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("flags"):  # the other processors have them, too
                return " ".join(sorted(line.partition(":")[2].split()))
    return ""


def _load() -> ctypes.CDLL:
    if os.environ.get(SWITCH) == "0":
        raise RuntimeError(f"{SWITCH}=0 switches the CPU kernels off")
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise RuntimeError(f"the CPU kernels are for Linux on x86-64, not {platform.system()} on {platform.machine()}")
    flags = processor_flags()
    if missing := INSTRUCTIONS - set(flags.split()):
        raise RuntimeError(f"the processor lacks {' and '.join(sorted(missing))}, which the CPU kernels need")
    gcc = compiler.find()

    def make(path: Path) -> bytes:
        # A warning is what Python shows by default: otherwise the first call would stand still without a word.
        _logger.warning("compiling the CPU kernels, once, which takes some seconds: %s", path)
        return gcc.build(SOURCES / "kernels.cpp")

    return _open(cache.keep(f"cpu_kernels-{_digest(gcc, flags)}.so", make))


def _digest(gcc: compiler.Compiler, flags: str) -> str:
    """Stands for all that the compiled code depends on."""
    digest = hashlib.sha256("\0".join([*gcc.command, gcc.about, *compiler.COMPILE, *compiler.LINK, flags]).encode())
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in (".h", ".cpp"):
            digest.update(b"\0" + path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:32]


def _open(path: Path) -> ctypes.CDLL:
    if not hasattr(ctypes.CDLL(None), "GOMP_parallel"):  # this PyTorch has loaded no OpenMP runtime for all to see
        ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(path))
    if not hasattr(library, "fma_panel"):
        raise RuntimeError(f"{path} does not hold the CPU kernels")
    return library
