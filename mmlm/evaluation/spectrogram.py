"""A sound as a picture: its short-time spectrum as a PNG that a page holds within itself, and beneath it what was looked at in its time.

Axes: n samples   m frames   g frames of a group   w samples of a window   f frequencies   e entries that are looked at   t steps
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image
from torch import Tensor

from mmlm.sound import Sound

WIDTH, HEIGHT, RANGE_DB = 420, 120, 80.0
MOST_COLUMNS = 2048  # spectra of a sound; of a longer one each is the mean of several, so that none takes much memory
ROW = 8  # points of what is looked at
SHADES = 64
ANCHORS = np.array([[0, 0, 8], [58, 12, 104], [150, 38, 96], [226, 88, 50], [248, 172, 30], [252, 252, 190]], dtype=np.float64)


def levels(sound: Sound, window_seconds: float = 0.032, hop_seconds: float = 0.008) -> np.ndarray:
    """float64 [f, m]: level in dB below the loudest cell, from -RANGE_DB to 0; the highest frequency first. All -RANGE_DB for silence. m is
    one for each hop, or less, at most MOST_COLUMNS."""
    window, hop = max(8, round(window_seconds * sound.rate_hz)), max(1, round(hop_seconds * sound.rate_hz))
    wave_n = np.pad(sound.wave_n.astype(np.float64), (window // 2, window))
    frames_mw = np.lib.stride_tricks.sliding_window_view(wave_n, window)[::hop]
    size, taper = -(-len(frames_mw) // MOST_COLUMNS), np.hanning(window)
    groups = (frames_mw[start : start + size] for start in range(0, len(frames_mw), size))
    power_fm = np.stack([(np.abs(np.fft.rfft(group_gw * taper, axis=1)) ** 2).mean(0) for group_gw in groups], axis=1)[::-1]
    loudest = power_fm.max(initial=0)
    if not loudest > 0:
        return np.full(power_fm.shape, -RANGE_DB)
    return np.maximum(10 * np.log10(np.maximum(power_fm / loudest, 1e-30)), -RANGE_DB)


def spectrogram_png(sound: Sound) -> bytes:
    """A PNG of WIDTH times HEIGHT points: time to the right, 0 Hz to half the rate upwards, louder is brighter."""
    return _png(levels(sound) / RANGE_DB + 1, HEIGHT, Image.Resampling.BOX)


def extent(sound: Sound) -> str:
    """What the sides of its picture are, which is of one size for sounds of any length and rate."""
    return f"{sound.seconds:.2f} s, 0 to {sound.rate_hz / 2000:g} kHz"


def _png(brightness: np.ndarray, height: int, resampling: Image.Resampling) -> bytes:
    """Values from 0 to 1 as a PNG of WIDTH times so many points."""
    shades = np.rint(brightness * (SHADES - 1)).astype(np.uint8)
    picture = Image.fromarray(shades, mode="L").resize((WIDTH, height), resampling)
    places = np.linspace(0, len(ANCHORS) - 1, SHADES)
    colours = np.stack([np.interp(places, np.arange(len(ANCHORS)), ANCHORS[:, channel]) for channel in range(3)], axis=1)
    shown = Image.fromarray(np.asarray(picture), mode="P")
    shown.putpalette(np.rint(colours).astype(np.uint8).tobytes())
    file = io.BytesIO()
    shown.save(file, format="PNG", optimize=True)
    return file.getvalue()


def spectrogram_image(sound: Sound, title: str, marks: Sequence[tuple[str, float]] = ()) -> str:
    """The picture as an element of HTML. title: already escaped. marks: what is said until how many seconds, written below and parted by
    lines."""
    data = base64.b64encode(spectrogram_png(sound)).decode()
    if not marks:
        return f'<img alt="spectrogram of {title}" width="{WIDTH}" height="{HEIGHT}" src="data:image/png;base64,{data}">'
    parts, start = [], 0.0
    for number, (name, end) in enumerate(marks):
        left, right = (WIDTH * time / max(sound.seconds, 1e-9) for time in (start, end))
        row = HEIGHT + 9 + 9 * (number % 2)  # two rows, so that neighbours do not run into each other
        parts.append(
            f'<line x1="{right:.1f}" x2="{right:.1f}" y1="0" y2="{HEIGHT}" stroke="#fff" stroke-opacity="0.5" stroke-width="0.6"/>'
        )
        parts.append(f'<text x="{(left + right) / 2:.1f}" y="{row}" font-size="8" text-anchor="middle">{escape(name)}</text>')
        start = end
    height = HEIGHT + 20
    return (
        f'<svg role="img" aria-label="spectrogram of {title}" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">'
        f'<image width="{WIDTH}" height="{HEIGHT}" href="data:image/png;base64,{data}"/>{"".join(parts)}</svg>'
    )


def attention_image(names: Sequence[str], weights_et: Tensor) -> str:
    """What is looked at, one row each, over the time of a sound, as an element of HTML; brighter is more. Names stand at the right."""
    height = ROW * len(names)
    data = base64.b64encode(_png(weights_et.clamp(0, 1).numpy(), height, Image.Resampling.NEAREST)).decode()
    size = ROW - 2
    rows = [
        f'<text x="{WIDTH + 3}" y="{ROW * number + size}" font-size="{size}" fill="currentColor">{escape(name)}</text>'
        for number, name in enumerate(names)
    ]
    return (
        f'<svg role="img" aria-label="what the model looked at" width="{WIDTH + 40}" height="{height}" viewBox="0 0 {WIDTH + 40} {height}">'
        f'<image width="{WIDTH}" height="{height}" href="data:image/png;base64,{data}"/>{"".join(rows)}</svg>'
    )
