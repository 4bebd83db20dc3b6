"""Tables, and the growth of times."""

from fma_tools.attention.measuring import MethodRow
from fma_tools.attention.report import HEADER, HEADER_GPU, growth, table


def test_a_gpus_table():
    figures = dict(forward_mib=1, forward_backward_mib=40, forward_extra_mib=0, held_mib=80)
    rows = [
        MethodRow(
            method, [64, 64], 4096, forward, backward, forward + backward, forward_backward_extra_mib=extra,
            forward_floor_ms=0.5, backward_floor_ms=1.0, **figures,
        )
        for method, forward, backward, extra in [
            ("SDPA (flash)", 4, 10, 8),
            ("SDPA (cuDNN)", 2, 8, 4),
            ("FMA, summaries given", 1, 4, 2),
        ]
    ]  # fmt: skip
    rows.append(MethodRow("FMA by flex_attention", [64, 64], 4096, reason="refused: no"))
    flash, _, fma, flex = (line.split() for line in table(rows, gpu=True).splitlines())
    # Against the fastest SDPA of each pass.
    assert flash[3:] == ["4.000", "0.5x", "12%", "10.000", "0.8x", "10%", "14.000", "0.7x", "8", "10%"]
    assert fma[4:] == ["1.000", "2.0x", "50%", "4.000", "2.0x", "25%", "5.000", "2.0x", "2", "2%"]
    assert flex == ["64x64", "FMA", "by", "flex_attention", "refused:", "no"]
    assert len(HEADER_GPU) == len(table(rows[:1], gpu=True))
    assert len(HEADER) == len(table(rows[:1]))


def test_growth_to_lengths_two_or_four_times_as_long():
    rows = [MethodRow("FMA", [n], n, n / 1024, None, n / 256) for n in (4096, 1024, 2048, 3072, 16384)]
    rows += [MethodRow("FMA", [8, 8], 64, 1, None, 1), MethodRow("FMA", [512], 512, reason="skipped")]
    assert growth(rows, "FMA") == [
        ("1024 -> 2048", 2, 2),
        ("4096 -> 16384", 4, 4),
    ]
