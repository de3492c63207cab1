"""Pictures with boxes in the colours of their words, and the words as HTML in the same colours."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path

import numpy as np

from mmlm.tokenizers.boxes import Box, Grounded

COLORS = ((230, 60, 60), (40, 120, 230), (30, 160, 80), (220, 140, 20), (150, 70, 200), (20, 170, 180), (200, 60, 140), (120, 120, 40))
SMALLEST = 256  # pixels of the shorter side of a drawing: smaller pictures are drawn larger
LARGEST = 4096  # pixels of the longer side beyond which none is drawn larger
THIN, LINES_ACROSS = 3, 300  # pixels of a line; of larger pictures so many lines beside each other fill the longer side
IN_PAGE = 780  # pixels of the longer side of a picture within a page, which shows it at a third of that


def color_of(number: int) -> tuple[int, int, int]:
    """The colour of a phrase."""
    return COLORS[number % len(COLORS)]


def drawn(pixels_yxc: np.ndarray, said: Grounded, true: Grounded | None = None) -> np.ndarray:
    """A picture, uint8 [y, x, 3], with the boxes of a text, shares of its sides; those of `true` thinner and gray. Lines grow with the
    picture, so that they are seen where all of it is."""
    from PIL import Image, ImageDraw

    shorter, longer = sorted(pixels_yxc.shape[:2])
    scale = max(1, min(-(-SMALLEST // shorter), LARGEST // longer))
    picture = Image.fromarray(pixels_yxc).resize((pixels_yxc.shape[1] * scale, pixels_yxc.shape[0] * scale), Image.Resampling.NEAREST)
    draw, thick = ImageDraw.Draw(picture), max(THIN, max(picture.size) // LINES_ACROSS)
    for phrase in true.phrases if true is not None else ():
        for box in phrase.boxes:
            draw.rectangle(_corners(box, picture.size), outline=(110, 110, 110), width=thick // THIN)
    for number, phrase in enumerate(said.phrases):
        for box in phrase.boxes:
            draw.rectangle(_corners(box, picture.size), outline=color_of(number), width=thick)
    return np.asarray(picture)


def _corners(box: Box, size: tuple[int, int]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box
    return x1 * (size[0] - 1), y1 * (size[1] - 1), x2 * (size[0] - 1), y2 * (size[1] - 1)


def as_html(said: Grounded) -> str:
    """The text, its phrases underlined in the colours of their boxes."""
    parts, at = [], 0
    for number, phrase in enumerate(said.phrases):
        red, green, blue = color_of(number)
        words = escape(said.words(phrase)) or "&#9633;"
        parts += [escape(said.text[at : phrase.start]), f'<b style="border-bottom:3px solid rgb({red},{green},{blue})">{words}</b>']
        at = phrase.end
    return "".join([*parts, escape(said.text[at:])])


def figure(pixels_yxc: np.ndarray, caption: str, *, alt: str = "", least: int = 0, colors: int | None = None) -> str:
    """A picture as an element of HTML that holds it, larger where its longer side has fewer than `least` pixels, smaller where it has more
    than IN_PAGE, as a page of photographs would not open.

    caption: HTML. alt: plain words. colors: so many are kept, for a smaller page; None: all."""
    from PIL import Image

    picture, file = Image.fromarray(pixels_yxc), io.BytesIO()
    picture.thumbnail((IN_PAGE, IN_PAGE))
    (picture if colors is None else picture.quantize(colors)).save(file, format="PNG", optimize=True)
    scale = max(1, -(-least // max(picture.size)))
    place = f'width="{picture.width * scale}" height="{picture.height * scale}" style="height:auto;image-rendering:pixelated"'
    data = base64.b64encode(file.getvalue()).decode()
    image = f'<img alt="{escape(alt, quote=True)}" {place} src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def write_png(path: Path, pixels_yxc: np.ndarray) -> None:
    """A picture as a file."""
    from PIL import Image

    Image.fromarray(pixels_yxc).save(path)
