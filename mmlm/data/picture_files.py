"""Pictures from files: the formats that hold pixels and nothing else, as red, green and blue of 8 bits, upright.

    transparent     laid on white                       gray, palette, CMYK, 16 bits     brought to 8-bit colour
    animated        the first frame                     turned (EXIF)                    upright; boxes of the stored file turn with it
    huge            refused, with the limit             cut short, damaged, no picture   refused, with what is wrong

Axes: y, x pixels
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmlm.base.errors import DataError
from mmlm.tokenizers.boxes import Box

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow reads others too, PostScript by running a program
MAX_PIXELS = 64_000_000
ORIENTATION = 274  # the EXIF tag
TIFF_SIDES = (256, 257)  # tags of the width and height that are stored
WHITE = (255, 255, 255)


@dataclass(frozen=True)
class PictureFacts:
    """What the header says. width, height: of the stored file.   orientation: 1 to 8, as EXIF has it."""

    width: int
    height: int
    orientation: int

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height of what is shown."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)

    def turned(self, box: Box) -> Box:
        """A box of the stored file, in pixels, as a box of what is shown."""
        x1, y1, x2, y2 = box
        if self.orientation in (2, 3, 7, 8):  # mirrored across, before the sides change places
            x1, x2 = self.width - x2, self.width - x1
        if self.orientation in (3, 4, 6, 7):
            y1, y2 = self.height - y2, self.height - y1
        return (y1, x1, y2, x2) if self.orientation >= 5 else (x1, y1, x2, y2)


def picture_facts(path: Path | str) -> PictureFacts:
    """The header of a file. Raises DataError."""
    return _opened(Path(path), _facts)


def read_picture(path: Path | str, longest: int | None = None, shortest: int | None = None) -> np.ndarray:
    """The pixels of a file, uint8 [y, x, 3], upright.

    longest, shortest: of a JPEG no more is decoded than a picture with such a side needs, which saves most of the time; it may come back
    smaller than it is stored, and never smaller than asked for. Raises DataError naming the file.
    """
    return _opened(Path(path), partial(_pixels, longest=longest, shortest=shortest))


def _opened(path: Path, do: Any) -> Any:
    """What `do` makes of an open picture; everything that Pillow raises as one error that names the file."""
    from PIL import Image, UnidentifiedImageError

    try:
        size = path.stat().st_size
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}.") from None
    if not size:
        raise DataError(f"{path}: is empty.")
    try:
        with warnings.catch_warnings(), Image.open(path, formats=FORMATS) as image:
            warnings.simplefilter("ignore")
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path}: has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are read.")
            return do(image)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{path}: is no picture of a known format; known are {', '.join(ENDINGS)}.") from None
    except Image.DecompressionBombError:
        raise DataError(f"{path}: is too large; at most {MAX_PIXELS:,} pixels are read.") from None
    except MemoryError:
        raise DataError(f"{path}: takes more memory than there is.") from None
    except (OSError, SyntaxError, ValueError, EOFError, TypeError) as error:
        raise DataError(f"{path}: cannot be read: {error}.") from None


def _facts(image: Any) -> PictureFacts:
    orientation = image.getexif().get(ORIENTATION, 1)
    width, height = image.size
    if image.format == "TIFF":  # Pillow tells the sides of what is shown
        width, height = (image.tag_v2[tag] for tag in TIFF_SIDES)
    return PictureFacts(width, height, orientation if orientation in range(1, 9) else 1)


def _pixels(image: Any, longest: int | None, shortest: int | None) -> np.ndarray:
    from PIL import Image, ImageOps

    sides = ((longest, max(image.size)), (shortest, min(image.size)))
    share = max((wanted / side for wanted, side in sides if wanted is not None), default=1.0)
    if share < 1 and image.format == "JPEG":
        image.draft("RGB", (math.ceil(image.width * share), math.ceil(image.height * share)))
    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16") or upright.mode in ("I", "F"):
        return np.repeat(_eight_bits(np.asarray(upright))[:, :, None], 3, axis=2)
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        clear = upright.convert("RGBA")
        upright = Image.new("RGBA", clear.size, (*WHITE, 255))
        upright.alpha_composite(clear)
    return np.asarray(upright.convert("RGB"))


def _eight_bits(values_yx: np.ndarray) -> np.ndarray:
    """Gray of 16 bits, or of any other numbers, as 8 bits: by the range of 16 bits, or where numbers leave it by their own. Raises
    ValueError for what is no finite number."""
    values_yx = values_yx.astype(np.float64)
    if not np.isfinite(values_yx).all():
        raise ValueError("it holds a value that is no finite number")
    low, high = 0.0, 65535.0
    if values_yx.min() < low or values_yx.max() > high:
        low, high = float(values_yx.min()), float(values_yx.max())
    elif values_yx.max() <= 255:
        high = 255.0
    return np.rint((values_yx - low) / ((high - low) or 1.0) * 255).astype(np.uint8)
