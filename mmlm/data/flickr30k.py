"""Flickr30k Entities: captions whose phrases are tied to boxes.

    Sentences/36979.txt       a caption a line: [/EN#1/people A man] holds [/EN#2/other a rope] .
    Annotations/36979.xml     objects, each with the numbers of what it shows (name) and a box (bndbox), or without one (nobndbox)

A number may have several boxes, and a box several numbers. Phrases without a box are words alone. Spaces before punctuation are taken out.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mmlm.base.errors import DataError
from mmlm.data.config import Flickr30kConfig
from mmlm.data.episodes import find_file
from mmlm.data.listed import Bad, numbered_lines
from mmlm.data.picture_sources import Listed, PictureSource, folder_of

MARK = re.compile(r"\[/EN#(\d+)((?:/\w+)+) ([^\[\]]*)\]")
PUNCTUATION = re.compile(r"\s+([.,;:!?])")
CORNERS = ("xmin", "ymin", "xmax", "ymax")


class Flickr30k(PictureSource):
    """The pictures of Flickr30k Entities."""

    def __init__(self, config: Flickr30kConfig) -> None:
        folder, told = folder_of(config.path), folder_of(config.annotations)
        ids = None if config.ids is None else [line.strip() for _, line in numbered_lines(find_file(config.ids))]
        super().__init__(config, str(told), _read(folder, told, ids))


def _read(folder: Path, told: Path, ids: list[str] | None) -> Iterator[Listed | Bad]:
    for name in ids if ids is not None else sorted(path.stem for path in (told / "Sentences").glob("*.txt")):
        sentences = told / "Sentences" / f"{name}.txt"
        try:
            boxes = _boxes(told / "Annotations" / f"{name}.xml")
            captions = [_caption(line, boxes, f"{sentences}, line {number}") for number, line in numbered_lines(sentences)]
            if not captions:
                raise DataError(f"{sentences}: holds no caption.")
        except DataError as error:
            where, _, why = str(error).partition(": ")
            yield Bad(where, why)
            continue
        (caption, phrases), *further = captions
        yield Listed(name, str(sentences), folder / f"{name}.jpg", f"{name}.jpg", caption, phrases, further)


def _caption(line: str, boxes: dict[str, list[Any]], where: str) -> tuple[str, list[tuple[int, int, list[Any]]]]:
    """(a caption without its marks, its phrases with boxes)."""
    text, phrases, at = "", list[tuple[int, int, list[Any]]](), 0
    for match in MARK.finditer(line):
        text += line[at : match.start()]
        start = len(text)
        text += match[3]
        at = match.end()
        if found := boxes.get(match[1], []):
            phrases.append((start, len(text), found))
    text += line[at:].rstrip()
    if "[" in text or "]" in text:
        raise DataError(f"{where}: a mark is not [/EN#number/kind words]: {text[:60]!r}.")
    gone = [match.span()[0] + shift for match in PUNCTUATION.finditer(text) for shift in range(len(match[0]) - 1)]
    left = [place for place in range(len(text)) if place not in set(gone)]
    moved = [(start - sum(place < start for place in gone), end - sum(place < end for place in gone), some) for start, end, some in phrases]
    return "".join(text[place] for place in left), moved


def _boxes(path: Path) -> dict[str, list[Any]]:
    """The boxes of each number. Raises DataError naming the file, and the object."""
    try:
        objects = ElementTree.fromstring(path.read_text(encoding="utf-8")).findall("object")
    except (OSError, UnicodeDecodeError, ElementTree.ParseError) as error:
        raise DataError(f"{path}: cannot be read: {error}.") from None
    found: dict[str, list[Any]] = defaultdict(list)
    for number, each in enumerate(objects, 1):
        box = each.find("bndbox")
        if box is None:
            continue
        try:
            corners = [float(box.findtext(key) or "") for key in CORNERS]
        except ValueError:
            raise DataError(f"{path}, object {number}: bndbox must hold the numbers {', '.join(CORNERS)}.") from None
        for name in each.findall("name"):
            found[(name.text or "").strip()].append(corners)
    return found
