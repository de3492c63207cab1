"""Sweeps of one's own with the boxes of what is in them. Every file is read the first time that a source is built, and that it is whole is
remembered under its size and time of change; labels are read each time. What cannot be used is told with its file and place.

Axes: n points
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmlm.base.errors import DataError
from mmlm.base.files import parse_json
from mmlm.data.base import Parted, RecordList
from mmlm.data.config.sweeps import SweepFolderConfig
from mmlm.data.dealing import deal, deal_whole
from mmlm.data.listed import Bad, tell
from mmlm.data.picture_sources import folder_of
from mmlm.data.points import READERS, read_points
from mmlm.data.remembered import Remembered, key_of
from mmlm.data.speech_check import files_below
from mmlm.data.street.source import told
from mmlm.data.street.texts import Street
from mmlm.data.sweeps import Cuboid, Sweep
from mmlm.tokenizers.boxes import Box

VERSION = 1  # of what is remembered of a file


@dataclass(frozen=True)
class Whole:
    """A file that can be read to its end, of so many points."""

    points: int


class Sweeps(RecordList[Sweep]):
    """Sweeps to draw from. Raises DataError without any."""

    what = "sweep"


class SweepFolder(Parted, Sweeps):
    """The sweeps of a folder that are trained on. `bad`: those that cannot be used."""

    part = Sweeps

    def __init__(self, config: SweepFolderConfig) -> None:
        folder = folder_of(config.path)
        known = Remembered(Whole, "sweeps", str(folder), "sweeps", VERSION)
        looked = [_looked_at(path, folder, config, known) for path in files_below(folder, tuple(READERS))]
        known.write()
        self.bad = [each for each in looked if isinstance(each, Bad)]
        tell(self.bad, len(looked), "sweeps", str(folder), config.on_bad)
        found = [each for each in looked if not isinstance(each, Bad)]
        labels = sorted({thing.label for _, _, things in found for thing in things})
        good = [_sweep(path, name, things, labels, config) for path, name, things in found]
        self.groups = _dealt(good, config, str(folder))
        super().__init__(self.groups[2], str(folder))


def _dealt(sweeps: Sequence[Sweep], config: SweepFolderConfig, where: str) -> list[list[Sweep]]:
    """Those held out, kept back for validation, and trained on."""
    shares = {"hold_out": config.hold_out, "validate_share": config.validate_share}
    if config.split_by == "sweep" or not sweeps:
        return deal(sweeps, lambda each: each.id, shares, where, "sweeps")
    held_in = [each.id.rpartition("/")[0] for each in sweeps]
    folders = set(held_in)
    try:
        number = deal_whole(folders, list(shares.values()))
    except ValueError:
        raise DataError(f"{where}: split_by: folder: {len(folders)} folders are too few for hold_out and validate_share.") from None
    return [[each for each, folder in zip(sweeps, held_in, strict=True) if number[folder] == group] for group in range(3)]


def _looked_at(path: Path, folder: Path, config: SweepFolderConfig, known: Remembered[Whole]) -> tuple[Path, str, tuple[Cuboid, ...]] | Bad:
    labels = path.with_suffix(".json")
    try:
        key = key_of(path, config.columns)
        if known.get(key) is None:
            known.put(key, Whole(len(read_points(path, config.columns))))
        things = read_labels(labels, config.front_degrees) if labels.is_file() else ()
    except DataError as error:
        return Bad(str(path), str(error))
    return path, path.relative_to(folder).as_posix(), tuple(each for each in things if each.distance <= config.reach)


def _sweep(path: Path, name: str, things: tuple[Cuboid, ...], labels: Sequence[str], config: SweepFolderConfig) -> Sweep:
    """What can be said of a sweep is drawn by its name."""
    read = partial(read_ahead, path, config.front_degrees, config.columns)
    if not things:
        return Sweep(name, str(path), read)
    rng = np.random.default_rng(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()))
    captions, pointed, asked = told(rng, Street(things), labels)
    return Sweep(name, str(path), read, things, captions, tuple(one for one, _ in pointed), tuple(one for one, _ in asked))


def read_ahead(path: Path, front_degrees: float = 0.0, columns: int | None = None) -> np.ndarray:
    """The points of a file, turned so that x lies ahead: float32 [n, 4]. Raises DataError."""
    points_n4 = read_points(path, columns)
    if front_degrees:
        x_n, y_n = _turned(points_n4[:, 0], points_n4[:, 1], front_degrees)
        points_n4[:, 0], points_n4[:, 1] = x_n, y_n
    return points_n4


def _turned(x: Any, y: Any, front_degrees: float) -> tuple[Any, Any]:
    cos, sin = math.cos(math.radians(front_degrees)), math.sin(math.radians(front_degrees))
    return x * cos + y * sin, y * cos - x * sin


def read_labels(path: Path, front_degrees: float = 0.0) -> tuple[Cuboid, ...]:
    """The things of a file of labels, turned as the points are. Raises DataError naming the file and the place in its list."""
    try:
        held = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}.") from None
    if not isinstance(held, list):
        raise DataError(f"{path}: must be a list of objects with obj_type and psr, but is {json.dumps(held)[:60]}.")
    return tuple(_thing(raw, f"{path}, object {number}", front_degrees) for number, raw in enumerate(held, 1))


def _thing(raw: Any, where: str, front_degrees: float) -> Cuboid:
    try:
        place, scale, heading = raw["psr"]["position"], raw["psr"]["scale"], float(raw["psr"]["rotation"]["z"])
        label, numbers = raw["obj_type"], [float(part[axis]) for part in (place, scale) for axis in "xyz"]
    except (KeyError, TypeError, ValueError) as error:
        what = f"has no {error}" if isinstance(error, KeyError) else f"is not as it must be ({error})"
        raise DataError(f"{where}: {what}; an object has obj_type and psr with position, scale and rotation, each of x, y, z.") from None
    if not isinstance(label, str) or not label.strip():
        raise DataError(f"{where}: obj_type must be a text, but is {json.dumps(label)[:40]}.")
    if not all(map(math.isfinite, (*numbers, heading))) or min(numbers[3:]) <= 0:
        raise DataError(f"{where}: numbers must be finite and the scale above 0, but are {numbers} and {heading}.")
    x, y = _turned(numbers[0], numbers[1], front_degrees)
    turned = (heading - math.radians(front_degrees) + math.pi) % (2 * math.pi) - math.pi
    box: Box = (x, y, *numbers[2:], turned)
    return Cuboid(label.strip().lower().replace("_", " "), box)
