#!/usr/bin/env python3
"""Check the fused kernels on this machine's GPU: their tests, compute-sanitizer on small cases, and the benchmark.

    make gpu-check                                  # with python3
    make gpu-check PYTHON=/opt/torch/bin/python3 ARGS="--skip-benchmark"

Needs an interpreter with PyTorch, Triton, NumPy, pytest and matplotlib; nothing is installed. Steps, in order:

    kernel tests   tests/kernels/triton, compiled for the GPU
    memcheck       the tests of small cases there under compute-sanitizer: accesses out of bounds
    racecheck      the same: hazards in shared memory
    benchmark      tools/benchmark_attention.py --device cuda --dtype bfloat16

Status: 0 if no step failed, 1 if one did, 2 if this interpreter or this machine cannot run them. All in all they take
at most ten minutes: a step that takes longer than leaves some time for those after it has failed, and the benchmark
leaves out the sizes that it has no time for. compute-sanitizer is part of the CUDA toolkit; where it is not found, the
summary says that its steps were not run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
KERNEL_TESTS = "tests/kernels/triton"

#: What has to be installed, and the oldest versions that the kernels run with.
REQUIREMENTS = {"torch": (2, 11), "triton": (3, 6), "numpy": (), "pytest": (), "matplotlib": ()}

#: Seconds of ten minutes that each step is left with at least; what it does not need goes to the next ones.
SHARES = {"kernel tests": 200, "memcheck": 90, "racecheck": 90, "benchmark": 220}

#: Tests for compute-sanitizer: small, every kernel among them, and none that runs PyTorch's own attention, in whose
#: cuDNN kernels racecheck reports hazards.
SMALL = "small and (near-float16 or fma_linear-float16 or same_bits or one_operator)"


@dataclass(frozen=True)
class Outcome:
    """Outcome of a step.

    Attributes:
        step: its name.
        status: ``"passed"``, ``"failed"`` or ``"not run"``.
        detail: why, or what was counted.
    """

    step: str
    status: str
    detail: str = ""


def problem() -> str | None:
    """Why the checks cannot run here; None if they can."""
    for name, oldest in REQUIREMENTS.items():
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            return f"{sys.executable} cannot import {name}: {error}"
        version = getattr(module, "__version__", "")
        if oldest and tuple(map(int, re.findall(r"\d+", version)[:2])) < oldest:
            return f"{sys.executable} has {name} {version}, expected {'.'.join(map(str, oldest))} or newer"
    import torch

    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} sees no GPU on this machine"
    return None


def find_sanitizer() -> str | None:
    """The compute-sanitizer on the path, of ``CUDA_HOME``, or beside nvcc."""
    nvcc = shutil.which("nvcc")
    homes = [Path(os.environ[name], "bin") for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders = [*homes, *([Path(nvcc).parent, Path(nvcc).resolve().parent] if nvcc else [])]
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, folders)])
    return shutil.which("compute-sanitizer", path=path)


def run(command: list[str], limit_s: float, **variables: str) -> int | None:
    """Run a command in the repository, on compiled kernels; its status, or None if it took too long.

    Args:
        command: the command.
        limit_s: seconds after which it is ended, with all that it started.
        variables: environment variables to set.
    """
    paths = [str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", **variables}
    environment.pop("TRITON_INTERPRET", None)
    print(f"\n==> {' '.join(command)}", flush=True)
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True) as process:
        try:
            return process.wait(limit_s)
        except BaseException as error:
            # The sanitizer and the compilers of PyTorch and Triton are processes of their own.
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                return None
            raise


def run_tests(step: str, report: Path, limit_s: float, *options: str, sanitizer: tuple[str, ...] = ()) -> Outcome:
    """Run tests of the kernels.

    Args:
        step: name of the step.
        report: where pytest writes what became of each test, as JUnit's XML.
        limit_s: seconds that they may take.
        options: further options of pytest.
        sanitizer: the command that pytest runs under.
    """
    report.unlink(missing_ok=True)
    # Every test is named as it ends: of a step that is cut off there is no summary.
    pytest = [sys.executable, "-m", "pytest", KERNEL_TESTS, "-v", "-p", "no:cacheprovider", f"--junitxml={report}"]
    # PyTorch's allocator keeps freed memory, in which accesses out of bounds would go unnoticed.
    variables = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if sanitizer else {}
    start = time.perf_counter()
    status = run([*sanitizer, *pytest, *options], limit_s, **variables)
    if status is None:
        return Outcome(step, "failed", f"not done after {limit_s:.0f} s")
    passed, skipped, failed = count_tests(report)
    counts = f"{passed} passed, {skipped} skipped, {failed} failed, {time.perf_counter() - start:.0f} s"
    if status or failed:
        return Outcome(step, "failed", f"status {status}; {counts}")
    # pytest is content when all tests were skipped.
    return Outcome(step, "passed" if passed else "failed", counts)


def side_by_side() -> tuple[str, ...]:
    """Options of pytest that run tests in several processes, if pytest-xdist is here: most of their time compiles."""
    if importlib.util.find_spec("xdist") is None:
        return ()
    return ("-p", "xdist", "-n", str(min(16, os.cpu_count() or 1)), "--dist", "worksteal")


def count_tests(report: Path) -> tuple[int, int, int]:
    """Numbers of tests that passed, were skipped and failed, from JUnit's XML; zeros if there is none.

    Args:
        report: the XML file.
    """
    if not report.is_file():
        return 0, 0, 0
    cases = list(ElementTree.parse(report).iter("testcase"))
    skipped = sum(case.find("skipped") is not None for case in cases)
    failed = sum(case.find("failure") is not None or case.find("error") is not None for case in cases)
    return len(cases) - skipped - failed, skipped, failed


def run_benchmark(out: Path, limit_s: float) -> Outcome:
    """Run the benchmark. It begins no further size when most of its time is over, and keeps what it has.

    Args:
        out: folder of its results.
        limit_s: seconds that it may take.
    """
    result = out / "attention.json"
    result.unlink(missing_ok=True)
    tool = [sys.executable, "tools/benchmark_attention.py", "--device", "cuda", "--dtype", "bfloat16"]
    status = run([*tool, "--out", str(out), "--time-limit", f"{0.75 * limit_s:.0f}"], limit_s)
    detail = f"status {status}" if status is not None else f"not done after {limit_s:.0f} s"
    if not result.is_file():
        return Outcome("benchmark", "failed", f"{detail}; no results")
    measured = json.loads(result.read_text())
    sizes = len({tuple(row["grid"]) for row in measured["rows"]})
    planned = len(measured["settings"]["sizes"]) + len(measured["settings"]["grids"])
    return Outcome(
        "benchmark", "failed" if status != 0 else "passed", f"{detail}; {sizes} of {planned} sizes, in {out}"
    )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("work_dirs/gpu_check"), help="folder of the results")
    parser.add_argument("--skip-benchmark", action="store_true", help="leave the benchmark out")
    parser.add_argument("--minutes", type=float, default=10.0, help="that all steps may take; more for a slower GPU")
    return parser.parse_args(argv)


def limits(minutes: float) -> Iterator[float]:
    """Seconds that each step may take, by the time when it is begun: what is left, without the shares of later steps.

    Args:
        minutes: that all steps may take.
    """
    end = time.perf_counter() + 60 * minutes
    shares = [60 * minutes * share / sum(SHARES.values()) for share in SHARES.values()]
    for i in range(len(shares)):
        yield end - time.perf_counter() - sum(shares[i + 1 :])


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if why := problem():
        print(f"gpu-check: {why}", file=sys.stderr)
        return 2
    import torch
    import triton

    out, limit = args.out.resolve(), limits(args.minutes)
    out.mkdir(parents=True, exist_ok=True)
    about = f"{torch.cuda.get_device_name()}; torch {torch.__version__}, triton {triton.__version__}"
    print(f"gpu-check: {about}")

    outcomes = [run_tests("kernel tests", out / "kernel_tests.xml", next(limit), *side_by_side())]
    sanitizer = find_sanitizer()
    for tool in ("memcheck", "racecheck"):
        seconds = next(limit)
        if sanitizer is None:
            outcomes.append(Outcome(tool, "not run", "compute-sanitizer not found"))
            continue
        command = (sanitizer, "--tool", tool, "--error-exitcode", "86")
        outcomes.append(run_tests(tool, out / f"{tool}.xml", seconds, "-k", SMALL, sanitizer=command))
    if args.skip_benchmark:
        outcomes.append(Outcome("benchmark", "not run", "--skip-benchmark"))
    else:
        outcomes.append(run_benchmark(out / "benchmark", next(limit)))

    print(f"\ngpu-check: {about}")
    for outcome in outcomes:
        print(f"    {outcome.step:<14} {outcome.status:<8} {outcome.detail}")
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
