"""tools/kernel_resources.py and the kernels that it compiles, without a GPU."""

import json
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from helpers.tool_loader import load_tool

from fma_kernels.backends.triton.attention_tilings import KERNELS, TILINGS

#: Describes the cases and the kernels of both modules; in a process without the interpreter, which makes no kernels.
DESCRIBE = """
import json
from triton import JITFunction
from fma_kernels.backends.triton import attention_kernels, compile_cases, pooling_kernels

def parameters(kernel):
    return {p.name: "constexpr" if p.is_constexpr else "any" if p.do_not_specialize else "own" for p in kernel.params}

launched = [
    name
    for module in (attention_kernels, pooling_kernels)
    for name, kernel in vars(module).items()
    if isinstance(kernel, JITFunction) and kernel.__module__ == module.__name__ and not name.startswith("_")
]
cases = [
    dict(case._asdict(), function=case.kernel.__name__, kernel=parameters(case.kernel))
    for case in compile_cases.cases()
]
print(json.dumps(dict(launched=launched, cases=cases)))
"""

#: What the tool compiles by default, less half of float32: each of its tilings is compiled once for each architecture
#: and once in each precision, and over the head dimensions both precisions are for both architectures.
GATE = """
import sys
from helpers.tool_loader import load_tool

def kept(case, arch):
    float32 = "tf32" in case.name or "fp32" in case.name
    return not float32 or ("tf32" in case.name) + ("d128" in case.name) + (arch == 90) in (0, 2)

tool = load_tool("kernel_resources")
selected = tool.selected
tool.selected = lambda *arguments: [chosen for chosen in selected(*arguments) if kept(*chosen)]
sys.exit(tool.main(["--check", "--json", sys.argv[1]]))
"""

#: A tiling that spills takes the place of another.
SPILL = """
import sys
from fma_kernels.backends.triton.attention_tilings import TILINGS, Tiling
from helpers.tool_loader import load_tool
TILINGS[4, 64] = (Tiling(64, 32, 8, 1),) * 5
del TILINGS[4, 128]
sys.exit(load_tool("kernel_resources").main(["--kernels", "queries", "--arch", "80", "--cases", "plain", "--check"]))
"""


def run(*command: str, cache: Path) -> subprocess.CompletedProcess:
    """Run Python with kernels that can be compiled."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= dict(TRITON_CACHE_DIR=str(cache), OMP_NUM_THREADS="1", PYTHONPATH=str(Path(__file__).parents[1]))
    return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, timeout=550)


@pytest.fixture(scope="module")
def cache(request) -> Path:
    """Triton's cache, in that of pytest: kernels that have not changed since the last run are not compiled again."""
    return request.config.cache.mkdir("triton")


@pytest.fixture(scope="module")
def tool():
    return load_tool("kernel_resources")


@pytest.fixture(scope="module")
def described(cache):
    ended = run("-c", DESCRIBE, cache=cache)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


# ---------------------------------------------------------------------- what is shipped


@pytest.mark.slow
def test_shipped_kernels_keep_to_the_rules(cache, tmp_path):
    out = tmp_path / "rows.json"
    ended = run("-c", GATE, str(out), cache=cache)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = json.loads(out.read_text())
    assert len(ended.stdout.splitlines()) == len(rows) + 3, "a header of two lines, the rows and their number"
    names = {arch: {row["kernel"] for row in rows if row["arch"] == arch} for arch in (80, 90)}
    for arch, float32 in {80: ("fp32 d64", "tf32 d128"), 90: ("tf32 d64", "fp32 d128")}.items():
        tilings = {f"{kernel} {name}" for kernel, name in product(KERNELS, ("bf16 d64", "bf16 d128", *float32))}
        assert tilings <= names[arch]
    assert len(names[80]) < len(names[90]), "options for the last architecture"
    for row in rows:
        assert 16 <= row["registers"] <= 255
        assert 1 <= row["programs"] <= 32
        kernel, _, options = row["kernel"].partition(" ")
        if options.startswith("bf16 d") and kernel in KERNELS:
            tiling = TILINGS[2, int(options.removeprefix("bf16 d").partition(",")[0])][KERNELS.index(kernel)]
            assert (row["copies"] > 0) == (tiling.stages > 1), "partners are loaded ahead, or not"


def test_every_tiling_and_kernel_has_cases(described):
    names = [case["name"] for case in described["cases"]]
    assert len(names) == len(set(names))
    assert set(described["launched"]) == {case["function"] for case in described["cases"] if case["tier"] != "all"}
    plain = {case["name"]: case for case in described["cases"] if case["tier"] == "plain"}
    for ((size, dim), tilings), (column, kernel) in product(TILINGS.items(), enumerate(KERNELS)):
        for dtype in ("bf16",) if size == 2 else ("fp32", "tf32"):
            case, tiling = plain[f"{kernel} {dtype} d{dim}"], tilings[column]
            constants = dict(DIM=dim, BLOCK_OWN=tiling.own, BLOCK=tiling.block, PARTIAL=kernel == "far_keys")
            assert case["constants"].items() >= {k: v for k, v in constants.items() if k in case["kernel"]}.items()
            assert (case["warps"], case["stages"]) == (tiling.warps, tiling.stages)
            assert case["types"]["Q"] == ("*bf16" if size == 2 else "*fp32")
            assert case["tensor_cores"] == (size == 2)
            assert case["constants"]["PRECISION"] == ("tf32" if dtype == "tf32" else "ieee")


def test_cases_give_every_argument(described):
    for case in described["cases"]:
        assert {*case["types"], *case["constants"]} == set(case["kernel"]), case["name"]
        compiled_for = {name for name, kind in case["kernel"].items() if kind == "constexpr"}
        missing = {name for name, value in case["constants"].items() if value is None}  # optional tensors
        assert set(case["constants"]) == compiled_for | missing, case["name"]


def test_new_lengths_compile_nothing(described):
    """Neither sizes nor strides are among what a kernel is compiled for."""
    for case in described["cases"]:
        integers = [name for name, kind in case["types"].items() if kind.startswith("i")]
        assert not [name for name in integers if case["kernel"][name] == "own"], case["name"]


def test_views_compile_nothing(described):
    """The length decides how a level lies in a buffer; the attention compiles no kernel for it."""
    views = {"Q", "K", "V", "FAR_K", "FAR_V", "OUT", "LSE", "CARRY", "CARRY_LSE", "GRAD_OUT", "BIAS"}
    for case in described["cases"]:
        if case["function"].startswith("attend_"):
            assert not [name for name in views & set(case["types"]) if case["kernel"][name] == "own"], case["name"]


# ---------------------------------------------------------------------- the rules


@pytest.mark.slow
def test_check_fails_for_a_tiling_that_spills(cache):
    ended = run("-c", SPILL, cache=cache)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert re.search(
        r"^queries fp32 d64, sm_80: \d+ instructions move spilled registers \([1-9]\d* in a loop\), expected none$",
        ended.stdout,
        re.MULTILINE,
    )


@pytest.mark.slow
def test_other_targets(cache, tmp_path):
    """One kernel for a GPU of each maker: compiled, within its shared memory, without a spill."""
    out = tmp_path / "rows.json"
    options = ["--targets", "sm_120", "gfx942", "--kernels", "attend_backward_carry", "--cases", "plain"]
    script = "import sys; from helpers.tool_loader import load_tool; "
    script += "sys.exit(load_tool('kernel_resources').main(sys.argv[1:]))"
    ended = run("-c", script, *options, "--check", "--json", str(out), cache=cache)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = json.loads(out.read_text())
    assert [row["target"] for row in rows] == ["sm_120", "gfx942"]
    assert all(row["shared"] > 0 and row["spills"] == 0 for row in rows)


def test_mistakes(tool, capsys, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for argv, message in [
        ([], "TRITON_INTERPRET is set: expected it not to be"),
        (["--arch", "75"], "choose from 80, 90"),
    ]:
        with pytest.raises(SystemExit) as ended:
            tool.main(argv)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
