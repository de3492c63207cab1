"""Pictures as rows of codes of a network of its own.

    picture -> sides that are whole squares -> encoder -> a vector for each square -> quantizer -> codes, row by row; and back

Nothing is computed at every pixel: the network works at two by two places a code and at one, which is why it is quick to train. It is made
of convolutions and of norms over the channels of a place, so a code depends on the pixels around its square alone, and a picture is coded
in a batch as it is by itself. Codes stand at two axes, row and column, from which decoding knows the shape of the picture.

Source: VQ-VAE, arXiv:1711.00937, with the quantizers of mmlm.tokenizers.quantizers; blocks of ConvNeXt, arXiv:2201.03545; pixels from
channels as in ESPCN, arXiv:1609.05158. The sizes are choices of this project.

Axes: b pictures   y, x pixels, or places   c colours   t codes   u books   d channels
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmlm.base.errors import DataError
from mmlm.parameters import linear
from mmlm.stream import Segment
from mmlm.tokenizers.codec.blocks import PictureConvNeXt
from mmlm.tokenizers.config import ImageCodesConfig
from mmlm.tokenizers.image_patches import fitted, resized
from mmlm.tokenizers.trained import Trained, codes_of

MODALITY = "image_code"
AXES = ("row", "column")
COLORS, MIDDLE = 3, 127.5  # pixels are read and written as shares of it, from -1 to 1
AT_ONCE = 1 << 18  # pixels that are coded together
OUTPUT_SCALE = 0.02  # standard deviation of the weights of the last layer


class ImageEncoder(nn.Module):
    """Pixels [b, c, y, x] from -1 to 1 to vectors [b, y, x, d], one for each square."""

    def __init__(self, config: ImageCodesConfig) -> None:
        super().__init__()
        self.step, width = config.patch // 2, config.width
        self.inner = linear(COLORS * self.step**2, width // 2, "pixels", "channels", bias=True)
        self.fine = nn.Sequential(*[PictureConvNeXt(width // 2) for _ in range(config.fine_blocks)])
        self.join = nn.Linear(2 * width, width)
        self.blocks = nn.Sequential(*[PictureConvNeXt(width) for _ in range(config.encoder_blocks)])
        self.norm = nn.LayerNorm(width)
        self.outer = nn.Linear(width, config.latent_size)

    def forward(self, x_bcyx: Tensor) -> Tensor:
        """[b, y, x, d]."""
        fine = self.fine(self.inner(_gathered(x_bcyx.permute(0, 2, 3, 1), self.step)))
        return self.outer(self.norm(self.blocks(self.join(_gathered(fine, 2)))))


class ImageDecoder(nn.Module):
    """Vectors [b, y, x, d] to pixels [b, c, y, x]."""

    def __init__(self, config: ImageCodesConfig) -> None:
        super().__init__()
        self.step, width = config.patch // 2, config.width
        self.inner = nn.Linear(config.latent_size, width)
        self.blocks = nn.Sequential(*[PictureConvNeXt(width) for _ in range(config.decoder_blocks)])
        self.split = nn.Linear(width, 2 * width)
        self.fine = nn.Sequential(*[PictureConvNeXt(width // 2) for _ in range(config.fine_blocks)])
        self.norm = nn.LayerNorm(width // 2)
        self.outer = linear(width // 2, COLORS * self.step**2, "channels", "pixels", bias=True)
        nn.init.normal_(self.outer.weight, std=OUTPUT_SCALE)

    def forward(self, z_byxd: Tensor) -> Tensor:
        """[b, c, y, x], float32, about -1 to 1."""
        fine = self.fine(_scattered(self.split(self.blocks(self.inner(z_byxd))), 2))
        return _scattered(self.outer(self.norm(fine)), self.step).permute(0, 3, 1, 2).float()


class ImageModel(nn.Module):
    """Encoder, quantizer and decoder."""

    def __init__(self, encoder: ImageEncoder, quantizer: Any, decoder: ImageDecoder) -> None:
        super().__init__()
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(self, x_bcyx: Tensor) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """(decoded [b, c, y, x], codes [b, t, u], losses of the quantizer): the way of training. Sides are whole squares."""
        z_byxd = self.encoder(x_bcyx)
        with torch.autocast(z_byxd.device.type, enabled=False):
            quantized_btd, codes_btu, parts = self.quantizer(z_byxd.float().flatten(1, 2))
        return self.decoder(quantized_btd.view(z_byxd.shape)), codes_btu, parts

    def encode(self, x_bcyx: Tensor, num_books: int) -> Tensor:
        """Codes [b, t, num_books]."""
        return self.quantizer.encode(self.encoder(x_bcyx).float().flatten(1, 2), num_books)

    def decode(self, codes_btu: Tensor, rows: int) -> Tensor:
        """Pixels [b, c, y, x] of codes in so many rows."""
        return self.decoder(self.quantizer.decode(codes_btu).unflatten(1, (rows, -1)))


class ImageCodes(Trained[ImageModel]):
    """A tokenizer of pictures, uint8 [y, x, 3]: ids [t, u] of the ranges image_code.0, image_code.1, ... and back."""

    task = "image_codes"
    config: ImageCodesConfig

    def build(self) -> ImageModel:
        """Encoder, quantizer and decoder."""
        config = self.config
        return ImageModel(ImageEncoder(config), config.quantizer.build(config.latent_size), ImageDecoder(config))

    def _sizes(self) -> list[int]:
        return list(self._known().quantizer.sizes)

    @property
    def patch(self) -> int:
        """Pixels along a side of the square that a code stands for."""
        return int(self._known().patch)

    @property
    def sizes(self) -> dict[str, int]:
        """A range for each book that encode uses."""
        return {f"{MODALITY}.{number}": size for number, size in enumerate(self.book_sizes)}

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Codes down and across of a picture."""
        patch, side = self.patch, int(self._known().max_side)
        rows, columns = fitted(height, width, patch, side, (side // patch) ** 2)
        return rows // patch, columns // patch

    def fitted(self, pixels_yxc: np.ndarray) -> np.ndarray:
        """A picture at the size at which it is coded, and decoded. Raises DataError for anything but uint8 [y, x, 3] with pixels."""
        if pixels_yxc.dtype != np.uint8 or pixels_yxc.ndim != 3 or pixels_yxc.shape[2] != COLORS or not pixels_yxc.size:
            raise DataError(f"a picture is uint8 [y, x, 3], but this is {pixels_yxc.dtype} {list(pixels_yxc.shape)}.")
        rows, columns = self.grid(*pixels_yxc.shape[:2])
        return resized(pixels_yxc, rows * self.patch, columns * self.patch)

    def encode(self, raw: np.ndarray) -> Segment:
        """The codes of a picture, row by row, each at its row and column. Raises DataError as `fitted` does."""
        return self.encode_many([raw])[0]

    @torch.no_grad()
    def encode_many(self, raws: Sequence[np.ndarray]) -> list[Segment]:
        """Codes of several pictures; the same as one by one."""
        model, pictures = self.model.eval(), [self.fitted(raw) for raw in raws]
        found: dict[int, Tensor] = {}
        for places in _alike([each.shape[:2] for each in pictures], AT_ONCE):
            x_bcyx = torch.stack([to_network(pictures[place]) for place in places]).to(model.device)
            found |= dict(zip(places, model.encode(x_bcyx, self.num_books).cpu(), strict=True))
        shapes = [(each.shape[0] // self.patch, each.shape[1] // self.patch) for each in pictures]
        return [self.segment(found[place], positions(*shape)) for place, shape in enumerate(shapes)]

    @staticmethod
    def segment(codes_tu: Tensor, position: Tensor) -> Segment:
        """Codes [t, u] at their rows and columns [t, 2] as `encode` gives them and `decode` takes them."""
        return Segment(MODALITY, codes_tu, weight=1.0, position=position)

    def decode(self, segment: Segment) -> np.ndarray:
        """The picture, uint8 [y, x, 3], of codes of any first books, at the size at which it was coded.

        Raises DataError for codes that are not of these books, or that fill no rectangle.
        """
        return self.decode_many([segment])[0]

    @torch.no_grad()
    def decode_many(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """The pictures of several segments; the same as one by one."""
        model = self.model.eval()
        codes = [codes_of(segment.ids, self._sizes()) for segment in segments]
        shapes = [shape_of(segment) for segment in segments]
        kinds = [(rows, columns, each.shape[1]) for (rows, columns), each in zip(shapes, codes, strict=True)]
        found: dict[int, np.ndarray] = {}
        for places in _alike(kinds, AT_ONCE // self.patch**2):
            decoded = model.decode(torch.stack([codes[place] for place in places]).to(model.device), shapes[places[0]][0])
            found |= {place: to_pixels(x_cyx) for place, x_cyx in zip(places, decoded.cpu(), strict=True)}
        return [found[place] for place in range(len(segments))]


def to_network(pixels_yxc: np.ndarray) -> Tensor:
    """float32 [c, y, x] from -1 to 1 of a picture."""
    return torch.from_numpy(np.ascontiguousarray(pixels_yxc.transpose(2, 0, 1))).float() / MIDDLE - 1


def to_pixels(x_cyx: Tensor) -> np.ndarray:
    """uint8 [y, x, c] of what the network writes."""
    return ((x_cyx + 1) * MIDDLE).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()


def positions(rows: int, columns: int) -> Tensor:
    """long [t, 2]: row and column of each code."""
    return torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).view(-1, 2)


def shape_of(segment: Segment) -> tuple[int, int]:
    """Rows and columns of codes, as their positions tell. Raises DataError where they fill no rectangle row by row."""
    place, ids = segment.position, segment.ids
    if place is None or not len(place) or place.ndim != 2 or place.shape[1] != len(AXES):
        told = "none" if place is None else list(place.shape)
        raise DataError(f"codes of a picture need a position [codes, 2], their row and column; this is {told}.")
    if ids is not None and len(ids) != len(place):
        raise DataError(f"there are {len(ids)} codes, but positions of {len(place)}.")
    rows, columns = ((place[-1] - place[0]) + 1).tolist()
    if min(rows, columns) < 1 or len(place) != rows * columns or not torch.equal(place - place[0], positions(rows, columns)):
        raise DataError(f"{len(place)} codes do not fill {rows} rows of {columns}, row by row.")
    return rows, columns


def told(segment: Segment) -> dict[str, Any]:
    """Rows, columns, and of each book its codes row by row, as JSON can hold them."""
    assert segment.ids is not None
    rows, columns = shape_of(segment)
    return {"rows": rows, "columns": columns, "codes": segment.ids.T.tolist()}


def _gathered(x_byxd: Tensor, step: int) -> Tensor:
    """Squares of step x step places as one place each, with all their channels."""
    b, y, x, d = x_byxd.shape
    return x_byxd.reshape(b, y // step, step, x // step, step, d).transpose(2, 3).reshape(b, y // step, x // step, step * step * d)


def _scattered(x_byxd: Tensor, step: int) -> Tensor:
    """What _gathered was given."""
    b, y, x, d = x_byxd.shape
    return x_byxd.reshape(b, y, x, step, step, d // step**2).transpose(2, 3).reshape(b, y * step, x * step, d // step**2)


def _alike(kinds: Sequence[tuple[int, ...]], at_once: int) -> list[list[int]]:
    """Places of equal kinds together. kinds: sides first, whose product, summed over a group, is at most at_once; one is always in."""
    groups: dict[tuple[int, ...], list[list[int]]] = {}
    for place, kind in enumerate(kinds):
        found = groups.setdefault(kind, [[]])
        if found[-1] and (len(found[-1]) + 1) * kind[0] * kind[1] > at_once:
            found.append([])
        found[-1].append(place)
    return [group for found in groups.values() for group in found]
