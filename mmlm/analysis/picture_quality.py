"""How much of a picture is left, and pictures beside each other.

Axes: b pictures   c colours   y, x pixels
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

import numpy as np
import torch
import torch.nn.functional as F

from mmlm.analysis.drawing import figure
from mmlm.base.errors import DataError

FULL_SCALE = 255.0
WINDOW, K1, K2 = 7, 0.01, 0.03  # of SSIM
MOST_DB = 100.0  # of pictures that are equal
SHOWN = 192  # pixels of the longer side of a drawn picture at least


def psnr(one_yxc: np.ndarray, other_yxc: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures in dB, 100 where they are equal. Raises DataError for pictures of unlike shape."""
    _check(one_yxc, other_yxc)
    error = float(np.square(one_yxc.astype(np.float64) - other_yxc).mean())
    return MOST_DB if error == 0 else min(MOST_DB, 10 * math.log10(FULL_SCALE**2 / error))


def ssim(one_yxc: np.ndarray, other_yxc: np.ndarray) -> float:
    """Structural similarity of two uint8 pictures, at most 1: mean over colours and over uniform windows of 7 x 7 that lie within.

    Pictures with a shorter side have smaller windows, down to 3. Raises DataError for pictures of unlike shape, or narrower than that.
    Source: Wang et al. 2004, doi:10.1109/TIP.2003.819861, equation 13, with sample variances.
    """
    _check(one_yxc, other_yxc)
    size = min(WINDOW, *one_yxc.shape[:2])
    size -= 1 - size % 2
    if size < 3:
        raise DataError(f"structural similarity needs 3 pixels down and across, but a picture is {list(one_yxc.shape[:2])}.")
    a, b = (torch.from_numpy(each.transpose(2, 0, 1).astype(np.float64))[None] for each in (one_yxc, other_yxc))
    mean_a, mean_b = F.avg_pool2d(a, size, 1), F.avg_pool2d(b, size, 1)
    sample = size**2 / (size**2 - 1)
    var_a, var_b = (sample * (F.avg_pool2d(each * each, size, 1) - mean**2) for each, mean in ((a, mean_a), (b, mean_b)))
    both = sample * (F.avg_pool2d(a * b, size, 1) - mean_a * mean_b)
    c1, c2 = (K1 * FULL_SCALE) ** 2, (K2 * FULL_SCALE) ** 2
    found = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(found.mean())


def side_by_side(pictures: Mapping[str, np.ndarray]) -> str:
    """Pictures with their names below them, as an element of HTML; small ones are drawn larger."""
    drawn = (figure(pixels_yxc, escape(name, quote=True), alt=name, least=SHOWN) for name, pixels_yxc in pictures.items())
    return f'<div class="heard">{"".join(drawn)}</div>'


def _check(one_yxc: np.ndarray, other_yxc: np.ndarray) -> None:
    if one_yxc.shape != other_yxc.shape:
        raise DataError(f"pictures of unlike shape cannot be compared: {list(one_yxc.shape)} and {list(other_yxc.shape)}.")
