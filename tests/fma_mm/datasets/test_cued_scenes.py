"""Scenes with a cue: what is asked for, and how often."""

import numpy as np
import pytest

from fma_mm.datasets import CuedScenes, DigitScenes


def test_asked_are_the_digits_like_the_cue():
    plain = DigitScenes(num_scenes=40, seed=2)
    cued = CuedScenes(num_scenes=40, seed=2, digits=range(10))
    asked = 0
    for index in range(40):
        before, info = plain.get_data_info(index), cued.get_data_info(index)
        expected = (before["gt_seg_map"] == 1 + info["cue"]).astype(np.uint8)
        expected[:24, :24] = 0
        assert np.array_equal(info["gt_seg_map"], expected)
        assert np.array_equal(info["img"][24:], before["img"][24:])
        corner = info["img"][:24, :24]
        assert (corner == corner[..., :1]).all() and corner.max() > 200 and corner[0, 0, 0] < 100
        asked += expected.any()
    assert asked > 5
    again = CuedScenes(num_scenes=40, seed=2).get_data_info(7)
    assert np.array_equal(again["img"], cued.get_data_info(7)["img"])


def test_only_the_kinds_that_are_wanted():
    scenes = CuedScenes(split="val", num_scenes=60, digits=(0, 1))
    infos = [scenes.get_data_info(i) for i in range(60)]
    assert {info["cue"] for info in infos} == {0, 1}
    assert {digit["label"] for info in infos for digit in info["digits"]} == {0, 1}
    shares = [info["gt_seg_map"].mean() for info in infos]
    assert 0.01 < np.mean(shares) < 0.2
    assert scenes.metainfo["classes"] == ("other", "asked")


@pytest.mark.parametrize("digits", [(1,), (1, 1), (3, 10), ()])
def test_mistakes_are_named(digits):
    with pytest.raises(ValueError, match=r"digits=.*two or more different digits"):
        CuedScenes(digits=digits)
