"""`make gpu-check` says what it ran and what came of it, on machines that have little more than PyTorch and pytest."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.tool_loader import TOOLS, load_tool

ROOT = TOOLS.parent

#: What a machine with PyTorch, Triton, NumPy, pytest and matplotlib need not have.
ABSENT = (
    "mmengine",
    "mmcv",
    "mmseg",
    "mmpretrain",
    "mmdet",
    "fairseq",
    "hypothesis",
    "cv2",
    "xdist",
    "sklearn",
    "scipy",
)


@pytest.fixture
def check(monkeypatch):
    tool = load_tool("gpu_check")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    return tool


#: Runs before everything else: packages cannot be imported, this checkout's only where Python finds them by itself.
BARE = """
import sys
sys.modules.update(dict.fromkeys({absent!r}))
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
"""


@pytest.fixture
def python(tmp_path):
    """Run Python, as `make gpu-check` does, where this checkout is not installed and some packages are absent."""

    def run(*arguments, absent=ABSENT, paths=("kernels",), **variables):
        (tmp_path / "bare").mkdir(exist_ok=True)
        (tmp_path / "bare" / "sitecustomize.py").write_text(BARE.format(absent=absent))
        places = [str(tmp_path / "bare"), *(str(ROOT / path) for path in paths)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        environment.pop("TRITON_INTERPRET", None)
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, env={**environment, **variables}, capture_output=True, text=True)

    return run


# ---------------------------------------------------------------------- what has to be there


def test_without_a_gpu_it_says_so_in_a_line(check, monkeypatch, capsys):
    expected = f"gpu-check: PyTorch {torch.__version__} sees no GPU on this machine"
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        assert check.main([]) == 2
    assert capsys.readouterr().err == f"{expected}\n"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "ROCR_VISIBLE_DEVICES": ""}
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # the tests may be run by make themselves
        environment.pop(name, None)
    command = ["make", "-s", "gpu-check", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if not line.startswith("make: ***")] == [expected]


@pytest.mark.parametrize(
    ("requirements", "message"),
    [
        ({"torch": (2, 11), "no_such_package": ()}, "cannot import no_such_package: No module named"),
        ({"torch": (999, 1)}, f"has torch {torch.__version__}, expected 999.1 or newer"),
    ],
)
def test_missing_and_old_packages_are_named(check, monkeypatch, capsys, requirements, message):
    monkeypatch.setattr(check, "REQUIREMENTS", requirements)
    assert check.main([]) == 2
    error = capsys.readouterr().err
    assert message in error and sys.executable in error and error.count("\n") == 1


def test_the_versions_here_would_do(check, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert check.problem() is None


# ---------------------------------------------------------------------- tests and tools need no more than that


def test_the_tests_of_the_kernels_are_collected_without_other_packages(python):
    absent = (*ABSENT, "matplotlib", "PIL")
    done = python("-m", "pytest", "--collect-only", "-q", "tests/kernels/triton", absent=absent)
    assert done.returncode == 0, done.stdout + done.stderr
    names = [line for line in done.stdout.splitlines() if "::" in line]
    assert len(names) > 20
    small = [name for name in names if "small" in name.rpartition("/")[2].lower()]
    assert small and len(small) < len(names), "compute-sanitizer runs the small ones"


def test_the_benchmark_runs_without_other_packages(python, tmp_path):
    arguments = ["--sizes", "64", "--grids", "--rounds", "1", "--heads", "1", "--cell-size", "8", "--out", tmp_path]
    done = python("tools/benchmark_attention.py", *arguments, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "attention.png").exists()


SEEN_BY_TRITON = """
import os
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "triton":
            print(os.environ.get("TRITON_INTERPRET"), flush=True)
            os._exit(0)
import torch
sys.meta_path.insert(0, Finder())
for machine, variable in (("CPU", None), ("CPU", "0"), ("GPU", None), ("GPU", "1")):
    if not os.fork():
        assert "triton" not in sys.modules
        if variable:
            os.environ["TRITON_INTERPRET"] = variable
        torch.cuda.is_available = lambda: machine == "GPU"
        import conftest
        import triton
    os.wait()
"""


def test_triton_interprets_where_there_is_no_gpu(python):
    """Processes on machines without and with a GPU, where the variable is not set and is."""
    done = python("-c", SEEN_BY_TRITON, paths=("kernels", "tests"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "0", "None", "1"], done.stderr


# ---------------------------------------------------------------------- the steps


def executable(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_the_sanitizer_is_found_where_cuda_puts_it(check, monkeypatch, tmp_path):
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert check.find_sanitizer() is None
    # nvcc on the path may be a link into the toolkit.
    nvcc = executable(tmp_path / "cuda" / "bin" / "nvcc")
    beside = executable(tmp_path / "cuda" / "bin" / "compute-sanitizer")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").symlink_to(nvcc)
    assert check.find_sanitizer() == beside
    home = executable(tmp_path / "home" / "bin" / "compute-sanitizer")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert check.find_sanitizer() == home
    on_path = executable(tmp_path / "bin" / "compute-sanitizer")
    assert check.find_sanitizer() == on_path


def test_commands_run_on_compiled_kernels_and_end_in_time(check, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    code = (
        "import os, sys; assert 'TRITON_INTERPRET' not in os.environ; assert os.environ['EXTRA'] == '1'; "
        f"assert os.getcwd() == {str(ROOT)!r}; assert {str(ROOT / 'kernels')!r} in sys.path; sys.exit(7)"
    )
    assert check.run([sys.executable, "-c", code], 60, EXTRA="1") == 7
    # A process that the command started ends with it.
    survivor = tmp_path / "survivor"
    start = time.perf_counter()
    assert check.run(["sh", "-c", f"(sleep 1; touch {survivor}) & sleep 60"], 0.3) is None
    assert time.perf_counter() - start < 30
    time.sleep(1.2)
    assert not survivor.exists()


TESTS = {
    "passing": "def test_small(): pass\ndef test_large(): pass",
    "failing": "def test_small(): assert 0\ndef test_large(): pass",
    "skipping": "import pytest\n@pytest.mark.skip\ndef test_small(): pass",
    "broken": "import no_such_package",
    "slow": "import time\ndef test_small(): time.sleep(60)",
}


@pytest.mark.parametrize(
    ("tests", "options", "status", "detail"),
    [
        ("passing", [], "passed", "2 passed, 0 skipped, 0 failed"),
        ("passing", ["-k", "small"], "passed", "1 passed, 0 skipped, 0 failed"),
        ("passing", ["-k", "tiny"], "failed", "status 5; 0 passed, 0 skipped, 0 failed"),
        ("failing", [], "failed", "status 1; 1 passed, 0 skipped, 1 failed"),
        ("skipping", [], "failed", "0 passed, 1 skipped, 0 failed"),
        ("broken", [], "failed", "0 passed, 0 skipped, 1 failed"),
        ("slow", [], "failed", "not done after 2 s"),
    ],
)
def test_a_step_has_passed_when_tests_passed(check, monkeypatch, tmp_path, tests, options, status, detail):
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / f"test_{tests}.py").write_text(TESTS[tests])
    monkeypatch.setattr(check, "KERNEL_TESTS", str(folder))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take longer to start than the tests to run
    report = tmp_path / "report.xml"
    report.write_text("<testsuites><testsuite><testcase/></testsuite></testsuites>")  # of a run before
    outcome = check.run_tests("kernel tests", report, 2 if tests == "slow" else 60, *options)
    assert (outcome.step, outcome.status) == ("kernel tests", status)
    assert detail in outcome.detail


# ---------------------------------------------------------------------- the summary


@pytest.fixture
def commands(check, monkeypatch):
    """Commands that would run on a machine with a GPU; commands.status is the status of those with a word in them."""

    class Commands(list):
        status: dict = {}  # noqa: RUF012

    commands = Commands()

    def run(command, limit_s, **variables):
        commands.append((command, limit_s, variables))
        for word in command:
            if word.startswith("--junitxml="):
                Path(word.partition("=")[2]).write_text("<testsuite><testcase/><testcase/></testsuite>")
        if "--out" in command:
            rows = [{"grid": [1024]}, {"grid": [1024]}, {"grid": [64, 64]}]
            result = {"settings": {"sizes": [1024, 2048], "grids": [[64, 64]]}, "rows": rows}
            folder = Path(command[command.index("--out") + 1])
            folder.mkdir(exist_ok=True)
            (folder / "attention.json").write_text(json.dumps(result))
        return next((status for word, status in commands.status.items() if word in " ".join(command)), 0)

    monkeypatch.setattr(check, "run", run)
    monkeypatch.setattr(check, "problem", lambda: None)
    monkeypatch.setattr(check, "find_sanitizer", lambda: "/cuda/compute-sanitizer")
    return commands


def summary(capsys):
    lines = capsys.readouterr().out.rpartition("gpu-check: a GPU; torch")[2].splitlines()[1:]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def test_all_steps_pass(check, commands, tmp_path, capsys):
    assert check.main(["--out", str(tmp_path)]) == 0
    assert [(step, rest.startswith("passed")) for step, rest in summary(capsys)] == [
        ("kernel", False),
        ("memcheck", True),
        ("racecheck", True),
        ("benchmark", True),
    ]
    tests, memcheck, racecheck, benchmark = (command for command, _, _ in commands)
    assert tests[:4] == [sys.executable, "-m", "pytest", "tests/kernels/triton"] and "-k" not in tests
    for tool, command in (("memcheck", memcheck), ("racecheck", racecheck)):
        assert command[:3] == ["/cuda/compute-sanitizer", "--tool", tool]
        assert "--error-exitcode" in command and command[-2:] == ["-k", check.SMALL]
    assert benchmark[1:6] == ["tools/benchmark_attention.py", "--device", "cuda", "--dtype", "bfloat16"]
    assert str(tmp_path / "benchmark") in benchmark
    assert [variables for *_, variables in commands] == [
        {}, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, {},
    ]  # fmt: skip
    # All took no time at all: each may take all that is left, but for the shares of the later ones.
    assert [limit for _, limit, _ in commands] == pytest.approx([200, 290, 380, 600], abs=5)
    limit = int(benchmark[benchmark.index("--time-limit") + 1])
    assert limit == pytest.approx(450, abs=5)


def test_a_benchmark_without_results_has_not_passed(check, commands, tmp_path):
    (tmp_path / "attention.json").write_text("{}")  # of a run before
    check.run = lambda command, limit_s: 0
    assert check.run_benchmark(tmp_path, 100) == check.Outcome("benchmark", "failed", "status 0; no results")


def test_steps_that_use_up_their_time_leave_the_others_theirs(check, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(check, "time", SimpleNamespace(perf_counter=lambda: now))
    given = []
    for limit in check.limits(minutes=20):
        given.append(limit)
        now += limit
    assert given == pytest.approx([400, 180, 180, 440])
    assert now == pytest.approx(1000 + 20 * 60)


def test_what_does_not_run_has_not_passed(check, commands, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(check, "find_sanitizer", lambda: None)
    assert check.main(["--out", str(tmp_path), "--skip-benchmark"]) == 0
    assert summary(capsys)[1:] == [
        ("memcheck", "not run  compute-sanitizer not found"),
        ("racecheck", "not run  compute-sanitizer not found"),
        ("benchmark", "not run  --skip-benchmark"),
    ]
    assert len(commands) == 1


@pytest.mark.parametrize(
    ("word", "status", "line"),
    [
        ("racecheck", 86, ("racecheck", "failed   status 86; 2 passed, 0 skipped, 0 failed, 0 s")),
        ("memcheck", None, ("memcheck", "failed   not done after 580 s")),
        ("benchmark", 1, ("benchmark", "failed   status 1; 2 of 3 sizes, in {out}/benchmark")),
        ("benchmark", None, ("benchmark", "failed   not done after 1200 s; 2 of 3 sizes, in {out}/benchmark")),
    ],
)
def test_a_failed_step_fails_the_check_and_not_the_others(check, commands, tmp_path, capsys, word, status, line):
    commands.status = {word: status}
    assert check.main(["--out", str(tmp_path), "--minutes", "20"]) == 1
    assert len(commands) == 4
    lines = summary(capsys)
    assert (line[0], line[1].format(out=tmp_path)) in lines
    assert sum("failed  " in rest for _, rest in lines) == 1
