"""Pictures as the patches of an encoder of whole pictures.

    picture -> the size that the encoder reads -> open, tokens of a row of its patches, a mark, tokens of the next row, ..., close

The tokens are those of pictures that are cut into patches, see mmlm.tokenizers.image_patches; their vectors are what the encoder makes of
the whole picture. A picture is brought to the size as a whole, so that shares of its sides stay what they are.

Source: LLaVA, arXiv:2304.08485; the marks between rows as in SOLO, arXiv:2407.06438.

Axes: y, x pixels   c channels
"""

from __future__ import annotations

import numpy as np

from mmlm.base.errors import RecipeError
from mmlm.encoders.images import CHANNELS, ImageEncoder, PictureInput
from mmlm.stream import Segment
from mmlm.tokenizers.base import SavedConfig
from mmlm.tokenizers.config import WholeImagesConfig
from mmlm.tokenizers.image_patches import PATCH, VISION, row_ids

DIGITS = 4  # to which means and deviations are told and compared


class WholeImages(SavedConfig):
    """Pictures, uint8 [y, x, 3], to segments of one whole thing, float32 [1, c, y, x]."""

    num_features = CHANNELS
    file = "whole_images.json"

    def __init__(self, config: WholeImagesConfig) -> None:
        self.config = config
        down, across = config.size
        self.input = PictureInput((down, across), tuple(config.mean), tuple(config.deviation))

    @property
    def sizes(self) -> dict[str, int]:
        """Open, close, a mark between rows, and what stands for a patch."""
        return {VISION: 4}

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches down and across, of every picture the same."""
        down, across = self.config.grid
        return down, across

    def encode(self, pixels_yxc: np.ndarray) -> Segment:
        """A picture as a segment without loss. Raises DataError for anything but uint8 [y, x, 3] with pixels."""
        ids = row_ids(*self.grid(*pixels_yxc.shape[:2]), self.config.row_marks)
        places = (ids == PATCH).nonzero()[:, 0]
        return Segment(VISION, ids, features=self.input(pixels_yxc)[None], encoder=VISION, feature_at=places, whole=True)

    def decode(self, segment: Segment) -> np.ndarray:
        """The picture, uint8 [y, x, 3], at the size that it was brought to."""
        assert segment.features is not None
        return self.input.pixels(segment.features[0])

    def check(self, encoder: object, name: str) -> None:
        """Raises RecipeError where an encoder of a model reads other pictures, or gives another number of patches, with what to write."""
        if not isinstance(encoder, ImageEncoder):
            raise RecipeError(f"encoders.{name}: reads no whole pictures, which the tokenizer whole_images gives; timm and open_clip do.")
        theirs, (grid, _) = encoder.input, encoder.grid_and_size()
        told = {"size": list(theirs.size), "grid": list(grid), "mean": _rounded(theirs.mean), "deviation": _rounded(theirs.deviation)}
        own = {"size": self.config.size, "grid": self.config.grid, "mean": _rounded(self.config.mean)}
        own["deviation"] = _rounded(self.config.deviation)
        if wrong := {key: value for key, value in told.items() if own[key] != value}:
            said = ", ".join(f"{key}: {own[key]}" for key in wrong)
            wanted = ", ".join(f"{key}: {value}" for key, value in wrong.items())
            raise RecipeError(f"tokenizers: whole_images has {said}, but encoders.{name} wants {wanted}.")


def _rounded(numbers: tuple[float, ...] | list[float]) -> list[float]:
    return [round(each, DIGITS) for each in numbers]
