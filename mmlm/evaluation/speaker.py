"""Whether two sounds have one voice: cosine of GE2E speaker vectors (Wan et al. 2018), with the weights in the package resemblyzer.

The network is an LSTM and a linear layer; its weights are read here without unpickling anything but tensors, and nothing else of the
package is used. Sounds are made equally loud and quiet parts are left out by their level (the package asks a voice detector).

Axes: n samples   t mel frames   m mel bands   p parts of a sound
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mmlm.base.errors import DataError, MissingExtra
from mmlm.sound import Sound, librosa
from mmlm.weights import copy_tensors, read_foreign_tensors

RATE_HZ, HOP, WINDOW, BANDS = 16_000, 160, 400, 40
SIZE, LAYERS = 256, 3
PART_FRAMES, STEP_FRAMES = 160, 77
LEVEL_DB = -30.0  # every sound is made so loud: the package raises softer ones alone, and its vectors then depend on the level
QUIET_DB, QUIET_FRAMES = 35.0, 20  # below the loudest frame, and how many of them are still kept beside louder ones
INSTALL = "pip install --no-deps resemblyzer"


class SpeakerEncoder(nn.Module):
    """Sounds to unit vectors [256]. path: of the weights; None for those of the installed package."""

    def __init__(self, path: Path | str | None = None) -> None:
        super().__init__()
        self.lstm = nn.LSTM(BANDS, SIZE, LAYERS, batch_first=True)
        self.linear = nn.Linear(SIZE, SIZE)
        self._read(Path(path) if path is not None else installed_weights())
        self.eval()

    def _read(self, path: Path) -> None:
        state = read_foreign_tensors(path)
        copy_tensors(self.state_dict(), {name: tensor for name, tensor in state.items() if not name.startswith("similarity")}, str(path))

    @torch.inference_mode()
    def encode(self, sounds: Sequence[Sound]) -> np.ndarray:
        """float32 [sounds, 256] of unit length: the mean over parts of 1.6 s. Raises DataError for an empty or silent sound."""
        found = []
        for at, sound in enumerate(sounds):
            wave_n = sound.at(RATE_HZ).wave_n
            power = float(np.mean(wave_n.astype(np.float64) ** 2)) if len(wave_n) else 0.0
            if not power or not np.isfinite(power):
                raise DataError(f"sound {at + 1} of {len(sounds)} is silent, empty or not finite; it has no voice.")
            wave_n = wave_n * (10 ** (LEVEL_DB / 20) / power**0.5)
            parts_ptm = self._parts(_loud(wave_n))
            vector = self(parts_ptm).mean(0)
            found.append((vector / vector.norm()).numpy())
        return np.stack(found) if found else np.zeros((0, SIZE), np.float32)

    def forward(self, mel_ptm: Tensor) -> Tensor:
        """[p, 256] of unit length."""
        _, (hidden_lps, _) = self.lstm(mel_ptm)
        raw_ps = torch.relu(self.linear(hidden_lps[-1]))
        return raw_ps / raw_ps.norm(dim=1, keepdim=True).clamp(min=1e-9)

    @staticmethod
    def _parts(wave_n: np.ndarray) -> Tensor:
        """Mel powers in overlapping parts; a rest of less than three quarters of a part is left out unless it is all there is."""
        frames = 1 + len(wave_n) // HOP
        starts = list(range(0, max(1, frames - PART_FRAMES + STEP_FRAMES + 1), STEP_FRAMES))
        if len(starts) > 1 and frames - starts[-1] < 0.75 * PART_FRAMES:
            starts.pop()
        wave_n = np.pad(wave_n, (0, max(0, (starts[-1] + PART_FRAMES) * HOP - len(wave_n))))
        mel = librosa().feature.melspectrogram
        mel_mt = mel(y=wave_n, sr=RATE_HZ, n_fft=WINDOW, hop_length=HOP, n_mels=BANDS)
        return torch.from_numpy(np.stack([mel_mt[:, at : at + PART_FRAMES].T for at in starts]).astype(np.float32))


def _loud(wave_n: np.ndarray) -> np.ndarray:
    """The sound without its long quiet stretches."""
    size = len(wave_n) // HOP
    if size < 2:
        return wave_n
    level = 10 * np.log10((wave_n[: size * HOP].reshape(size, HOP).astype(np.float64) ** 2).mean(1) + 1e-12)
    kept = np.convolve(level > level.max() - QUIET_DB, np.ones(2 * QUIET_FRAMES + 1), mode="full")[QUIET_FRAMES : QUIET_FRAMES + size] > 0
    return wave_n[: size * HOP].reshape(size, HOP)[kept].ravel()


def installed_weights() -> Path:
    """The weight file of the installed package. Raises MissingExtra with the command that installs it."""
    spec = importlib.util.find_spec("resemblyzer")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra(f"the package resemblyzer (speaker encoder, Apache-2.0) is not installed. Install it with: {INSTALL}")
    return Path(spec.submodule_search_locations[0]) / "pretrained.pt"


def speaker_similarity(encoder: SpeakerEncoder, sounds: Sequence[Sound], references: Sequence[Sound]) -> np.ndarray:
    """Cosine of each sound's voice with its reference's, [sounds]."""
    if len(sounds) != len(references):
        raise DataError(f"{len(sounds)} sounds have {len(references)} references; there must be one for each.")
    return (encoder.encode(sounds) * encoder.encode(references)).sum(1)
