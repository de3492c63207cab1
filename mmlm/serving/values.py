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
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mmlm.base.errors import DataError, MmlmError
from mmlm.data.audio_files import read_sound, write_sound
from mmlm.data.picture_files import read_picture
from mmlm.sound import Sound
from mmlm.tasks.forms import MOST_PICTURES, MOST_SECONDS, Audio, Field, Image, Pictures, Points

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
            found[name] = _pictures_of(name, value)
        elif isinstance(field, Points):
            found[name] = _points_of(name, value)
    return found


def sound_of(name: str, value: Any, most_seconds: float = MOST_SECONDS) -> Sound:
    """The sound of a file in base64, of a longer one little more than most_seconds. Raises DataError."""
    return _read(name, value, partial(read_beginning, most_seconds=most_seconds))


def read_beginning(path: Path, most_seconds: float) -> Sound:
    """The sound in a file, of a longer one a second more than these, by which it is known: a small file may hold many hours."""
    return read_sound(path, seconds=most_seconds + 1)


def picture_of(name: str, value: Any) -> np.ndarray:
    """The picture of a file in base64. Raises DataError."""
    return _read(name, value, read_picture)


def _pictures_of(name: str, value: Any) -> list[np.ndarray]:
    if not isinstance(value, list):
        raise DataError(f"{name}: must be a list of files in base64.")
    if len(value) > MOST_PICTURES:
        raise DataError(f"{name}: holds {len(value)} pictures; {MOST_PICTURES} are allowed.")
    return [picture_of(f"{name}, picture {number}", one) for number, one in enumerate(value, 1)]


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
