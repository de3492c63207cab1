"""Pitch, level and duration of speech as numbers of buckets, for each frame or for each phone.

Bucket 0 of the pitch is unvoiced and bucket 0 of the level is silence; the others cover a range. A duration is its number of frames. A
phone that lasts longer than the longest duration becomes several entries of that phone, so that the frames of all entries are still those
of the sound. Pitch and duration as steps before the codes: RALL-E, arXiv:2404.03204.

Axes: t frames   l phones   e entries (phones after splitting)   v values
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from mmlm.base.errors import CheckpointError, DataError
from mmlm.base.files import parse_json
from mmlm.sound import Sound
from mmlm.stream import Segment
from mmlm.tokenizers.config import ProsodyConfig
from mmlm.tokenizers.pitch import FLOOR_DB, Voice, follow, num_frames

FILE = "prosody.json"
FEWEST_VOICED = 2  # frames of a phone; with fewer it is unvoiced
OCTAVES = 1.5  # below and above the median that relative pitch covers


@dataclass(frozen=True)
class Quantizer:
    """Numbers to buckets and back: bucket 0 for what is none (NaN), then one between each pair of edges; what lies outside is in the first
    or last of them.   edges: rising.   centres: one a bucket."""

    edges: np.ndarray
    centres: np.ndarray

    @classmethod
    def even(cls, low: float, high: float, buckets: int) -> Quantizer:
        """Buckets of equal width."""
        edges = np.linspace(low, high, buckets)
        return cls(edges, (edges[1:] + edges[:-1]) / 2)

    @classmethod
    def octaves(cls, low: float, high: float, buckets: int) -> Quantizer:
        """Buckets of equal ratio."""
        edges = np.geomspace(low, high, buckets)
        return cls(edges, np.sqrt(edges[1:] * edges[:-1]))

    @classmethod
    def learned(cls, values_v: np.ndarray, buckets: int) -> Quantizer:
        """Buckets with equally many of the values, each with their median as its centre. Raises DataError for too few values."""
        found = len(np.unique(values_v))
        edges = np.unique(np.quantile(values_v, np.linspace(0, 1, buckets))) if found >= buckets else np.zeros(0)
        if len(edges) < buckets:
            raise DataError(f"{buckets} buckets need more different values than the {found} found.")
        place_v = np.clip(np.searchsorted(edges, values_v, side="right") - 1, 0, buckets - 2)
        centres = [float(np.median(inside)) if len(inside := values_v[place_v == at]) else edges[at] for at in range(buckets - 1)]
        return cls(edges, np.array(centres))

    def encode(self, values_v: np.ndarray) -> np.ndarray:
        """Buckets of numbers; NaN is in bucket 0."""
        place_v = np.clip(np.searchsorted(self.edges, values_v, side="right") - 1, 0, len(self.centres) - 1)
        return np.where(np.isnan(values_v), 0, place_v + 1)

    def decode(self, buckets_v: np.ndarray) -> np.ndarray:
        """The centre of each bucket; NaN for bucket 0."""
        return np.concatenate([[np.nan], self.centres])[buckets_v]


@dataclass(frozen=True)
class PhoneProsody:
    """Entries of a recording. phone: long [e], the place of the phone that each belongs to.   pitch, energy, duration: long [e] buckets."""

    phone: torch.Tensor
    pitch: torch.Tensor
    energy: torch.Tensor
    duration: torch.Tensor


class Prosody:
    """Sounds to ids of the range `pitch` and back to Hz; with durations also to `energy` and `duration`, for each phone."""

    is_fitted_on_sounds = True

    def __init__(self, config: ProsodyConfig) -> None:
        self.config = config
        low, high = (-OCTAVES, OCTAVES) if config.is_relative else (config.lowest_hz, config.highest_hz)
        is_even = config.scale == "linear" or (config.scale == "log" and config.is_relative)
        self.pitch: Quantizer | None = None
        if config.scale != "quantiles":
            self.pitch = (Quantizer.even if is_even else Quantizer.octaves)(low, high, config.pitch_buckets)
        self.energy = Quantizer.even(FLOOR_DB, 0.0, config.energy_buckets)

    @property
    def is_fitted(self) -> bool:
        """Whether the buckets are known; quantiles have to be fitted."""
        return self.pitch is not None

    @property
    def sizes(self) -> dict[str, int]:
        """The vocabulary ranges and their sizes."""
        return {"pitch": self.config.pitch_buckets, "energy": self.config.energy_buckets, "duration": self.config.longest_frames + 1}

    def fit(self, sounds: Iterable[Sound]) -> Prosody:
        """Learn the buckets of the pitch from sounds."""
        pitch = [self._scaled(self.follow(sound).pitch_hz, None) for sound in sounds]
        values = np.concatenate([np.zeros(0), *pitch])
        self.pitch = Quantizer.learned(values[~np.isnan(values)], self.config.pitch_buckets)
        return self

    def follow(self, sound: Sound) -> Voice:
        """Pitch and level of each frame."""
        config = self.config
        return follow(sound, config.rate_hz, method=config.pitch, lowest_hz=config.lowest_hz, highest_hz=config.highest_hz)

    def encode(self, sound: Sound, *, median_hz: float | None = None) -> Segment:
        """The pitch of each frame as a segment. median_hz: of the speaker, where pitch is relative; None for that of the sound."""
        rate = Fraction(self.config.rate_hz).limit_denominator(1000)
        ids = self._pitch_ids(self.follow(sound).pitch_hz, median_hz)
        return Segment("pitch", ids, rate_hz=(rate.numerator, rate.denominator))

    def decode(self, segment: Segment | Sequence[int], *, median_hz: float | None = None) -> np.ndarray:
        """Pitch in Hz, 0 where unvoiced. median_hz: of the speaker, needed where pitch is relative."""
        ids = segment.ids if isinstance(segment, Segment) and segment.ids is not None else torch.as_tensor(segment)
        values = self._ready().decode(ids.numpy())
        if self.config.is_relative:
            if median_hz is None:
                raise DataError("relative pitch has no Hz without the median of a speaker: give median_hz.")
            values = median_hz * 2**values
        return np.nan_to_num(values)

    def of_phones(self, sound: Sound, frames: Sequence[int]) -> PhoneProsody:
        """Pitch, level and duration of each phone of a sound, long phones in several entries.

        frames: of each phone, at this config's rate, together all frames of the sound (`Alignment.frames`). Pitch is the mean over the
        voiced frames of the whole phone, and it is unvoiced with fewer than two. Raises DataError for frames that are not those of the
        sound.
        """
        total = num_frames(sound, self.config.rate_hz)
        if sum(frames) != total or min(frames, default=0) < 0:
            raise DataError(f"the phones have {sum(frames)} frames, but {sound.seconds:.2f} s at {self.config.rate_hz:g} Hz have {total}.")
        voice, phone_t = self.follow(sound), np.repeat(np.arange(len(frames)), frames)
        voiced_t = voice.pitch_hz > 0
        voiced_l = np.bincount(phone_t, voiced_t, minlength=len(frames))
        mean_l = np.bincount(phone_t, voice.pitch_hz, minlength=len(frames)) / np.maximum(voiced_l, 1)
        power_l = np.bincount(phone_t, 10 ** (voice.level_db / 10), minlength=len(frames)) / np.maximum(frames, 1)
        with np.errstate(divide="ignore"):
            level_l = 10 * np.log10(power_l)
        median = float(np.median(voice.pitch_hz[voiced_t])) if voiced_t.any() else None
        pitch_l = self._pitch_ids(np.where(voiced_l >= FEWEST_VOICED, mean_l, 0), median)
        energy_l = torch.from_numpy(self.energy.encode(np.where(level_l < FLOOR_DB, np.nan, level_l)))
        lengths, phone = split_long(frames, self.config.longest_frames)
        phone_e = torch.tensor(phone, dtype=torch.long)
        return PhoneProsody(phone_e, pitch_l[phone_e], energy_l[phone_e], torch.tensor(lengths, dtype=torch.long))

    def save(self, folder: Path | str) -> None:
        """Write the buckets of the pitch."""
        pitch = self._ready()
        Path(folder).mkdir(parents=True, exist_ok=True)
        content = {"edges": pitch.edges.tolist(), "centres": pitch.centres.tolist()}
        (Path(folder) / FILE).write_text(json.dumps(content) + "\n")

    def load(self, folder: Path | str) -> Prosody:
        """Take what save wrote. Raises CheckpointError where it is missing, damaged or of another size."""
        path = Path(folder) / FILE
        try:
            found = parse_json(path.read_text())
            edges, centres = (np.array(found[key], dtype=np.float64) for key in ("edges", "centres"))
        except (OSError, ValueError, KeyError, TypeError):
            raise CheckpointError(f"{path}: missing or damaged.") from None
        if len(edges) != self.config.pitch_buckets or len(centres) != len(edges) - 1:
            raise CheckpointError(f"{path}: holds {len(edges)} buckets, but pitch_buckets is {self.config.pitch_buckets}.")
        self.pitch = Quantizer(edges, centres)
        return self

    def _scaled(self, pitch_hz: np.ndarray, median_hz: float | None) -> np.ndarray:
        """Pitch on the axis of the buckets, NaN where unvoiced."""
        voiced = pitch_hz > 0
        values = np.where(voiced, pitch_hz, np.nan)
        if not self.config.is_relative:
            return values
        median = median_hz or (float(np.median(pitch_hz[voiced])) if voiced.any() else 1.0)
        return np.log2(values / median)

    def _pitch_ids(self, pitch_hz: np.ndarray, median_hz: float | None) -> torch.Tensor:
        return torch.from_numpy(self._ready().encode(self._scaled(pitch_hz, median_hz)))

    def _ready(self) -> Quantizer:
        if self.pitch is None:
            raise DataError("quantiles of the pitch are not fitted yet: fit them on sounds, or load what a run has saved.")
        return self.pitch


def split_long(frames: Sequence[int], longest: int) -> tuple[list[int], list[int]]:
    """(durations of at most `longest`, place of the phone of each): 70 with longest 32 becomes 32, 32, 6. The sum stays."""
    lengths, phone = [], []
    for at, count in enumerate(frames):
        parts = [longest] * (count // longest) + ([count % longest] if count % longest or not count else [])
        lengths += parts
        phone += [at] * len(parts)
    return lengths, phone
