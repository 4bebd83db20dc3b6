"""tools/kernel_resources.py and the kernels that it compiles, without a GPU."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.tool_loader import load_tool

from fma_kernels.backends.triton.tuning import KERNELS, TILINGS

#: Describes the cases and the kernels of both modules; in a process without the interpreter, which makes no kernels.
DESCRIBE = """
import json
from triton import JITFunction
from fma_kernels.backends.triton import attention_kernels, pooling_kernels, shipped

def parameters(kernel):
    return {p.name: "constexpr" if p.is_constexpr else "any" if p.do_not_specialize else "own" for p in kernel.params}

launched = [
    name
    for module in (attention_kernels, pooling_kernels)
    for name, kernel in vars(module).items()
    if isinstance(kernel, JITFunction) and kernel.__module__ == module.__name__ and not name.startswith("_")
]
cases = [
    dict(case._asdict(), function=case.kernel.__name__, kernel=parameters(case.kernel)) for case in shipped.cases()
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
tool.main(["--check", "--json", sys.argv[1]])
"""

#: A tiling that spills takes the place of another.
SPILL = """
from fma_kernels.backends.triton.tuning import TILINGS, Tiling
from helpers.tool_loader import load_tool
TILINGS[4, 64] = (Tiling(64, 32, 8, 1),) * 4
del TILINGS[4, 128]
load_tool("kernel_resources").main(["--kernels", "queries", "--arch", "80", "--cases", "plain", "--check"])
"""


def run(*command: str, cache: Path) -> subprocess.CompletedProcess:
    """Run Python with kernels that can be compiled."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= dict(TRITON_CACHE_DIR=str(cache), OMP_NUM_THREADS="1", PYTHONPATH=str(Path(__file__).parents[1]))
    return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, timeout=550)


@pytest.fixture(scope="module")
def tool():
    return load_tool("kernel_resources")


@pytest.fixture
def row(tool):
    """A kernel that keeps to the rules."""
    return tool.Row(
        "forward bf16",
        90,
        4,
        True,
        registers=168,
        stack=0,
        spills=0,
        loop_spills=0,
        shared=8192,
        hmma=0,
        hgmma=8,
        copies=4,
    )


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    ended = run("-c", DESCRIBE, cache=tmp_path_factory.mktemp("cache"))
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


# ---------------------------------------------------------------------- what is shipped


@pytest.mark.slow
def test_shipped_kernels_keep_to_the_rules(tmp_path):
    out = tmp_path / "rows.json"
    ended = run("-c", GATE, str(out), cache=tmp_path / "cache")
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
        if "16 d" in row["kernel"] and row["kernel"].startswith(KERNELS):
            assert row["copies"] > 0, "partners are loaded ahead"


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
    """How a level's part of a buffer is aligned depends on the length; the attention compiles no kernel for that."""
    views = {"Q", "K", "V", "FAR_K", "FAR_V", "OUT", "LSE", "CARRY", "CARRY_LSE", "GRAD_OUT", "BIAS"}
    for case in described["cases"]:
        if case["function"].startswith("attend_"):
            assert not [name for name in views & set(case["types"]) if case["kernel"][name] == "own"], case["name"]


# ---------------------------------------------------------------------- the rules


@pytest.mark.slow
def test_check_fails_for_a_tiling_that_spills(tmp_path):
    ended = run("-c", SPILL, cache=tmp_path)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert re.search(
        r"^queries fp32 d64, sm_80: \d+ instructions move spilled registers \([1-9]\d* in a loop\), expected none$",
        ended.stdout,
        re.MULTILINE,
    )


@pytest.mark.parametrize(
    ("arch", "changes", "offence"),
    [
        (90, {}, None),
        (80, dict(hmma=8, hgmma=0), None),
        (90, dict(hmma=8, hgmma=0), "no HGMMA, expected products on the tensor cores"),
        (80, {}, "no HMMA, expected products on the tensor cores"),
        (90, dict(tensor_cores=False, hgmma=0), None),
        (
            90,
            dict(spills=3, loop_spills=1, stack=8),
            "3 instructions move spilled registers (1 in a loop), expected none",
        ),
        (90, dict(shared=227 * 1024), None),
        (90, dict(shared=227 * 1024 + 1), "232449 bytes of shared memory, expected at most 232448"),
        (80, dict(shared=200000, hmma=8), "200000 bytes of shared memory, expected at most 166912"),
    ],
)
def test_rules(row, arch, changes, offence):
    assert list(replace(row, arch=arch, **changes).offences()) == ([] if offence is None else [offence])


def test_report_names_offenders(tool, row, capsys, monkeypatch):
    rows = {80: replace(row, arch=80, hmma=8), 90: replace(row, spills=2)}
    monkeypatch.setattr(tool, "compiled", lambda case, arch: rows[arch])
    reported, offences = tool.report([(SimpleNamespace(), 80), (SimpleNamespace(), 90)])
    assert reported == list(rows.values())
    assert offences == ["forward bf16, sm_90: 2 instructions move spilled registers (0 in a loop), expected none"]
    *_, first, second = capsys.readouterr().out.splitlines()
    assert " ".join(first.split()) == "forward bf16 80 4 168 0 0 (0) 8.0 3 (12) 8 8 4"
    assert " ".join(second.split()) == "forward bf16 90 4 168 0 2 (0) 8.0 3 (12) 0 8 4"


# ---------------------------------------------------------------------- reading


LISTING = """
Resource usage:
 Common:
  GLOBAL:0
 Function attend_forward:
  REG:168 STACK:24 SHARED:0 LOCAL:0 CONSTANT[0]:608 TEXTURE:0 SURFACE:0 SAMPLER:0

        Function : attend_forward
        /*0000*/                   LDC R1, c[0x0][0x28] ;                 /* 0x00000a00ff017b82 */
                                                                          /* 0x000e300000000800 */
        /*0a50*/                   STL [R1+0x4], R2 ;                     /* 0x0000040201007387 */
        /*0a60*/              @!P0 LDGSTS.E.BYPASS.LTC128B.128 [R3], [R4.64] ; /* 0x00000000ff037fae */
        /*0a70*/                   LDGSTS.E [R5], [R6.64] ;               /* 0x00000000ff037fae */
        /*0a80*/                   LDGDEPBAR ;                            /* 0x00000000000079af */
        /*0a90*/                   HMMA.16816.F32.BF16 R8, R4, R2, R8 ;   /* 0x000000020408723c */
        /*10aa0*/                  HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], !UPT ; /* 0x0000000000187df0 */
        /*10ab0*/              @P1 LDL.LU R2, [R1+0x4] ;                  /* 0x0000040001027983 */
        /*10ac0*/              @P0 BRA 0xa60 ;                            /* 0x0000040001027983 */
        /*10ad0*/                  LDL R3, [R1+0x8] ;                     /* 0x0000080001037983 */
        /*10ae0*/              @P1 BRA 0x10b00 ;                          /* 0x0000040001027983 */
        /*10af0*/                  EXIT ;                                 /* 0x000000000000794d */
        /*10b00*/                  BRA 0x10b00 ;                          /* 0xfffffffc00fc7947 */
"""


def test_counts(tool):
    assert tool.counted(LISTING) == dict(registers=168, stack=24, spills=3, loop_spills=1, hmma=1, hgmma=1, copies=2)


@pytest.mark.parametrize(
    ("arch", "warps", "registers", "shared", "programs"),
    [
        (90, 4, 32, 0, 16),  # 64 warps
        (90, 1, 32, 0, 32),  # 32 programs
        (90, 4, 128, 0, 4),
        (90, 4, 129, 0, 3),  # registers come in eights
        (80, 4, 168, 0, 3),
        (80, 4, 169, 0, 2),  # 11 warps have room, but four schedulers hold two each
        (80, 4, 32, 54 * 1024, 2),  # 164 KiB hold three times 54, but not with what the system takes
        (90, 4, 32, 54 * 1024, 4),
    ],
)
def test_resident_programs(tool, arch, warps, registers, shared, programs):
    assert tool.ARCHITECTURES[arch].resident(warps, registers, shared) == programs


CASES = [
    SimpleNamespace(name="forward bf16 d64", tier="plain"),
    SimpleNamespace(name="forward bf16 d64, causal", tier="usual"),
    SimpleNamespace(name="keys bf16 d64", tier="plain"),
    SimpleNamespace(name="pool tokens", tier="all"),
]


@pytest.mark.parametrize(
    ("archs", "kernels", "tier", "expected"),
    [
        ([80, 90], None, "plain", ["0 80", "0 90", "2 80", "2 90"]),
        ([80, 90], None, "usual", ["0 80", "0 90", "1 90", "2 80", "2 90"]),
        ([80], None, "usual", ["0 80", "1 80", "2 80"]),
        ([80, 90], ["pool", "forward"], "all", ["0 80", "0 90", "1 80", "1 90", "3 80", "3 90"]),
        ([90], ["keys"], "usual", ["2 90"]),
    ],
)
def test_selection(tool, archs, kernels, tier, expected):
    chosen = tool.selected(CASES, archs, kernels, tier)
    assert [f"{CASES.index(case)} {arch}" for case, arch in chosen] == expected


def test_mistakes(tool, capsys, monkeypatch):
    with pytest.raises(ValueError, match="--kernels queries: expected some of forward,keys,pool"):
        tool.selected(CASES, [80], ["forward", "queries"], "usual")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for argv, message in [
        ([], "TRITON_INTERPRET is set: expected it not to be"),
        (["--arch", "75"], "choose from 80, 90"),
    ]:
        with pytest.raises(SystemExit) as ended:
            tool.main(argv)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
