"""Training codes of pictures as a run of its own, and what is left of a picture that went through them.

Axes: b pictures   c colours   y, x pixels   t codes   u books
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmlm.analysis.drawing import write_png
from mmlm.analysis.picture_quality import psnr, side_by_side, ssim
from mmlm.base.errors import RecipeError
from mmlm.data.base import Drawn, Draws
from mmlm.data.pictures import Picture
from mmlm.objectives.base import Losses
from mmlm.tasks.config import ImageCodesTaskConfig
from mmlm.tasks.forms import Data, Field, Image, Values
from mmlm.tasks.trains_codec import TrainsCodec
from mmlm.tokenizers.image_codes import ImageCodes, ImageModel, to_network, told
from mmlm.tokenizers.image_patches import resized

MEAN, SMALL, SQUARES = "the mean colour", "a smaller picture of as many bits", "the mean colour of each square, smoothed"
PIXEL_BITS = 24
PICTURED = 6  # pictures in a report


@dataclass(frozen=True)
class Coded:
    """A picture at the size at which it is coded, its codes [t, u], and the picture that they decode to."""

    true: np.ndarray
    codes_tu: Tensor
    decoded: np.ndarray
    position: Tensor


@dataclass
class Squares:
    """A batch of square pictures [b, c, y, x] from -1 to 1. patch: pixels along a side of what a code stands for."""

    x_bcyx: Tensor
    patch: int

    @property
    def num_tokens(self) -> int:
        """Codes that these pictures give."""
        return self.x_bcyx[:, 0].numel() // self.patch**2

    def to(self, device: torch.device | str) -> Squares:
        """The same on another device."""
        return Squares(self.x_bcyx.to(device), self.patch)


class SquareSamples(Drawn):
    """Square parts of pictures: of a random size from `side` to the whole shorter side, brought to `side` pixels, some of them mirrored."""

    def __init__(self, records: Draws, side: int, patch: int, flip: float) -> None:
        self.records, self.side, self.patch, self.flip = records, side, patch, flip
        self.fingerprint = records.fingerprint

    def draw(self, rng: np.random.Generator) -> tuple[Picture, np.ndarray]:
        """A picture, and the part of it, uint8 [side, side, 3]."""
        record: Picture = self.records.draw(rng)
        part_yxc = square_part(record.read(), self.side, rng)
        if rng.random() < self.flip:
            part_yxc = part_yxc[:, ::-1]
        return record, np.ascontiguousarray(part_yxc)

    def collate(self, items: list[np.ndarray]) -> Squares:
        """Parts as one batch."""
        return Squares(torch.stack([to_network(each) for each in items]), self.patch)


def square_part(pixels_yxc: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """A square part of a picture at `side` pixels; only pictures whose shorter side is less are made larger."""
    height, width = pixels_yxc.shape[:2]
    shortest = min(height, width)
    size = int(rng.integers(min(side, shortest), shortest + 1))
    top, left = int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1))
    return resized(np.ascontiguousarray(pixels_yxc[top : top + size, left : left + size]), side, side)


class ImageCodesLearner(nn.Module):
    """The network under its losses: mean absolute and mean squared error of values from -1 to 1, and those of the quantizer."""

    names = ("absolute", "squared")

    def __init__(self, model: ImageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Squares) -> Losses:
        """Sums over the pictures, and their number."""
        decoded_bcyx, _, parts = self.model(batch.x_bcyx)
        error_bcyx, count = decoded_bcyx - batch.x_bcyx, float(len(batch.x_bcyx))
        found = {"absolute": error_bcyx.abs().mean(), "squared": error_bcyx.square().mean()}
        return {**parts, **{name: (value * count, torch.tensor(count)) for name, value in found.items()}}

    def loss_weights(self, batch: Squares) -> dict[str, float]:
        """Pictures."""
        return dict.fromkeys((*self.model.quantizer.names, *self.names), float(len(batch.x_bcyx)))


class ImageCodesTask(TrainsCodec[ImageCodes]):
    """Trains one of the recipe's tokenizers, which must be of the type image_codes."""

    asks = None
    metrics = ("psnr", "ssim", "perplexity", "used")
    inputs: Mapping[str, Field] = {"image": Image("Picture")}
    outputs: Mapping[str, Field] = {
        "image": Image("Decoded from its codes"),
        "codes": Data("Codes", "rows, columns, and each book's row by row"),
    }

    def __init__(self, config: ImageCodesTaskConfig, tokenizers: Mapping[str, Any]) -> None:
        super().__init__(config, tokenizers, ImageCodes, "image_codes")
        self.config = config
        if config.side % self.codec.patch:
            raise RecipeError(f"task.side: {config.side} pixels are not whole squares of {self.codec.patch}, the patch of the tokenizer.")

    def learner(self, seed: int) -> ImageCodesLearner:
        """The network under its losses."""
        torch.manual_seed(seed)
        return ImageCodesLearner(self.codec.begin())

    def samples(self, records: Draws) -> SquareSamples:
        """Square parts."""
        return SquareSamples(records, self.config.side, self.codec.patch, self.config.flip)

    def title(self, record: Picture) -> str:
        """Which picture."""
        return f"{record.id}: {record.width} x {record.height} pixels"

    def shown(self, record: Picture) -> str:
        """Codes and bits of a picture."""
        rows, columns = self.codec.grid(record.height, record.width)
        books = self.codec.book_sizes
        bits = rows * columns * sum(map(math.log2, books))
        share = bits / (rows * columns * self.codec.patch**2)
        return f"{rows} x {columns} codes of {len(books)} books, {bits:.0f} bits, {share:.3f} a pixel (as stored: {PIXEL_BITS})"

    def predict(self, model: ImageModel, records: Sequence[Picture]) -> list[Coded]:
        """Each picture through the codes and back."""
        true = [self.codec.fitted(record.read()) for record in records]
        segments = self.codec.encode_many(true)
        decoded = self.codec.decode_many(segments)
        return [Coded(one, each.ids, out, each.position) for one, each, out in zip(true, segments, decoded, strict=True)]  # type: ignore[arg-type]

    def given_by(self, record: Picture) -> Values:
        """The picture."""
        return {"image": record.read()}

    def answer(self, model: ImageModel, given: Values) -> Iterator[Values]:
        """The codes of a picture, and what they decode to."""
        segment = self.codec.encode(given["image"])
        yield {"image": self.codec.decode(segment), "codes": told(segment)}

    def score(self, outputs: Sequence[Coded], records: Sequence[Picture]) -> dict[str, float]:
        """psnr: dB.   ssim: structural similarity; both mean over the pictures, at the size at which these are coded.   perplexity: entries
        in use, in effect, as a share of a book's.   used: share of the entries that occur at all; both mean over the books."""
        codes_tu = torch.cat([one.codes_tu for one in outputs])
        used = [len(codes_tu[:, number].unique()) / size for number, size in enumerate(self.codec.book_sizes)]
        found = {"perplexity": self.perplexity([codes_tu]), "used": float(np.mean(used))}
        return {**_quality([(one.true, one.decoded) for one in outputs]), **found}

    def baselines(self, records: Sequence[Picture]) -> dict[str, dict[str, float]]:
        """Of each picture its mean colour; a smaller picture of as many bits as the codes have, at 24 a pixel; and the mean colour of each
        square that has a code, which is more bits. What was made smaller is made larger again by bicubic interpolation."""
        true = [self.codec.fitted(record.read()) for record in records]
        ways = {MEAN: _mean_colour, SMALL: self._of_as_many_bits, SQUARES: self._of_squares}
        return {name: _quality([(each, way(each)) for each in true]) for name, way in ways.items()}

    def _of_as_many_bits(self, pixels_yxc: np.ndarray) -> np.ndarray:
        height, width = pixels_yxc.shape[:2]
        bits = height * width / self.codec.patch**2 * sum(map(math.log2, self.codec.book_sizes))
        scale = math.sqrt(bits / PIXEL_BITS / (height * width))
        return _through(pixels_yxc, max(1, round(height * scale)), max(1, round(width * scale)))

    def _of_squares(self, pixels_yxc: np.ndarray) -> np.ndarray:
        return _through(pixels_yxc, pixels_yxc.shape[0] // self.codec.patch, pixels_yxc.shape[1] // self.codec.patch)

    def curves(self, outputs: Sequence[Coded], records: Sequence[Picture]) -> dict[str, list[tuple[float, float]]]:
        """PSNR over the number of books that are decoded."""
        points = []
        for count in self.prefixes():
            decoded = self.codec.decode_many([self.codec.segment(one.codes_tu[:, :count], one.position) for one in outputs])
            points.append((float(count), float(np.mean([psnr(one.true, out) for one, out in zip(outputs, decoded, strict=True)]))))
        return {"PSNR": points} if points else {}

    def pictures(self, outputs: Sequence[Coded], records: Sequence[Picture]) -> list[str]:
        """The first pictures as they were, decoded, and as the baseline of as many bits."""
        return [
            side_by_side({record.id: one.true, "decoded": one.decoded, SMALL: self._of_as_many_bits(one.true)})
            for one, record in list(zip(outputs, records, strict=True))[:PICTURED]
        ]

    def write_samples(self, model: ImageModel, records: Sequence[Picture], folder: Path) -> None:
        """Two files for each: the picture as it was, and decoded."""
        for number, one in enumerate(self.predict(model, records), 1):
            write_png(folder / f"{number}_true.png", one.true)
            write_png(folder / f"{number}_decoded.png", one.decoded)


def _quality(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """psnr and ssim, mean over pairs of pictures."""
    return {"psnr": float(np.mean([psnr(*pair) for pair in pairs])), "ssim": float(np.mean([ssim(*pair) for pair in pairs]))}


def _mean_colour(pixels_yxc: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.rint(pixels_yxc.mean((0, 1))).astype(np.uint8), pixels_yxc.shape)


def _through(pixels_yxc: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture as it looks after it was so small: means of areas, made large by bicubic interpolation."""
    from PIL import Image

    small = Image.fromarray(pixels_yxc).resize((width, height), Image.Resampling.BOX)
    return np.asarray(small.resize(pixels_yxc.shape[1::-1], Image.Resampling.BICUBIC))
