"""Noise beneath sound: from a formula, from recordings, of a keyboard, of other people's talk.

Axes: n samples   f frequencies
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmlm.base.errors import DataError, unknown_name
from mmlm.data.audio_augment import drawn
from mmlm.data.audio_files import read_sound, sound_facts
from mmlm.data.audio_rooms import ListedSound, listed_sounds
from mmlm.data.config.augment import AddNoiseConfig, BabbleConfig, GeneratedNoiseConfig, KeyboardConfig, NoiseFolderConfig
from mmlm.data.dealing import place_of
from mmlm.data.speech import Speech
from mmlm.sound import Sound

CLICKS = Path("/usr/share/buckle/wav")
LOWEST_HZ = 20.0  # below which coloured noise is no louder
SEAM_SECONDS = 0.05  # over which a recording that is too short goes over into itself


class Noise(Protocol):
    """Where noise comes from."""

    def draw(self, rng: np.random.Generator, num_samples: int, rate_hz: int) -> tuple[np.ndarray, dict[str, Any]]:
        """(float [n] at any level, what it is)."""


class AddNoise:
    """Noise at a drawn signal-to-noise ratio, exact over the whole clip."""

    def __init__(self, config: AddNoiseConfig) -> None:
        self.snr_db = config.snr_db
        self.noises: list[Noise] = [noise.build() for noise in config.noises]
        weights = np.array([noise.weight for noise in config.noises])
        self.shares = weights / weights.sum()

    def __call__(self, sound: Sound, rng: np.random.Generator) -> tuple[Sound, dict[str, Any]]:
        """(the sound with noise, what noise and how much). Beneath silence there is no ratio: it stays as it is, with snr_db None."""
        snr_db = drawn(rng, self.snr_db)
        noise = self.noises[int(rng.choice(len(self.noises), p=self.shares))]
        noise_n, about = noise.draw(rng, len(sound.wave_n), sound.rate_hz)
        power, noise_power = (float(np.mean(np.square(each, dtype=np.float64))) for each in (sound.wave_n, noise_n))
        if power <= 0 or noise_power <= 0:
            return sound, {**about, "snr_db": None}
        factor = np.sqrt(power / noise_power / 10 ** (snr_db / 10))
        return Sound((sound.wave_n + factor * noise_n).astype(np.float32), sound.rate_hz), {**about, "snr_db": snr_db}


class GeneratedNoise:
    """White, pink (power as 1/f), brown (1/f^2), or the hum of the mains."""

    def __init__(self, config: GeneratedNoiseConfig) -> None:
        self.kinds = config.kinds

    def draw(self, rng: np.random.Generator, num_samples: int, rate_hz: int) -> tuple[np.ndarray, dict[str, Any]]:
        """See `Noise`."""
        kind = self.kinds[int(rng.integers(len(self.kinds)))]
        if kind == "hum":
            return _hum(rng, num_samples, rate_hz), {"noise": kind}
        return coloured(rng, {"white": 0.0, "pink": 1.0, "brown": 2.0}[kind], num_samples, rate_hz), {"noise": kind}


def coloured(rng: np.random.Generator, power: float, num_samples: int, rate_hz: int) -> np.ndarray:
    """float64 [n]: noise whose power falls as 1 / frequency ** power, from 20 Hz on."""
    white_n = rng.normal(size=num_samples)
    if not power or not num_samples:
        return white_n
    size = 1 << max(1, (num_samples - 1).bit_length())
    frequency_f = np.maximum(np.fft.rfftfreq(size, 1 / rate_hz), LOWEST_HZ)
    return np.fft.irfft(np.fft.rfft(white_n, size) * frequency_f ** (-power / 2), size)[:num_samples]


def _hum(rng: np.random.Generator, num_samples: int, rate_hz: int) -> np.ndarray:
    """50 or 60 Hz and up to 7 harmonics, the odd ones louder."""
    base_hz, time_n = float(rng.choice([50.0, 60.0])) * rng.uniform(0.995, 1.005), np.arange(num_samples) / rate_hz
    found_n = np.zeros(num_samples)
    for number in range(1, 9):
        level = rng.uniform(0.2, 1.0) / number * (1.0 if number % 2 else 0.4)
        if number * base_hz < rate_hz / 2:
            found_n += level * np.sin(2 * np.pi * (number * base_hz * time_n + rng.random()))
    return found_n


class NoiseFolder:
    """A random place of a recording in a folder. Raises DataError for a folder without noise and for labels that it does not have."""

    def __init__(self, config: NoiseFolderConfig) -> None:
        found = listed_sounds(config.path, "noise")
        labels = sorted({each.label for each in found})
        for name in config.kinds or []:
            if name not in labels:
                raise DataError(f"{config.path}: kinds: {unknown_name('label', name, labels)}")
        used = set(_dealt(config.kinds or labels, config))
        self.sounds = [each for each in found if each.label in used]
        self.lengths: dict[Path, float] = {}

    def draw(self, rng: np.random.Generator, num_samples: int, rate_hz: int) -> tuple[np.ndarray, dict[str, Any]]:
        """See `Noise`."""
        sound = self.sounds[int(rng.integers(len(self.sounds)))]
        return self._part(sound, rng, num_samples, rate_hz), {"noise": sound.label, "file": sound.path.name}

    def _part(self, sound: ListedSound, rng: np.random.Generator, num_samples: int, rate_hz: int) -> np.ndarray:
        if sound.path not in self.lengths:
            self.lengths[sound.path] = sound_facts(sound.path).seconds
        seconds, length = num_samples / rate_hz, self.lengths[sound.path]
        if length > seconds:
            start = float(rng.uniform(0, length - seconds))
            return repeated(read_sound(sound.path, rate_hz=rate_hz, start_seconds=start, seconds=seconds).wave_n, num_samples, rate_hz)
        whole_n = read_sound(sound.path, rate_hz=rate_hz).wave_n
        return repeated(np.roll(whole_n, int(rng.integers(len(whole_n)))), num_samples, rate_hz)


def _dealt(labels: list[str], config: NoiseFolderConfig) -> list[str]:
    """The labels of the part that is asked for: the first `hold_out` of them, in an order that depends on their names, are held out."""
    labels = sorted(labels, key=place_of)
    count = max(1, round(config.hold_out * len(labels))) if config.hold_out else 0
    if count >= len(labels):
        raise DataError(f"{config.path}: hold_out: {config.hold_out:g} of {len(labels)} labels leaves none to train with.")
    return labels[:count] if config.part == "held_out" else labels[count:]


def repeated(wave_n: np.ndarray, num_samples: int, rate_hz: int) -> np.ndarray:
    """float [n]: a sound repeated with soft seams until it is long enough, and cut there."""
    seam = min(round(SEAM_SECONDS * rate_hz), len(wave_n) // 2)
    if len(wave_n) < num_samples and seam:
        fade = np.sqrt(np.linspace(0, 1, seam, endpoint=False, dtype=np.float32))
        once_n = wave_n[seam:].copy()
        once_n[-seam:] = once_n[-seam:] * fade[::-1] + wave_n[:seam] * fade
        wave_n = np.concatenate([wave_n[:seam], np.tile(once_n, -(-(num_samples - seam) // len(once_n)))])
    return np.resize(wave_n, num_samples) if len(wave_n) < num_samples else wave_n[:num_samples]


class Keyboard:
    """Key presses and releases at random times. Raises DataError with the command that installs the recordings."""

    def __init__(self, config: KeyboardConfig) -> None:
        self.keys_per_second = config.keys_per_second
        presses = sorted(CLICKS.glob("*-1.wav"))
        self.keys = [(press, release) for press in presses if (release := press.with_name(press.name.replace("-1.", "-0."))).is_file()]
        if not self.keys:
            raise DataError(f"keyboard: no recorded keys in {CLICKS}. Install them with: apt-get install bucklespring-data")
        self.read: dict[tuple[Path, int], np.ndarray] = {}

    def draw(self, rng: np.random.Generator, num_samples: int, rate_hz: int) -> tuple[np.ndarray, dict[str, Any]]:
        """See `Noise`."""
        pace = drawn(rng, self.keys_per_second)
        found_n, at = np.zeros(num_samples), float(rng.exponential(1 / pace))
        while at * rate_hz < num_samples:
            level = rng.uniform(0.5, 1.0)
            press, release = self.keys[int(rng.integers(len(self.keys)))]
            for path, time in ((press, at), (release, at + rng.uniform(0.05, 0.15))):
                click_n = self._click(path, rate_hz)
                start = min(round(time * rate_hz), num_samples)
                click_n = click_n[: num_samples - start]
                found_n[start : start + len(click_n)] += level * click_n
            at += float(rng.exponential(1 / pace))
        return found_n, {"noise": "keyboard", "keys_per_second": pace}

    def _click(self, path: Path, rate_hz: int) -> np.ndarray:
        if (path, rate_hz) not in self.read:
            self.read[path, rate_hz] = read_sound(path, rate_hz=rate_hz).wave_n
        return self.read[path, rate_hz]


class Babble:
    """Several utterances at once, each at the same power, repeated until they fill the clip."""

    def __init__(self, config: BabbleConfig) -> None:
        self.config = config

    @cached_property
    def source(self) -> Speech:
        """Whose speech it is; built when it is first drawn from."""
        return self.config.speech.build()  # type: ignore[no-any-return]

    def draw(self, rng: np.random.Generator, num_samples: int, rate_hz: int) -> tuple[np.ndarray, dict[str, Any]]:
        """See `Noise`."""
        count = int(rng.integers(self.config.min_voices, self.config.max_voices + 1))
        found_n, talkers = np.zeros(num_samples), []
        for _ in range(count):
            utterance = self.source.draw(rng, None)
            wave_n = utterance.sound(rate_hz).wave_n
            voice_n = repeated(np.roll(wave_n, int(rng.integers(len(wave_n)))), num_samples, rate_hz)
            found_n += voice_n / max(float(np.sqrt(np.mean(np.square(voice_n)))), 1e-6)
            talkers.append(utterance.id)
        return found_n, {"noise": "babble", "voices": talkers}
