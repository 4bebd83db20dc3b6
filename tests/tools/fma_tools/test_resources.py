"""Resources of kernels: the rules, the reading of listings, the selection of cases."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from fma_tools import resources
from fma_tools.command import CommandError
from fma_tools.resources import KernelRow


@pytest.fixture
def row():
    """A kernel that keeps to the rules."""
    return KernelRow(
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


def test_report_names_offenders(row, capsys, monkeypatch):
    rows = {80: replace(row, arch=80, hmma=8), 90: replace(row, spills=2)}
    monkeypatch.setattr(resources, "compiled", lambda case, arch: rows[arch])
    reported, offences = resources.report([(SimpleNamespace(), 80), (SimpleNamespace(), 90)])
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


def test_counts():
    assert resources.counted(LISTING) == dict(
        registers=168, stack=24, spills=3, loop_spills=1, hmma=1, hgmma=1, copies=2
    )


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
def test_resident_programs(arch, warps, registers, shared, programs):
    assert resources.ARCHITECTURES[arch].resident(warps, registers, shared) == programs


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
def test_selection(archs, kernels, tier, expected):
    chosen = resources.selected(CASES, archs, kernels, tier)
    assert [f"{CASES.index(case)} {arch}" for case, arch in chosen] == expected


def test_an_unknown_kernel_is_refused():
    with pytest.raises(CommandError, match="--kernels queries: expected some of forward,keys,pool"):
        resources.selected(CASES, [80], ["forward", "queries"], "usual")
