"""Visual Genome: regions of pictures with a phrase each, and objects with their names.

    image_data.json             [{image_id, width, height, url}]
    region_descriptions.json    [{id, regions: [{region_id, phrase, x, y, width, height}]}]
    objects.json                [{image_id, objects: [{object_id, names, x, y, w, h}]}]

A picture lies in the folder as its url ends, VG_100K/1.jpg or 1.jpg.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmlm.base.errors import DataError
from mmlm.data.config import VisualGenomeConfig
from mmlm.data.episodes import find_file
from mmlm.data.picture_sources import Listed, PictureSource, folder_of, json_of

logger = logging.getLogger(__name__)


class VisualGenome(PictureSource):
    """The pictures of Visual Genome."""

    def __init__(self, config: VisualGenomeConfig) -> None:
        images = _images(find_file(config.image_data), folder_of(config.path))
        if config.regions is not None:
            _add(images, find_file(config.regions), ("regions", "region_id", "id"), ("width", "height"))
        if config.objects is not None:
            _add(images, find_file(config.objects), ("objects", "object_id", "image_id"), ("w", "h"))
        super().__init__(config, config.image_data, _told(images))


def _images(path: Path, folder: Path) -> dict[Any, tuple[Listed, float, float]]:
    """{number: (picture, width, height)}."""
    found: dict[Any, tuple[Listed, float, float]] = {}
    for place, each in enumerate(_list(path), 1):
        try:
            key, wide, high, parts = each["image_id"], float(each["width"]), float(each["height"]), str(each["url"]).split("/")
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}, entry {place}: needs image_id, width, height and url ({type(error).__name__}: {error}).") from None
        if not isinstance(key, int | str):
            raise DataError(f"{path}, entry {place}: image_id must be a number, but is {str(key)[:40]}.")
        name = "/".join(parts[-2:]) if (folder / "/".join(parts[-2:])).is_file() else parts[-1]
        found[key] = (Listed(str(key), f"{path}, image {key}", folder / name, name), wide, high)
    return found


def _list(path: Path) -> list[Any]:
    held = json_of(path)
    if not isinstance(held, list):
        raise DataError(f"{path}: must be a list of pictures, but is {str(held)[:60]}.")
    return held


def _add(images: dict[Any, tuple[Listed, float, float]], path: Path, keys: tuple[str, str, str], sides: tuple[str, str]) -> None:
    """Add the regions or objects of a file. keys: of the list, of the number of one, and of the picture."""
    several, number, picture = keys
    without = 0
    for place, each in enumerate(_list(path), 1):
        try:
            held, some = images.get(each.get(picture, each.get("image_id"))), each[several]
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}, entry {place}: needs {picture} and {several} ({type(error).__name__}: {error}).") from None
        if held is None:
            raise DataError(f"{path}, entry {place}: its picture is not in image_data.")
        listed, wide, high = held
        for one in some:
            try:
                x, y, w, h = (float(one[key]) for key in ("x", "y", *sides))
                said = str(one["phrase"] if several == "regions" else one["names"][0]).strip()
            except (KeyError, TypeError, ValueError, IndexError) as error:
                name = one.get(number) if isinstance(one, dict) else one
                raise DataError(
                    f"{path}, entry {place}, {number} {name}: is not as it must be ({type(error).__name__}: {error})."
                ) from None
            box = [max(x, 0.0), max(y, 0.0), min(x + w, wide), min(y + h, high)]
            if box[0] >= box[2] or box[1] >= box[3] or not said:
                without += 1
            elif several == "regions":
                listed.expressions.append((said, box))
            else:
                listed.things.append((said, box))
    if without:
        logger.info("%s: %d of the %s have no words, or no extent within their picture, and are left out.", path, without, several)


def _told(images: dict[Any, tuple[Listed, float, float]]) -> Iterator[Listed]:
    for listed, _, _ in images.values():
        if listed.expressions or listed.things:
            yield listed
