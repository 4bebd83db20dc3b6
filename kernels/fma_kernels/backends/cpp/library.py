"""The compiled library of the CPU kernels: found in the cache, or compiled once and kept there.

It is compiled for the processor at hand by the GNU compiler, without headers of PyTorch or Python, and bound to the
OpenMP runtime that PyTorch has loaded. The cache is keyed by the sources, the compiler, its flags and the processor.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import torch

#: "0" switches the kernels off.
SWITCH = "FMA_CPU_KERNELS"
#: Folder for compiled libraries; ``fma_kernels`` in the user's cache folder by default.
FOLDER = "FMA_CACHE_DIR"

FLAGS = ("-O3", "-march=native", "-fopenmp", "-std=c++17", "-shared", "-fPIC")
SOURCES = ("lanes.h", "attention.h", "pooling.h", "kernels.cpp")
#: Instructions that the kernels are written for; without them the blockwise backend is faster.
INSTRUCTIONS = {"avx2", "fma"}
MIN_GCC = 9
TIMEOUT = 300  # seconds

_logger = logging.getLogger("fma_kernels")


class Unavailable(Exception):
    """The library cannot be had on this machine; the message says why."""


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL | str:
    """The library, or the reason why there is none. It is looked for once in a process."""
    try:
        return _load()
    except Unavailable as error:
        return str(error)


def threads() -> int:
    """Number of threads to work with: PyTorch's, but one in a forked process, where OpenMP's threads are missing."""
    return 1 if _forked else torch.get_num_threads()


_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


def _load() -> ctypes.CDLL:
    if os.environ.get(SWITCH, "1") == "0":
        raise Unavailable(f"{SWITCH}=0 switches the CPU kernels off")
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise Unavailable(f"the CPU kernels are for Linux on x86-64, not {platform.system()} on {platform.machine()}")
    instructions = processor_flags()
    if not set(instructions.split()) >= INSTRUCTIONS:
        raise Unavailable(f"the processor lacks {' or '.join(sorted(INSTRUCTIONS - set(instructions.split())))}")
    compiler, version = find_compiler()
    folder = Path(__file__).parent / "source"
    key = hashlib.sha256("\0".join([version, *FLAGS, instructions]).encode())
    for name in SOURCES:
        key.update((folder / name).read_bytes())
    name = f"cpu_kernels-{key.hexdigest()[:32]}.so"
    with _cache_folder() as cache, _one_process_at_a_time(cache, name):
        path = cache / name
        library = _open(path)
        if library is None:
            _compile(compiler, folder / SOURCES[-1], path)
            library = _open(path)
        if library is None:
            raise Unavailable(f"the compiled CPU kernels in {path} cannot be loaded")
    if library.fma_panel() not in (16, 32):
        raise Unavailable(f"the compiled CPU kernels in {path} do not answer")
    os.register_at_fork(after_in_child=_after_fork)
    return library


def processor_flags() -> str:
    """The instruction sets of the processor, as Linux names them, in order."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return " ".join(sorted(line.partition(":")[2].split()))
    return ""


def find_compiler() -> tuple[list[str], str]:
    """The GNU C++ compiler: ``$CXX`` if that is one, else ``g++``.

    Returns:
        The command, and the compiler's own words about its version.

    Raises:
        Unavailable: there is none, or one that is too old.
    """
    reason = "no GNU C++ compiler was found (g++); the CPU kernels are compiled at first use"
    for command in ([*shlex.split(os.environ.get("CXX", ""))], ["g++"]):
        if not command or not shutil.which(command[0]):
            continue
        try:
            version, about = _answer(command, "-dumpfullversion", "-dumpversion").strip(), _answer(command, "--version")
            major = int(version.split(".")[0])
        except (OSError, ValueError, subprocess.SubprocessError):
            reason = f"the compiler {' '.join(command)} does not run"
            continue
        if "Free Software Foundation" not in about:
            continue
        if major >= MIN_GCC:
            return command, about
        reason = f"{' '.join(command)} is of version {version}, older than {MIN_GCC}"
    raise Unavailable(reason)


def _answer(command: list[str], *flags: str) -> str:
    return subprocess.run([*command, *flags], capture_output=True, text=True, timeout=30).stdout


@contextmanager
def _cache_folder() -> Iterator[Path]:
    """A folder of the user's own; where none can be had, one for this process, which ends with the loading."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(os.environ.get(FOLDER) or os.path.join(base, "fma_kernels"))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.stat()
        if about.st_uid != os.geteuid() or stat.S_IMODE(about.st_mode) & 0o022:
            raise PermissionError("it can be written to by others")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        _logger.warning("compiled CPU kernels are not kept: %s: %s", folder, error.strerror or error)
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
        return
    yield folder


@contextmanager
def _one_process_at_a_time(folder: Path, name: str) -> Iterator[None]:
    """While one process compiles, others that want the same library wait for it."""
    try:
        lock = open(folder / f"{name}.lock", "w")  # noqa: SIM115
    except OSError:
        yield
        return
    with lock:
        with suppress(OSError):  # some network file systems have no locks: then each compiles for itself
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _open(path: Path) -> ctypes.CDLL | None:
    """The library in a file, if it is what was compiled: a part of a library could end the process."""
    try:
        if hashlib.sha256(path.read_bytes()).hexdigest() != path.with_suffix(".sha256").read_text():
            return None
        return ctypes.CDLL(str(path))
    except OSError:
        return None


def _compile(compiler: list[str], source: Path, target: Path) -> None:
    _logger.warning("compiling the CPU kernels, once, which takes some seconds: %s", target)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            made = Path(scratch, target.name)
            command = [*compiler, *FLAGS, str(source), "-o", str(made)]
            run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
            if run.returncode or not made.is_file():
                lines = (run.stderr or run.stdout or "no message").strip().splitlines()
                raise Unavailable(f"{' '.join(compiler)} does not compile the CPU kernels: {lines[-1]}")
            digest = Path(scratch, "digest")
            digest.write_text(hashlib.sha256(made.read_bytes()).hexdigest())
            os.replace(digest, target.with_suffix(".sha256"))
            os.replace(made, target)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{' '.join(compiler)} takes longer than {TIMEOUT} s to compile the CPU kernels") from None
    except OSError as error:
        raise Unavailable(f"the CPU kernels cannot be compiled in {target.parent}: {error}") from error
