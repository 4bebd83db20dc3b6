"""Training losses out of fairseq's log."""

from fma_tools.language_models.curves import ahead_from, mean_curve, read_curve

LINE = (
    "[2026-01-01 00:00:00,000][train_inner][INFO] - epoch 001:     {n} / 3460 loss={loss}, ppl=5.9, wps=23311.4, "
    "ups=2.85, wpb=8192, bsz=8, num_updates={n}, lr=0.006, gnorm=0.938, clip=24, train_wall=18, wall=20\n"
)


def test_curve_of_a_log(tmp_path):
    log = tmp_path / "log.txt"
    lines = [LINE.format(n=n, loss=loss) for n, loss in [(50, 5.167), (100, 4.5), (100, 4.25)]]
    log.write_text("something else, loss=3\n" + "".join(lines))
    assert read_curve(log) == [(409600, 5.167), (819200, 4.25)], "an update that was repeated after a stop counts once"


def test_mean_and_order():
    a, b = [(1, 4.0), (2, 2.0), (3, 1.0), (4, 0.5)], [(1, 2.0), (2, 2.5), (3, 1.5)]
    assert mean_curve([a, b]) == [(1, 3.0), (2, 2.25), (3, 1.25)]
    assert ahead_from(a, b) == 2 and ahead_from(b, a) is None and ahead_from(a, a) is None
    assert ahead_from([(1, 1.0), (2, 3.0), (3, 1.0)], b) == 3, "being ahead for a while does not count"
