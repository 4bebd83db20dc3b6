"""The machine's GNU C++ compiler: which one it is, and the library that it makes of a source."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

#: The library is linked without an OpenMP runtime: it takes the one that PyTorch has loaded, under whatever name.
COMPILE = ("-O3", "-march=native", "-fopenmp", "-std=c++17", "-fPIC", "-c")
LINK = ("-shared",)
MIN_GCC = 9
TIMEOUT = 120  # seconds, for each of the two steps


class Compiler(NamedTuple):
    """A compiler that answers.

    Attributes:
        command: words that start it.
        about: its own words about its version.
    """

    command: tuple[str, ...]
    about: str

    def build(self, source: Path) -> bytes:
        """The shared library that a source file is compiled to.

        Raises:
            RuntimeError: the compiler fails or does not end in time; the message says why.
            OSError: the compiler cannot be started, or no folder for temporary files can be written to.
        """
        with tempfile.TemporaryDirectory(prefix="fma_kernels-", ignore_cleanup_errors=True) as scratch:
            module, library = Path(scratch, "kernels.o"), Path(scratch, "kernels.so")
            self._produce(module, *COMPILE, str(source))
            self._produce(library, *LINK, str(module))
            return library.read_bytes()

    def _produce(self, target: Path, *arguments: str) -> None:
        command, name = [*self.command, *arguments, "-o", str(target)], shlex.join(self.command)
        try:
            status, output = _run(command, TIMEOUT, TMPDIR=str(target.parent))
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{name} has not compiled the CPU kernels after {TIMEOUT} s") from None
        if status or not target.is_file():
            raise RuntimeError(f"{name} does not compile the CPU kernels: {_complaint(output)}")


def find() -> Compiler:
    """The GNU C++ compiler: ``$CXX`` if it is one, else ``g++``.

    Raises:
        RuntimeError: there is none, or only one that is too old.
    """
    reason = "no GNU C++ compiler is found (g++)"
    for text in (os.environ.get("CXX", ""), "g++"):
        try:
            command = shlex.split(text)
            if not command or not shutil.which(command[0]):
                continue
            about = _run([*command, "--version"], 30)[1]
            if "Free Software Foundation" not in about:
                continue
            version = _run([*command, "-dumpfullversion", "-dumpversion"], 30)[1].strip()
            if int(version.split(".")[0]) >= MIN_GCC:
                return Compiler(tuple(command), about)
            reason = f"{text} is of version {version}, older than {MIN_GCC}"
        except (OSError, ValueError, subprocess.TimeoutExpired):
            reason = f"the compiler {text} does not answer"
    raise RuntimeError(f"{reason}; the CPU kernels are compiled at first use")


def _run(command: list[str], seconds: float, **variables: str) -> tuple[int, str]:
    """Exit status and output of a command, in English. A command that is given up ends with all that it started."""
    process = subprocess.Popen(
        command, env={**os.environ, "LC_ALL": "C", **variables}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    with process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, output


def _complaint(output: str) -> str:
    """The line of a compiler's output that says most."""
    lines = output.strip().splitlines() or ["no message"]
    return next((line for line in lines if "error:" in line or "cannot" in line), lines[-1])
