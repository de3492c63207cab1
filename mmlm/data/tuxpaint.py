"""Stamps of the drawing program Tux Paint as a source of pictures: any number for training, a fixed list to measure on.

A stamp is NAME.png, cut out by its alpha, with a caption in NAME.txt, and for some a recording of its name. Drawings (.svg) are left out
and counted in the log, as are stamps whose caption gives no short name.

The name of a stamp: its English caption up to the first bracket, comma, colon, dash or end of a sentence, without the article, in small
letters: "A peacock (a male peafowl)." is a peacock. Names of more than four words, or without a letter, are none.

Axes: y, x pixels
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from mmlm.base.errors import DataError
from mmlm.data.base import Numbered
from mmlm.data.config import TuxPaintConfig
from mmlm.data.dealing import place_of
from mmlm.data.pasted import COVERED, CutOut, Pasted, arranged, pasted
from mmlm.data.pasted_texts import caption, expression
from mmlm.data.pictures import Picture, Thing
from mmlm.data.scenes.programs import Scene
from mmlm.data.speech_check import files_below

logger = logging.getLogger(__name__)

STAMPS = Path("/usr/share/tuxpaint/stamps")
INSTALL = "apt-get install tuxpaint-stamps-default"
SPLITS = ("train", "validate", "test")
TEST, VALIDATE = 0.15, 0.1  # shares of the names
EXPRESSIONS = 2  # tried for a picture
MOST_WORDS = 4
CUT = re.compile(r"\s*(?:[(,;:.!?\u2014\u2013]|\s-\s).*", re.DOTALL)
ARTICLE = re.compile(r"(?:(a|an|some|the)\s+)?(.*)", re.IGNORECASE | re.DOTALL)
KINDS = {
    "animals": ("an", "animal"), "cartoon": ("a", "cartoon"), "clothes": ("some", "clothes"), "food": ("some", "food"),
    "hobbies": ("a", "hobby"), "household": ("a", "household thing"), "medical": ("some", "medicine"), "military": ("a", "weapon"),
    "naturalforces": ("a", "natural force"), "people": ("a", "person"), "plants": ("a", "plant"), "seasonal": ("a", "decoration"),
    "space": ("a", "space body"), "sports": ("some", "sport"), "symbols": ("a", "symbol"), "town": ("a", "town sight"),
    "vehicles": ("a", "vehicle"),
}  # fmt: skip  # folder: what stands before and what its things are called


@dataclass(frozen=True)
class Stamp:
    """A cut-out of a thing. stem: its place below the folder of stamps. caption: in English, whole. article: before its name, or nothing.
    kind: what the things of its folder are called. spoken: a recording of its English name, where there is one."""

    stem: str
    path: Path
    caption: str
    article: str
    name: str
    folder: str
    kind_article: str
    kind: str
    spoken: Path | None

    @property
    def split(self) -> str:
        """The split of all things of this name."""
        place = place_of(self.name)
        return "test" if place < TEST else "validate" if place < TEST + VALIDATE else "train"


def short_name(text: str) -> tuple[str, str] | None:
    """(article, name) of a caption, such as ("a", "red apple"); None where it has none."""
    match = ARTICLE.fullmatch(" ".join(CUT.sub("", text.strip()).split()).lower())
    assert match is not None
    article, name = match[1] or "", match[2]
    return ("" if article == "the" else article, name) if 0 < len(name.split()) <= MOST_WORDS and re.search("[a-z]", name) else None


def read_stamps() -> tuple[list[Stamp], Counter[str]]:
    """(the stamps, how many others there are by reason). Raises DataError with the command that installs them."""
    paths = files_below(STAMPS, [".png", ".svg"]) if STAMPS.is_dir() else []
    if not paths:
        raise DataError(f"tuxpaint: the stamps are not installed (in {STAMPS}). Install them with: {INSTALL}")
    found, left_out = list[Stamp](), Counter[str]()
    for path in paths:
        text = path.with_suffix(".txt")
        if path.suffix == ".svg":
            left_out["drawings (.svg)"] += 1
        elif not text.is_file():
            left_out["without a caption"] += 1
        else:
            lines = text.read_text(encoding="utf-8", errors="replace").splitlines()
            first = lines[0].strip() if lines else ""
            named = short_name(first)
            top = path.relative_to(STAMPS).parts[0]
            if named is None or top not in KINDS:
                left_out["without a short name"] += 1
                continue
            spoken = path.with_name(f"{path.stem}_desc.ogg")
            stem = path.relative_to(STAMPS).with_suffix("").as_posix()
            found.append(Stamp(stem, path, first, *named, top, *KINDS[top], spoken if spoken.is_file() else None))
    return found, left_out


class TuxPaint(Numbered[Picture]):
    """Pictures of a split. A picture is a function of the split, its number and the config."""

    def __init__(self, config: TuxPaintConfig) -> None:
        self.config = config
        found, self.left_out = read_stamps()
        wanted = [each for each in found if config.classes is None or each.folder in config.classes]
        self.stamps = [each for each in wanted if each.split == config.split]
        logger.info(
            "tuxpaint: %d of %d stamps are of the split %s; left out: %s.", len(self.stamps), len(wanted), config.split,
            ", ".join(f"{number} {why}" for why, number in sorted(self.left_out.items())) or "none",
        )  # fmt: skip
        if not self.stamps:
            raise DataError(f"tuxpaint: no stamp of {', '.join(config.classes or [])} is of the split {config.split}; name more classes.")
        self._cut: dict[str, CutOut] = {}

    def record(self, number: int) -> Picture:
        """The picture of a number."""
        return self.with_scene(number)[0]

    def with_scene(self, number: int) -> tuple[Picture, Scene[Pasted]]:
        """(a picture, its things)."""
        config = self.config
        place = SPLITS.index(config.split)
        rng = np.random.default_rng([place, number])
        count = int(rng.integers(config.min_things, config.max_things + 1))
        chosen = [self.stamps[int(rng.integers(len(self.stamps)))] for _ in range(count)]
        items = arranged(rng, [self._cut_out(each) for each in chosen], config.sizes, config.width, config.height)
        scene = Scene(items, config.width, config.height)
        captions = (caption(rng, scene, self._key(rng)),)
        tried = (expression(rng, scene, self._key(rng)) for _ in range(EXPRESSIONS))
        expressions = tuple({each.text: each for each in tried if each is not None}.values())
        things = tuple(Thing(item.cut_out.name if config.names == "caption" else item.cut_out.kind, item.box) for item in items)
        read = partial(pasted, [place, number, 1], items, config.width, config.height)
        name = f"{config.split} {number}"
        return Picture(name, f"tuxpaint, {name}", config.width, config.height, read, captions, expressions, (), things), scene

    def _key(self, rng: np.random.Generator) -> str:
        if self.config.names == "both":
            return ("name", "kind")[int(rng.integers(2))]
        return "name" if self.config.names == "caption" else "kind"

    def _cut_out(self, stamp: Stamp) -> CutOut:
        """A stamp's pixels, shrunk to what is needed; kept, as decoding takes the time."""
        if stamp.stem not in self._cut:
            longest = 2 * round(self.config.sizes[1] * min(self.config.width, self.config.height)) + 1
            rgba = _cropped(stamp.path, longest)
            self._cut[stamp.stem] = CutOut(rgba, stamp.article, stamp.name, stamp.kind_article, stamp.kind)
        return self._cut[stamp.stem]


def _cropped(path: Path, longest: int) -> Image.Image:
    """The part of a picture that is not clear, at most so long. Raises DataError for a damaged or an empty one."""
    try:
        with Image.open(path) as image:
            whole = image.convert("RGBA")
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}.") from None
    box = whole.getchannel("A").point(COVERED).getbbox()
    if box is None:
        raise DataError(f"{path}: is clear all over.")
    part = whole.crop(box).convert("RGBa")  # colours times alpha, so that clear pixels lend no colour to their neighbours
    part.thumbnail((longest, longest), Image.Resampling.BOX)
    return part
