"""Pictures of one's own with what is known of them: lists, folders, COCO's and YOLO's annotations.

Every picture is looked at when a source is built: its header, its boxes and spans, and the first time the whole file is decoded, as damage
shows only then. That a file is whole is remembered under its size and time of change. What cannot be used is told with its file and line.
Boxes are those of the stored file and turn with a picture that is shown turned; what lies outside by a pixel is cut, by more it is bad.
"""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmlm.base.errors import DataError, nearest
from mmlm.base.files import parse_json
from mmlm.data.base import Parted, RecordList
from mmlm.data.config.cutouts import CutoutsConfig
from mmlm.data.config.pictures import CocoConfig, PictureFolderConfig, PictureManifestConfig, PicturesConfig, YoloConfig
from mmlm.data.dealing import deal
from mmlm.data.episodes import find_file
from mmlm.data.listed import Bad, numbered_lines, tell
from mmlm.data.picture_files import ENDINGS, PictureFacts, picture_facts, read_picture
from mmlm.data.pictures import Expression, Picture, Question, Thing
from mmlm.data.remembered import Remembered, key_of
from mmlm.data.speech_check import files_below
from mmlm.tokenizers.boxes import Box, Grounded, Phrase

logger = logging.getLogger(__name__)

VERSION = 2  # of what is remembered of a file
FARTHEST = 1e9  # pixels; no number of a box is larger, nor NaN
SLACK = 1.0  # pixels by which a box may leave its picture


@dataclass
class Listed:
    """What a list or folder says of a picture, unchecked. file: its name there, by which it is dealt to the parts. phrases: (start, end,
    boxes) of the caption. further: captions beside it with their phrases. Boxes are [x1, y1, x2, y2]. is_listed: see Picture."""

    id: str
    where: str
    path: Path
    file: str
    caption: str = ""
    phrases: list[tuple[int, int, list[Any]]] = field(default_factory=list)
    further: list[tuple[str, list[tuple[int, int, list[Any]]]]] = field(default_factory=list)
    expressions: list[tuple[str, Any]] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    things: list[tuple[str, Any]] = field(default_factory=list)
    is_listed: bool = False


class Pictures(RecordList[Picture]):
    """Pictures to draw from. Raises DataError without any."""

    what = "picture"


class PictureSource(Parted, Pictures):
    """The pictures of a source that are trained on. `bad`: those that cannot be used, told as an error (on_bad: stop) or in the log."""

    part = Pictures

    def __init__(self, config: PicturesConfig, where: str, found: Iterable[Listed | Bad]) -> None:
        listed = list(found)
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        known = Remembered(PictureFacts, "pictures", where, "pictures", VERSION)
        with ThreadPoolExecutor(max_workers=threads) as pool:
            looked = list(pool.map(partial(_looked_at, config=config, known=known), listed))
        known.write()
        self.bad = [each for each in looked if isinstance(each, Bad)]
        good = [each for each in looked if isinstance(each, Picture)]
        tell(self.bad, len(looked), "pictures", where, config.on_bad)
        self.groups = dealt(good, config, where)
        super().__init__(self.groups[2], where)


def dealt(pictures: Sequence[Picture], config: PicturesConfig | CutoutsConfig, where: str) -> list[list[Picture]]:
    """Those held out, kept back for validation, and trained on: where one belongs is a function of its file's name and the shares."""
    shares = {"hold_out": config.hold_out, "validate_share": config.validate_share}
    return deal(pictures, lambda each: each.labels["file"], shares, where, "pictures")


def _whole(path: Path, known: Remembered[PictureFacts]) -> PictureFacts:
    """The header of a file that can be decoded to its end. Raises DataError."""
    key = key_of(path)
    facts = known.get(key)
    if facts is None:
        facts = picture_facts(path)
        read_picture(path, 16)  # a file that is cut short shows it only when it is decoded
        known.put(key, facts)
    return facts


def _looked_at(listed: Listed | Bad, config: PicturesConfig, known: Remembered[PictureFacts]) -> Picture | Bad:
    """A picture whose file and boxes have been looked at, or why it cannot be used."""
    if isinstance(listed, Bad):
        return listed
    try:
        facts = _whole(listed.path, known)
        box = partial(_box, facts=facts)
        captions = [_captioned(text, phrases, box) for text, phrases in [(listed.caption, listed.phrases), *listed.further] if text.strip()]
        expressions = tuple(Expression(_text(text, "expression"), box(each)) for text, each in listed.expressions)
        things = tuple(Thing(label, box(each)) for label, each in listed.things)
    except DataError as error:
        return Bad(listed.where, str(error))
    if not captions and config.list_things and things:
        captions.append(listing(things))
    width, height = facts.upright
    read = partial(_read, listed.path, config.longest, listed.where)
    known_of = (tuple(captions), expressions, tuple(listed.questions), things)
    return Picture(listed.id, listed.where, width, height, read, *known_of, {"file": listed.file}, listed.is_listed)


def _read(path: Path, longest: int | None, where: str) -> np.ndarray:
    try:
        return read_picture(path, longest)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _box(raw: Any, facts: PictureFacts) -> Box:
    """A box of what is shown. Raises DataError for one that is none, has swapped corners, or leaves the picture."""
    is_four = isinstance(raw, list | tuple) and len(raw) == 4 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in raw)
    if not is_four or not all(abs(v) < FARTHEST for v in raw):
        raise DataError(f"a box is four numbers [x1, y1, x2, y2], but is {json.dumps(raw, default=str)[:60]}.")
    x1, y1, x2, y2 = map(float, raw)
    wide, high = facts.width, facts.height
    if x2 <= x1 or y2 <= y1:
        raise DataError(f"box {list(raw)}: the corners are [x1, y1, x2, y2] with x1 < x2 and y1 < y2; is it [x, y, width, height]?")
    if min(x1, y1) < -SLACK or x2 > wide + SLACK or y2 > high + SLACK:
        raise DataError(f"box {list(raw)} leaves the picture of {wide} x {high} pixels.")
    if max(raw) <= 1 and min(wide, high) > 8:
        raise DataError(f"box {list(raw)} seems to be shares of the sides; boxes are in pixels (of {wide} x {high}).")
    return facts.turned((max(x1, 0.0), max(y1, 0.0), min(x2, float(wide)), min(y2, float(high))))


def _captioned(text: str, phrases: list[tuple[int, int, list[Any]]], box: Callable[[Any], Box]) -> Grounded:
    """A caption with its phrases; those without a box are words alone."""
    found = [Phrase(*_span(start, end, text), tuple(map(box, boxes))) for start, end, boxes in phrases]
    return Grounded(text, tuple(each for each in found if each.boxes))


def _span(start: Any, end: Any, caption: str) -> tuple[int, int]:
    if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(caption)):
        raise DataError(f"span [{start}, {end}] does not fit the caption of {len(caption)} characters.")
    return start, end


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"an {what} must be a text, but is {json.dumps(value, default=str)[:60]}.")
    return value.strip()


def listing(things: Sequence[Thing]) -> Grounded:
    """A caption that names each kind of thing once, with the boxes of all of them: from the top down, as they come first."""
    order = sorted(things, key=lambda thing: (thing.box[1], thing.box[0]))
    kinds: dict[str, list[Box]] = {}
    for thing in order:
        kinds.setdefault(thing.label, []).append(thing.box)
    text, phrases = "", []
    for label, boxes in kinds.items():
        text += ", " if text else ""
        phrases.append(Phrase(len(text), len(text) + len(label), tuple(boxes)))
        text += label
    return Grounded(text, tuple(phrases))


class PictureManifest(PictureSource):
    """The pictures of a list."""

    def __init__(self, config: PictureManifestConfig) -> None:
        path = find_file(config.path)
        super().__init__(config, str(path), _read_list(path))


KEYS = ("image", "caption", "phrases", "expressions", "questions", "things", "id")


def _read_list(path: Path) -> Iterator[Listed | Bad]:
    first: dict[str, int] = {}
    for number, line in numbered_lines(path):
        found = _of_line(line, path, f"{path}, line {number}")
        if isinstance(found, Listed) and not found.id:  # one picture may stand in several lines, with a caption each
            found.id = found.file if found.file not in first else f"{found.file} (line {number})"
        if isinstance(found, Listed) and found.id in first:
            found = Bad(found.where, f"has the id {found.id!r} of line {first[found.id]}.")
        elif isinstance(found, Listed):
            first[found.id] = number
        yield found


def _of_line(line: str, path: Path, where: str) -> Listed | Bad:
    try:
        raw = parse_json(line)
    except json.JSONDecodeError as error:
        return Bad(where, f"is not JSON: {error.msg}.")
    if not isinstance(raw, dict):
        return Bad(where, f"must be an object with the key 'image', but is {line.strip()[:60]}.")
    for key in raw:
        if key not in KEYS and nearest(key, KEYS):
            return Bad(where, f"unknown key {key!r}.{nearest(key, KEYS)} Known: {', '.join(KEYS)}.")
    if not isinstance(raw.get("image"), str) or not raw["image"]:
        return Bad(where, f"has no 'image', the file of the picture. It has {', '.join(map(repr, list(raw)[:8])) or 'no key'}.")
    try:
        return Listed(
            id=str(raw.get("id", "")),
            where=where,
            path=path.parent / raw["image"],
            file=raw["image"],
            caption=str(raw.get("caption") or ""),
            phrases=[(*_two(each, "span"), list(each["boxes"])) for each in raw.get("phrases") or []],
            expressions=[(each["text"], each["box"]) for each in raw.get("expressions") or []],
            questions=[
                Question(str(each["question"]), str(each["answer"]), str(each.get("kind", ""))) for each in raw.get("questions") or []
            ],
            things=[(str(each["label"]), each["box"]) for each in raw.get("things") or []],
            is_listed=raw.get("things") is not None,
        )
    except (KeyError, TypeError, ValueError) as error:
        return Bad(where, f"is not as a line must be ({type(error).__name__}: {error}); see the source picture_manifest.")


def _two(raw: Mapping[str, Any], key: str) -> tuple[Any, Any]:
    start, end = raw[key]
    return start, end


class PictureFolder(PictureSource):
    """The pictures of a folder."""

    def __init__(self, config: PictureFolderConfig) -> None:
        path = folder_of(config.path)
        super().__init__(config, str(path), _read_folder(path, config.captions))


def _read_folder(folder: Path, captions: str) -> Iterator[Listed | Bad]:
    for path in files_below(folder, ENDINGS):
        name = path.relative_to(folder).as_posix()
        caption = path.parent.name.replace("_", " ") if captions == "folders" and path.parent != folder else ""
        if captions == "txt":
            try:
                caption = " ".join(path.with_suffix(".txt").read_text(encoding="utf-8").split())
            except (OSError, UnicodeDecodeError) as error:
                yield Bad(str(path), f"has no caption: {path.with_suffix('.txt').name}: {getattr(error, 'strerror', None) or error}.")
                continue
        yield Listed(name, str(path), path, name, caption)


class Coco(PictureSource):
    """The pictures of COCO's or LVIS' annotations. Boxes around a crowd, which are of no single thing, and those without extent are left
    out."""

    def __init__(self, config: CocoConfig) -> None:
        folder = folder_of(config.path)
        super().__init__(config, ", ".join(config.annotations), _read_coco(folder, [find_file(each) for each in config.annotations]))


def _read_coco(folder: Path, files: Sequence[Path]) -> Iterator[Listed | Bad]:
    images: dict[Any, tuple[str, Path]] = {}
    things: dict[Any, list[tuple[str, Any]]] = defaultdict(list)
    captions: dict[Any, list[str]] = defaultdict(list)
    listed: set[Any] = set()
    flat = 0
    for file in files:
        held = json_of(file)
        try:
            names = {each["id"]: str(each["name"]).replace("_", " ") for each in held.get("categories", [])}
            images |= {each["id"]: (str(each.get("file_name") or each["coco_url"].rpartition("/")[2]), file) for each in held["images"]}
            annotations = held.get("annotations", [])
            if any("bbox" in each for each in annotations):  # of LVIS, a class has been looked for in some pictures alone
                listed |= {each["id"] for each in held["images"] if "neg_category_ids" not in each}
            for each in annotations:
                if each.get("iscrowd"):
                    listed.discard(each["image_id"])
                elif "bbox" in each:
                    x, y, wide, high = each["bbox"]
                    if wide == 0 or high == 0:
                        flat += 1
                        continue
                    things[each["image_id"]].append((names[each["category_id"]], [x, y, x + wide, y + high]))
                if "caption" in each:
                    captions[each["image_id"]].append(" ".join(str(each["caption"]).split()))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{file}: is not as COCO's annotations are: {type(error).__name__}: {error}.") from None
    if flat:
        logger.warning("%s: %d boxes without extent are left out.", ", ".join(map(str, files)), flat)
    for key, (name, file) in images.items():
        said = [(caption, list[tuple[int, int, list[Any]]]()) for caption in dict.fromkeys(captions.get(key, []))]
        yield Listed(name, f"{file}, image {key}", folder / name, name, further=said, things=things.get(key, []), is_listed=key in listed)


class Yolo(PictureSource):
    """The pictures of a folder with labels of YOLO's form."""

    def __init__(self, config: YoloConfig) -> None:
        folder = folder_of(config.path)
        super().__init__(config, str(folder), _read_yolo(folder, config.names))


def _read_yolo(folder: Path, names: Sequence[str]) -> Iterator[Listed | Bad]:
    for path in files_below(folder, ENDINGS):
        inside = path.relative_to(folder)
        beside = [path.with_suffix(".txt")]
        parts = list(path.parts)
        if "images" in parts:
            at = len(parts) - 1 - parts[::-1].index("images")
            beside.insert(0, Path(*parts[:at], "labels", *parts[at + 1 :]).with_suffix(".txt"))
        file = next((each for each in beside if each.is_file()), None)
        if file is None:
            yield Listed(inside.as_posix(), str(path), path, inside.as_posix(), is_listed=True)  # as of YOLO: it shows none of the classes
            continue
        try:
            facts = picture_facts(path)
            things = [_of_yolo(line, names, facts) for _, line in numbered_lines(file)]
        except DataError as error:
            yield Bad(str(file), str(error))
            continue
        yield Listed(inside.as_posix(), str(file), path, inside.as_posix(), things=things, is_listed=True)


def _of_yolo(line: str, names: Sequence[str], facts: PictureFacts) -> tuple[str, Any]:
    try:
        number, x, y, wide, high = (float(each) for each in line.split())
        label = names[int(number)] if number >= 0 else None
    except (ValueError, IndexError, OverflowError):
        label = None
    if label is None:
        raise DataError(f"{line[:60]!r} is not: class (0 to {len(names) - 1}), x, y, width, height.")
    if not all(0 <= each <= 1 for each in (x, y, wide, high)):
        raise DataError(f"{line[:60]!r}: x, y, width and height are shares of the sides, from 0 to 1.")
    box = [(x - wide / 2) * facts.width, (y - high / 2) * facts.height, (x + wide / 2) * facts.width, (y + high / 2) * facts.height]
    return label, box


def folder_of(name: str) -> Path:
    """The folder of a name, as `find_file` finds it. Raises DataError."""
    path = find_file(name)
    if not path.is_dir():
        raise DataError(f"{path}: is not a folder.")
    return path


def json_of(path: Path) -> Any:
    """What a JSON file holds. Raises DataError."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}.") from None
