"""Scenes with a cue: what is asked for, and that nothing but the corner tells."""

import numpy as np

from fma_mm.datasets import CuedScenes, DigitScenes


def test_asked_are_the_digits_in_the_colour_of_the_cue():
    plain, cued = DigitScenes(num_scenes=40, seed=2), CuedScenes(num_scenes=40, seed=2)
    colors = []
    for index in range(40):
        before, info = plain.get_data_info(index), cued.get_data_info(index)
        img, seg_map = info["img"].astype(int), info["gt_seg_map"].astype(bool)
        ink = before["gt_seg_map"] > 0
        blue = img[..., 0] > img[..., 2]
        corner = np.zeros_like(ink)
        corner[:24, :24] = True
        assert np.array_equal(seg_map, ink & ~corner & (blue == (info["cue"] == 0)))
        assert np.array_equal(img[~ink & ~corner], before["img"][~ink & ~corner])
        cue = info["img"][:24, :24]
        assert cue.max() > 200 and cue.max((0, 1)).argmax() == (2 if info["cue"] else 0) and cue[0, 0].max() < 100
        colors += [(info["cue"], digit["color"]) for digit in info["digits"]]
    shares = [colors.count(pair) / len(colors) for pair in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert min(shares) > 0.15, "colours and cues do not depend on each other"


def test_a_scene_is_a_function_of_its_number():
    one, two = CuedScenes(split="val", num_scenes=5), CuedScenes(split="val", num_scenes=9)
    for key in ("img", "gt_seg_map"):
        assert np.array_equal(one.get_data_info(3)[key], two.get_data_info(3)[key])
    assert one.metainfo["classes"] == ("other", "asked")
