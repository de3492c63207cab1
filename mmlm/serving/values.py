"""Values of a task's inputs and outputs as JSON: sounds and pictures are files in base64, with or without `data:...;base64,` before them.

Text, Choice: text   Number: number   Table: list of rows   Points: list of [x, y, z, intensity]   Audio, Image: base64
    Pictures: list of base64
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import struct
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mmlm.base.errors import DataError, MmlmError
from mmlm.data.audio_files import read_sound, write_sound
from mmlm.data.picture_files import picture_facts, read_picture
from mmlm.sound import Sound
from mmlm.tasks.forms import MOST_PICTURES, MOST_PIXELS, MOST_SECONDS, MOST_TEXT, Audio, Field, Image, Pictures, Points

TOGETHER = 10  # times the most of one file that several may hold in all
USUAL_HZ = 48_000  # above it sounds are counted by their samples, which take the memory
T = TypeVar("T")


def from_json(inputs: Mapping[str, Field], given: Mapping[str, Any]) -> dict[str, Any]:
    """Values as a task takes them; what they are is checked afterwards. Raises DataError for a file that is none."""
    found = dict(given)
    for name, field in inputs.items():
        if (value := given.get(name)) is None:
            continue
        if isinstance(field, Audio):
            found[name] = sound_of(name, value, field.most_seconds)
        elif isinstance(field, Image):
            found[name] = picture_of(name, value)
        elif isinstance(field, Pictures):
            if not isinstance(value, list) or len(value) > MOST_PICTURES:
                raise DataError(f"{name}: must be a list of at most {MOST_PICTURES} files in base64.")
            found[name] = pictures_of(name, value, MOST_PIXELS)
        elif isinstance(field, Points):
            found[name] = _points_of(name, value)
    return found


def sound_of(name: str, value: Any, most_seconds: float = MOST_SECONDS) -> Sound:
    """The sound of a file in base64. Raises DataError, also for one that lasts too long."""
    return _read(name, value, partial(short_sound, most_seconds=most_seconds))


def short_sound(path: Path, most_seconds: float) -> Sound:
    """The sound in a file. Raises DataError for one that lasts too long, of which little more is decoded: a small file may hold many
    hours."""
    sound = read_sound(path, seconds=most_seconds + 1)
    if sound.seconds > most_seconds:
        raise DataError(f"{path}: lasts longer than the {most_seconds:g} s that are allowed.")
    return sound


def picture_of(name: str, value: Any, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """The picture of a file in base64. Raises DataError, for one that is too large before it is decoded."""
    return _read(name, value, partial(small_picture, most_pixels=most_pixels))


def small_picture(path: Path, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """The picture in a file. Raises DataError, for one that is too large before it is decoded."""
    facts = picture_facts(path)
    if facts.width * facts.height > most_pixels:
        others = "" if most_pixels == MOST_PIXELS else " beside the others"
        raise DataError(f"{path}: has {facts.width} x {facts.height} pixels; {most_pixels:,} in all are allowed{others}.")
    return read_picture(path)


def sounds_of(name: str, values: Sequence[Any]) -> list[Sound]:
    """Several, which together last no longer than TOGETHER of the longest; of rates above USUAL_HZ a second counts as more. Raises
    DataError."""
    found: list[Sound] = []
    left = TOGETHER * MOST_SECONDS
    for number, value in enumerate(values):
        found.append(sound_of(f"{name}.{number}", value, min(MOST_SECONDS, left)))
        left = max(0.0, left - max(found[-1].seconds, len(found[-1].wave_n) / USUAL_HZ))
    return found


def pictures_of(name: str, values: Sequence[Any], most_in_all: int = TOGETHER * MOST_PIXELS) -> list[np.ndarray]:
    """Several, which together have no more than so many pixels. Raises DataError before the one that is too much is decoded."""
    return within_pixels((partial(picture_of, f"{name}.{number}", value) for number, value in enumerate(values)), most_in_all)


def within_pixels(reads: Iterable[Callable[[int], np.ndarray]], most_in_all: int) -> list[np.ndarray]:
    """Pictures, each read with the most pixels that it may have where those before it have left so many. Raises DataError."""
    found: list[np.ndarray] = []
    left = most_in_all
    for read in reads:
        found.append(read(min(MOST_PIXELS, left)))
        left -= found[-1].shape[0] * found[-1].shape[1]
    return found


def texts_of(name: str, values: Sequence[str], most: int) -> list[str]:
    """Several, each of at most so many characters, which together hold no more than TOGETHER of the longest text. Raises DataError."""
    for number, value in enumerate(values):
        if len(value) > most:
            raise DataError(f"{name}.{number}: has {len(value):,} characters; {most:,} are allowed.")
    if (size := sum(map(len, values))) > TOGETHER * MOST_TEXT:
        raise DataError(f"{name}: holds {size:,} characters in all; {TOGETHER * MOST_TEXT:,} are allowed. Send fewer at once.")
    return list(values)


def to_json(value: Any) -> Any:
    """What a task answers, for JSON: numbers that are none are null."""
    if isinstance(value, Sound):
        return "data:audio/wav;base64," + base64.b64encode(sound_file(value, "wav")).decode()
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3:
        return "data:image/png;base64," + base64.b64encode(_png(value)).decode()
    if isinstance(value, np.ndarray | np.generic):
        return to_json(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): to_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)


def sound_file(sound: Sound, form: str) -> bytes:
    """A sound as the bytes of a file; pcm: whole numbers of 16 bits alone, little end first."""
    if form == "pcm":
        return (np.clip(np.asarray(sound.wave_n), -1, 1) * 32767).round().astype("<i2").tobytes()
    with tempfile.TemporaryDirectory(prefix="mmlm-") as folder:
        path = Path(folder) / f"sound.{form}"
        write_sound(path, sound)
        return path.read_bytes()


def open_wav_head(rate_hz: int) -> bytes:
    """What stands before pcm in a wav file whose length nobody knows yet."""
    unknown = 0xFFFFFFFF
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", unknown, b"WAVE", b"fmt ", 16, 1, 1, rate_hz, 2 * rate_hz, 2, 16, b"data", unknown)


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image as Pictures

    buffer = io.BytesIO()
    Pictures.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _points_of(name: str, value: Any) -> np.ndarray:
    try:
        points = np.array(value, dtype=np.float32)
    except (ValueError, TypeError, OverflowError):
        raise DataError(f"{name}: must be a list of [x, y, z, intensity].") from None
    if not np.isfinite(points).all():
        raise DataError(f"{name}: holds numbers that are none.")
    return points


def _read(name: str, value: Any, read: Callable[[Path], T]) -> T:
    """A file in base64, read under a name of our own from a folder that is gone afterwards."""
    if not isinstance(value, str):
        raise DataError(f"{name}: must be a file in base64, but is of type {type(value).__name__}.")
    head, comma, content = value.partition(",")
    if value.lstrip().lower().startswith(("http:", "https:", "file:", "ftp:")):
        raise DataError(f"{name}: addresses are not fetched; send the file itself, as data:...;base64,...")
    if comma and not (head.startswith("data:") and head.endswith(";base64")):
        raise DataError(f"{name}: must begin with data:...;base64, or be base64 alone.")
    try:
        data = base64.b64decode(content if comma else value, validate=True)
    except (binascii.Error, ValueError):
        raise DataError(f"{name}: is not valid base64.") from None
    with tempfile.TemporaryDirectory(prefix="mmlm-") as folder:
        path = Path(folder) / "upload"
        path.write_bytes(data)
        try:
            return read(path)
        except MmlmError as error:
            raise DataError(str(error).replace(str(path), name).replace(folder, "")) from None
