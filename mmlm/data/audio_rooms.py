"""Rooms: impulse responses made or measured, and sound heard in them.

What comes out of a room begins with the direct sound, so that it is aligned with what went in. RT60 is read from the energy decay
(Schroeder 1965) between -5 and -25 dB: what is asked of a room is one thing, what it has another, and both are recorded.

Axes: n samples   h samples of an impulse response
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmlm.base.errors import DataError, require
from mmlm.base.files import parse_json
from mmlm.data.audio_augment import drawn
from mmlm.data.audio_files import ENDINGS, read_sound
from mmlm.data.config.augment import RoomConfig
from mmlm.data.episodes import find_file
from mmlm.data.listed import numbered_lines
from mmlm.data.speech_check import files_below
from mmlm.sound import Sound

IMAGE_ORDER = 17  # about 9 ms a room; what more reflections would give is a diffuse tail
DECAY = 3 * np.log(10)  # of a level that falls by 60 dB in one RT60


def measured_rt60(response_h: np.ndarray, rate_hz: int) -> float:
    """Seconds in which the energy of an impulse response falls by 60 dB, from the line through -5 to -25 dB; 0 where it never decays so."""
    power_h = np.square(response_h[int(np.argmax(np.abs(response_h))) :], dtype=np.float64)
    left_h = np.cumsum(power_h[::-1])[::-1]
    level_h = 10 * np.log10(np.maximum(left_h / max(left_h[0], 1e-30), 1e-12))
    inside = np.flatnonzero((level_h <= -5) & (level_h >= -25))
    if len(inside) < 2:
        return 0.0
    slope = np.polyfit(inside / rate_hz, level_h[inside], 1)[0]
    return float(-60 / slope) if slope < 0 else 0.0


def decaying_noise(rng: np.random.Generator, rt60: float, direct_db: float, rate_hz: int) -> np.ndarray:
    """float64 [h]: a direct sound of 1, and after 2 to 10 ms noise whose level falls by 60 dB in rt60 seconds.

    direct_db: energy of the direct sound over that of the noise.
    """
    time_h = np.arange(round(1.2 * rt60 * rate_hz) + 1) / rate_hz
    tail_h = rng.normal(size=len(time_h)) * np.exp(-DECAY * time_h / rt60)
    tail_h[: max(1, round(rng.uniform(0.002, 0.01) * rate_hz))] = 0
    tail_h *= 10 ** (-direct_db / 20) / np.sqrt(np.sum(tail_h**2))
    tail_h[0] = 1
    return tail_h


def simulated_room(rng: np.random.Generator, rt60: float, rate_hz: int) -> tuple[np.ndarray, int, dict[str, Any]]:
    """(float64 [h], place of the direct sound, size and distance): a box of drawn size with a source and a microphone in it.

    Walls absorb by Sabine's formula. Reflections up to IMAGE_ORDER are image sources; where these run out, noise goes on at their level
    and falls by 60 dB in rt60. Raises MissingExtra without pyroomacoustics.
    """
    rooms = require("pyroomacoustics", "speech")
    size = rng.uniform([3.0, 3.0, 2.4], [8.0, 6.0, 4.0])
    volume, surface = float(np.prod(size)), 2 * float(size[0] * size[1] + size[0] * size[2] + size[1] * size[2])
    speed = float(rooms.constants.get("c"))
    absorption = min(0.99, DECAY * 8 / speed * volume / (surface * rt60))
    box = rooms.ShoeBox(size, fs=rate_hz, materials=rooms.Material(absorption), max_order=IMAGE_ORDER)
    microphone = rng.uniform(0.5, size - 0.5)
    source = microphone
    while np.linalg.norm(source - microphone) < 0.3:
        source = rng.uniform(0.3, size - 0.3)
    apart = source - microphone
    distance = float(np.linalg.norm(apart))
    steps = round(distance * rate_hz / speed)  # moved a little, the source is a whole number of samples away
    source = microphone + apart * (steps * speed / rate_hz / distance)
    box.add_source(source)
    box.add_microphone(microphone)
    box.compute_rir()
    response_h = np.asarray(box.rir[0][0], dtype=np.float64)
    direct = steps + rooms.constants.get("frac_delay_length") // 2  # the delay of the filters that place an echo between two samples
    last = direct + round(IMAGE_ORDER * float(size.min()) / speed * rate_hz)  # until here no reflection is missing
    width = max(1, round(0.02 * rate_hz))
    level = np.sqrt(np.mean(response_h[max(direct + 1, last - width) : last] ** 2)) if last < len(response_h) else 0.0
    end = direct + round(1.2 * rt60 * rate_hz)
    if level > 0 and end > last:
        tail_h = rng.normal(size=end - last) * level * np.exp(-DECAY * np.arange(end - last) / (rt60 * rate_hz))
        response_h = np.concatenate([response_h[:last], tail_h])
    return response_h, direct, {"size_m": [round(float(each), 2) for each in size], "distance_m": round(distance, 2)}


def direct_place(response_h: np.ndarray, rate_hz: int) -> int:
    """Where the direct sound of a measured room is: the highest peak within a millisecond after half the height of all is first reached."""
    level_h = np.abs(response_h)
    first = int(np.argmax(level_h >= 0.5 * level_h.max()))
    return first + int(np.argmax(level_h[first : first + max(1, rate_hz // 1000)]))


def in_room(wave_n: np.ndarray, response_h: np.ndarray, direct: int) -> np.ndarray:
    """float32 [n]: a sound in a room. The direct sound, at place `direct` of the response, keeps its own place and level.

    What rings on after the end is cut.
    """
    size = 1 << (len(wave_n) + len(response_h)).bit_length()
    whole_n = np.fft.irfft(np.fft.rfft(wave_n, size) * np.fft.rfft(response_h / response_h[direct], size), size)
    return whole_n[direct : direct + len(wave_n)].astype(np.float32)


@dataclass(frozen=True)
class ListedSound:
    """A file of a folder of sounds. label: what it is, without numbers at the end. about: its line in index.jsonl."""

    path: Path
    label: str
    about: dict[str, Any]


def listed_sounds(folder: str, kind: str) -> list[ListedSound]:
    """The sounds of a folder that its index.jsonl calls `kind`, or all of them without such a file, labelled by their folder or name.

    Raises DataError for a folder without any and for an index that cannot be read.
    """
    path = find_file(folder)
    index, found = path / "index.jsonl", []
    if not index.is_file():
        for file in files_below(path, ENDINGS):
            inside = file.relative_to(path)
            found.append(ListedSound(file, (inside.parts[0] if len(inside.parts) > 1 else file.stem).rstrip("0123456789_- "), {}))
    else:
        for number, line in numbered_lines(index):
            try:
                about = parse_json(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{index}, line {number}: is not JSON: {error.msg}.") from None
            if not isinstance(about, dict) or not isinstance(about.get("file"), str):
                raise DataError(f"{index}, line {number}: must be an object with the key 'file', a path below the folder.")
            if about.get("kind", kind) != kind:
                continue
            if not (path / about["file"]).is_file():
                raise DataError(f"{index}, line {number}: {about['file'][:200]!r}: no such file.")
            found.append(ListedSound(path / about["file"], str(about.get("label", about["file"])).rstrip("0123456789_- "), about))
    if not found:
        raise DataError(f"{path}: holds no {kind}.")
    return found


@functools.lru_cache(maxsize=64)
def _response(path: Path, rate_hz: int) -> np.ndarray:
    """float64 [h] of a measured room."""
    return read_sound(path, rate_hz=rate_hz).wave_n.astype(np.float64)


class Room:
    """Sound in a drawn room."""

    def __init__(self, config: RoomConfig) -> None:
        self.kind, self.rt60, self.direct_db = config.kind, config.rt60, config.direct_db
        self.measured = listed_sounds(config.path, "rir") if config.path is not None and config.kind == "measured" else []

    def __call__(self, sound: Sound, rng: np.random.Generator) -> tuple[Sound, dict[str, Any]]:
        """(the sound in the room, aligned with the one outside; which room, the RT60 that was asked and the one it has)."""
        made: dict[str, Any] = {"kind": self.kind}
        if self.kind == "measured":
            room = self.measured[int(rng.integers(len(self.measured)))]
            response_h = _response(room.path, sound.rate_hz)
            direct = direct_place(response_h, sound.rate_hz)
            made["room"] = room.label
        else:
            rt60 = drawn(rng, self.rt60)
            made["asked_rt60"] = rt60
            if self.kind == "decay":
                made["direct_db"] = drawn(rng, self.direct_db)
                response_h, direct = decaying_noise(rng, rt60, made["direct_db"], sound.rate_hz), 0
            else:
                response_h, direct, about = simulated_room(rng, rt60, sound.rate_hz)
                made.update(about)
        made["rt60"] = measured_rt60(response_h, sound.rate_hz)
        return Sound(in_room(sound.wave_n, response_h, direct), sound.rate_hz), made
