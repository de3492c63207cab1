"""What is left of a picture: figures worked out by hand, and those of scikit-image."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmlm.analysis.picture_quality import psnr, side_by_side, ssim
from mmlm.base.errors import DataError


def pair(height: int = 40, width: int = 33, noise: float = 20.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    smooth = 127 + 100 * np.sin(np.arange(height * width * 3).reshape(height, width, 3) / 40)
    other = smooth + rng.normal(0, noise, smooth.shape)
    one, two = (np.clip(each, 0, 255).astype(np.uint8) for each in (smooth, other))
    return one, two


def test_psnr_of_known_errors() -> None:
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr(black, black) == 100
    assert psnr(black, black + 255) == pytest.approx(0)
    assert psnr(black, black + 1) == pytest.approx(20 * math.log10(255))


@pytest.mark.parametrize("size", [(40, 33), (7, 9), (5, 6), (3, 30)])
def test_ssim_is_that_of_scikit_image(size) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    one, other = pair(*size)
    window = min(7, min(size) - 1 + min(size) % 2)
    expected = metrics.structural_similarity(one, other, channel_axis=2, win_size=window)
    assert ssim(one, other) == pytest.approx(expected, abs=1e-6)
    assert ssim(one, one) == pytest.approx(1) and -1 <= expected < 0.99


def test_pictures_that_cannot_be_compared_are_told() -> None:
    one, other = pair()
    with pytest.raises(DataError, match=r"of unlike shape cannot be compared: \[40, 33, 3\] and \[39, 33, 3\]"):
        psnr(one, other[1:])
    with pytest.raises(DataError, match="needs 3 pixels down and across"):
        ssim(one[:2], other[:2])


def test_pictures_side_by_side_are_named_and_small_ones_are_drawn_larger() -> None:
    found = side_by_side({"<a>": pair(16, 32)[0], "decoded": pair(400, 20)[0]})
    assert "&lt;a&gt;" in found and found.count("data:image/png;base64,") == 2
    assert 'width="192" height="96"' in found and 'width="20" height="400"' in found
