"""Means over seeds."""

from fma_tools.language_models.seeds import mean, over_seeds


def test_means_over_seeds():
    found = [dict(bits=1.0, bits_by_quarter=[1.0, 3.0], tokens=5), dict(bits=2.0, bits_by_quarter=[2.0, 5.0], tokens=5)]
    means = dict(bits=1.5, bits_by_quarter=[1.5, 4.0], tokens=5, bits_by_seed=[1.0, 2.0])
    assert over_seeds(found) == means


def test_nothing_to_measure_has_no_mean():
    assert mean([0.25, 0.75]) == 0.5
    assert mean([None, None]) is None and mean([0.25, None]) is None
    found = [dict(bits=1.0, bits_by_quarter=[None, 3.0]), dict(bits=2.0, bits_by_quarter=[None, 5.0])]
    assert over_seeds(found)["bits_by_quarter"] == [None, 4.0]
