"""Pictures as patches, at their own size and aspect ratio.

    picture -> sides that are whole patches -> open, patches of a row, a mark, patches of the next row, ..., close

A mark stands between rows alone, so a picture of h x w patches is h * w + h + 1 tokens. Without marks 2 x 6 patches could not be told from
3 x 4. A patch carries its pixels, channel by channel, with a margin around it if that is asked for, and if asked for where it lies.

Source: SOLO, arXiv:2407.06438, and its code, for the rule of sizes and the marks; the margin lets an encoder of patches be a stem of
strided convolutions. Places as sines as in NeRF, arXiv:2003.08934, equation 4.

Axes: y, x pixels   h, w patches   n patches   c channels   f features of a patch
"""

from __future__ import annotations

import math

import numpy as np
import torch

from mmlm.base.errors import DataError
from mmlm.stream import Segment
from mmlm.tokenizers.base import SavedConfig
from mmlm.tokenizers.config import ImagePatchesConfig

VISION = "vision"
OPEN, CLOSE, ROW, PATCH = range(4)
FREQUENCIES = 4  # of the sines of each coordinate


def fitted(height: int, width: int, patch: int, max_side: int, max_patches: int) -> tuple[int, int]:
    """Sides of whole patches for a picture, each less than a patch away from its shape. Pictures are never made larger than that.

    The long side becomes the next multiple of the patch, at most max_side (a multiple itself), the other one follows it. Where these are
    more than max_patches patches, the largest scale with at most so many.
    """
    found = _fitted(height, width, patch, max_side)
    if found[0] * found[1] <= max_patches * patch * patch:
        return found
    low, high = patch, max_side
    while low < high:  # the number of patches rises with the longest side
        middle = (low + high + patch) // (2 * patch) * patch
        rows, columns = _fitted(height, width, patch, middle)
        low, high = (middle, high) if rows * columns <= max_patches * patch * patch else (low, middle - patch)
    return _fitted(height, width, patch, low)


def _fitted(height: int, width: int, patch: int, max_side: int) -> tuple[int, int]:
    longest = min(math.ceil(max(height, width) / patch) * patch, max_side)
    shortest = math.ceil(max(int(longest * min(height, width) / max(height, width)), 1) / patch) * patch
    return (shortest, longest) if height <= width else (longest, shortest)


def patchify(pixels_yxc: np.ndarray, patch: int, margin: int = 0) -> np.ndarray:
    """[h, w, f]: the pixels of each patch and a margin around it, c first; what lies outside the picture is 0. Sides are whole patches."""
    size = patch + 2 * margin
    padded = np.pad(pixels_yxc, ((margin, margin), (margin, margin), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(0, 1))[::patch, ::patch]
    return np.ascontiguousarray(windows).reshape(*windows.shape[:2], -1)


def unpatchify(patches_hwf: np.ndarray, patch: int, margin: int = 0) -> np.ndarray:
    """The pixels [y, x, c] that patchify was given."""
    rows, columns, size = *patches_hwf.shape[:2], patch + 2 * margin
    inner = patches_hwf.reshape(rows, columns, -1, size, size)[..., margin : margin + patch, margin : margin + patch]
    return inner.transpose(0, 3, 1, 4, 2).reshape(rows * patch, columns * patch, -1)


def places(rows: int, columns: int) -> np.ndarray:
    """[h, w, 4 * FREQUENCIES]: sines and cosines of where the middle of each patch lies, from 0 to 1 down and across."""
    scale = np.pi * 2.0 ** np.arange(FREQUENCIES)
    down, across = ((np.arange(count) + 0.5)[:, None] / count * scale for count in (rows, columns))
    parts = [np.sin(down), np.cos(down), np.sin(across), np.cos(across)]
    shape = (rows, columns, FREQUENCIES)
    whole = [np.broadcast_to(each[:, None], shape) for each in parts[:2]] + [np.broadcast_to(each[None], shape) for each in parts[2:]]
    return np.concatenate(whole, axis=-1).astype(np.float32)


class ImagePatches(SavedConfig):
    """Pictures, uint8 [y, x, 3], to segments whose patches carry features for the encoder of the same name."""

    file = "image_patches.json"

    def __init__(self, config: ImagePatchesConfig) -> None:
        self.config = config
        self.mean = np.array(config.mean, dtype=np.float32) * 255
        self.scale = 1 / (np.array(config.deviation, dtype=np.float32) * 255)

    @property
    def sizes(self) -> dict[str, int]:
        """Open, close, a mark between rows, and what stands for a patch."""
        return {VISION: 4}

    @property
    def num_features(self) -> int:
        """f: numbers that a patch carries."""
        return 3 * (self.config.patch + 2 * self.config.margin) ** 2 + (4 * FREQUENCIES if self.config.places else 0)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches down and across of a picture."""
        config = self.config
        rows, columns = fitted(height, width, config.patch, config.max_side, config.max_patches)
        return rows // config.patch, columns // config.patch

    def encode(self, pixels_yxc: np.ndarray) -> Segment:
        """A picture as a segment without loss. Raises DataError for anything but uint8 [y, x, 3] with pixels."""
        if pixels_yxc.dtype != np.uint8 or pixels_yxc.ndim != 3 or pixels_yxc.shape[2] != 3 or not pixels_yxc.size:
            raise DataError(f"a picture is uint8 [y, x, 3], but this is {pixels_yxc.dtype} {list(pixels_yxc.shape)}.")
        config, (rows, columns) = self.config, self.grid(*pixels_yxc.shape[:2])
        pixels_yxc = resized(pixels_yxc, rows * config.patch, columns * config.patch)
        features_hwf = patchify((pixels_yxc - self.mean) * self.scale, config.patch, config.margin)
        if config.places:
            features_hwf = np.concatenate([features_hwf, places(rows, columns)], axis=-1)
        ids = row_ids(rows, columns, config.row_marks)
        features = torch.from_numpy(features_hwf.reshape(rows * columns, -1))
        return Segment(VISION, ids, features=features, encoder=VISION, feature_at=(ids == PATCH).nonzero()[:, 0])

    def decode(self, segment: Segment) -> np.ndarray:
        """The picture, uint8 [y, x, 3], at the size that it was brought to."""
        assert segment.ids is not None and segment.features is not None
        columns = _columns(segment.ids.tolist())
        numbers = 3 * (self.config.patch + 2 * self.config.margin) ** 2
        features = segment.features[:, :numbers].numpy().reshape(-1, columns, numbers)
        pixels_yxc = unpatchify(features, self.config.patch, self.config.margin) / self.scale + self.mean
        return np.clip(np.rint(pixels_yxc), 0, 255).astype(np.uint8)


def row_ids(rows: int, columns: int, marks: bool) -> torch.Tensor:
    """Ids of a picture of so many patches."""
    body = torch.full((rows, columns + int(marks)), PATCH)
    if marks:
        body[:, -1] = ROW
    inner = body.flatten()[: rows * (columns + 1) - 1] if marks else body.flatten()
    return torch.cat([torch.tensor([OPEN]), inner, torch.tensor([CLOSE])])


def _columns(ids: list[int]) -> int:
    """Patches of a row."""
    end = ids.index(ROW) if ROW in ids else len(ids) - 1
    return end - 1


def resized(pixels_yxc: np.ndarray, height: int, width: int) -> np.ndarray:
    """The picture at another size, bicubic and without aliasing."""
    if pixels_yxc.shape[:2] == (height, width):
        return pixels_yxc
    from PIL import Image

    return np.asarray(Image.fromarray(pixels_yxc).resize((width, height), Image.Resampling.BICUBIC))
