"""Real pictures that installed packages bring along, each alone on white with its name: stamps of Tux Paint, and emoji drawn from a font.

Pictures are made once, as squares, and held. To which part one belongs follows from its name: those held out are things never trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmlm.base.errors import DataError
from mmlm.base.files import parse_json
from mmlm.data.base import Parted
from mmlm.data.config.cutouts import CutoutsConfig, EmojiConfig, StampsConfig
from mmlm.data.episodes import find_file
from mmlm.data.listed import numbered_lines
from mmlm.data.picture_sources import Pictures, dealt
from mmlm.data.pictures import Picture
from mmlm.data.tuxpaint import STAMPS, Stamp, read_stamps
from mmlm.tokenizers.boxes import Grounded

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
STRIKE = 109  # the one size in which the font holds its pictures
MARGIN = 0.04  # of a side, on every side of what is cut out


class Cutouts(Parted, Pictures):
    """Pictures of which some are held out. Raises DataError where a part is empty."""

    part = Pictures

    def __init__(self, config: CutoutsConfig, where: str, found: Sequence[Picture]) -> None:
        self.groups = dealt(found, config, where)
        super().__init__(self.groups[2], where)


class Stamps(Cutouts):
    """The stamps of Tux Paint that are stored in pixels and have an English text with a name in it."""

    def __init__(self, config: StampsConfig) -> None:
        found, _ = read_stamps()
        wanted = [each for each in found if config.kinds is None or each.folder in config.kinds]
        super().__init__(config, f"stamps, {STAMPS}", [_stamp(each, config.side) for each in wanted])


def _stamp(stamp: Stamp, side: int) -> Picture:
    drawn = Drawn(partial(_file, stamp.path), side)
    return _picture(stamp.stem, str(stamp.path.with_suffix(".txt")), drawn, stamp.caption, stamp.folder, stamp.name)


def _file(path: Path) -> Any:
    from PIL import Image

    try:
        return Image.open(path).convert("RGBA")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}.") from None


class Emoji(Cutouts):
    """Emoji by the names that a list gives."""

    def __init__(self, config: EmojiConfig) -> None:
        if not FONT.is_file():
            raise DataError(f"emoji: {FONT} is not installed. Install it with: apt-get install fonts-noto-color-emoji")
        path = find_file(config.path)
        super().__init__(config, str(path), list(_emoji(path, config)))


def _emoji(path: Path, config: EmojiConfig) -> Iterator[Picture]:
    for number, line in numbered_lines(path):
        where = f"{path}, line {number}"
        try:
            raw = parse_json(line)
            sign, name, kind = str(raw["emoji"]), str(raw["label"][config.language]), str(raw["group"])
            tags = [str(each) for each in raw.get("tags", {}).get(config.language, []) if str(each) not in name.split()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{where}: is no object with emoji, group and label.{config.language}: {type(error).__name__}: {error}."
            ) from None
        if config.kinds is None or kind in config.kinds:
            caption = f"{name}: {', '.join(tags[: config.tags])}" if config.tags and tags else name
            yield _picture(name, where, Drawn(partial(_sign, sign), config.side), caption, kind, name)


def _sign(sign: str) -> Any:
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGBA", (2 * STRIKE, 2 * STRIKE), (255, 255, 255, 0))
    ImageDraw.Draw(image).text((STRIKE // 4, STRIKE // 4), sign, font=ImageFont.truetype(str(FONT), STRIKE), embedded_color=True)
    return image


def _picture(id: str, where: str, drawn: Drawn, caption: str, kind: str, name: str) -> Picture:
    """name: of the thing, by which it is dealt."""
    return Picture(id, where, drawn.side, drawn.side, drawn, (Grounded(caption),), labels={"file": name, "class": kind})


class Drawn:
    """What a picture that can be seen through shows, in the middle of a white square; made when it is first asked for."""

    def __init__(self, make: Any, side: int) -> None:
        self.make, self.side = make, side
        self._held: np.ndarray | None = None

    def __call__(self) -> np.ndarray:
        """uint8 [side, side, 3]."""
        if self._held is None:
            self._held = on_white(self.make(), self.side)
        return self._held


def on_white(image: Any, side: int) -> np.ndarray:
    """A picture of Pillow with transparency, cut to what is seen, as a square uint8 [side, side, 3]."""
    from PIL import Image

    box = image.getchannel("A").getbbox()
    cut = image.crop(box) if box is not None else image
    room = round(side * (1 - 2 * MARGIN))
    share = room / max(cut.size)
    clear = Image.new("RGBA", cut.size, (255, 255, 255, 255))
    clear.alpha_composite(cut)
    small = clear.convert("RGB").resize(tuple(max(1, round(each * share)) for each in cut.size), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (side, side), (255, 255, 255))
    square.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    return np.asarray(square)
