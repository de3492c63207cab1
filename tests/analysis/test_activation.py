"""Activation as a mask: by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mmlm.analysis.activation import activation, mask_overlap
from mmlm.base.errors import DataError
from mmlm.data.config.scenes import ScenesConfig
from mmlm.data.scenes.objects import mask


def test_activation_is_length_or_the_share_of_energy_that_is_not_constant():
    tokens_nd = np.array([[3.0, 4.0], [1.0, 1.0], [2.0, -2.0], [3.0, 1.0]])
    np.testing.assert_allclose(activation(tokens_nd), [5, 2**0.5, 8**0.5, 10**0.5])
    np.testing.assert_allclose(activation(tokens_nd, "frequency"), [1 / 50, 0, 1, 0.2])
    x_nd = np.random.default_rng(0).normal(size=(5, 12)) + 0.7
    power = np.abs(np.fft.fft(x_nd, axis=1)) ** 2
    np.testing.assert_allclose(activation(x_nd, "frequency"), power[:, 1:].sum(1) / power.sum(1))


def test_overlap_is_that_of_the_best_threshold_common_to_all_pictures():
    mask_hw = np.zeros((4, 4), dtype=bool)
    mask_hw[:2, :2] = True  # the first of four patches
    found = mask_overlap([np.array([[5.0, 2.0], [1.0, 1.0]])], [mask_hw])
    assert found.iou == 1 and found.whole == 0.25 and 0.25 < found.threshold < 1
    half = mask_hw.copy()
    half[:2] = True  # the first two patches: their activation is 1 and 0.5, the others' 0
    graded = np.array([[4.0, 2.0], [0.0, 0.0]])
    found = mask_overlap([graded, graded], [mask_hw, half])  # above 0.5: 1 and 1/2; below: 1/2 and 1
    assert found.iou == 0.75 and found.whole == (0.25 + 0.5) / 2
    assert mask_overlap([np.ones((2, 2))], [half]).iou == 0.5  # what is the same everywhere tells nothing


def test_patches_lie_where_the_picture_has_them():
    mask_hw = np.zeros((6, 9), dtype=bool)
    mask_hw[3:, 6:] = True  # the last of 2 x 3 patches
    values = np.zeros((2, 3))
    values[1, 2] = 1
    assert mask_overlap([values], [mask_hw]).iou == 1
    values[1, 2], values[1, 0] = 0, 1
    assert mask_overlap([values], [mask_hw]).iou == pytest.approx(mask_hw.mean())


@pytest.mark.parametrize(("masks", "message"), [([], "1 activations and 0 masks"), ([np.zeros((2, 2), dtype=bool)], "mask 0: is empty")])
def test_what_cannot_be_compared_is_told(masks, message):
    with pytest.raises(DataError, match=message):
        mask_overlap([np.ones((2, 2))], masks)


def test_masks_of_scenes_are_what_is_drawn():
    source = ScenesConfig(max_things=1, split="test", count=8).build()
    for number in range(8):
        record, scene, _ = source.with_programs(number)
        found, (item,), pixels = mask(scene.items, 64, 64), scene.items, record.read().astype(float)
        ys, xs = found.nonzero()
        x1, y1, x2, y2 = item.box
        assert x1 - 1 <= xs.min() < x1 + 2 and x2 - 2 <= xs.max() <= x2 and y1 - 1 <= ys.min() < y1 + 2 and y2 - 2 <= ys.max() <= y2
        away = np.abs(pixels - pixels[~found].mean(0)).sum(-1)
        assert away[found].mean() > 4 * away[~found].mean()
