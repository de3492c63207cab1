"""Pieces of sound of one length, to train networks on that read waveforms.

Axes: b sounds   n samples
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmlm.data.audio_augment import Degrade
from mmlm.data.base import Drawn, Draws
from mmlm.sound import Sound

LOUDEST = 0.99


@dataclass
class Waves:
    """A batch of sounds: wave [b, n], full scale is 1. hop: samples that count as a token in the log."""

    wave_bn: Tensor
    hop: int

    @property
    def num_tokens(self) -> int:
        """Tokens that these sounds give."""
        return self.wave_bn.numel() // self.hop

    def to(self, device: torch.device | str) -> Waves:
        """The same on another device."""
        return Waves(self.wave_bn.to(device), self.hop)


class Crops(Drawn):
    """Pieces of `size` samples at a rate: the part of an utterance that was drawn, and where that is shorter, of those drawn after it.

    gain_db: each piece is made louder or softer by up to so much, but never beyond full scale.
    """

    def __init__(self, records: Draws, *, rate_hz: int, size: int, hop: int, gain_db: float = 0.0) -> None:
        self.records, self.rate_hz, self.size, self.hop, self.gain_db = records, rate_hz, size, hop, gain_db
        self.fingerprint = records.fingerprint

    def draw(self, rng: np.random.Generator) -> tuple[Any, np.ndarray]:
        """The first utterance of a piece, and the piece, float32 [size]."""
        first = self.records.draw(rng)
        parts, missing, record = [], self.size, first
        while missing > 0:
            parts.append(record.sound(self.rate_hz).wave_n[:missing])
            missing -= len(parts[-1])
            record = self.records.draw(rng) if missing > 0 else None
        wave_n = np.concatenate(parts)
        gain = 10 ** (rng.uniform(-self.gain_db, self.gain_db) / 20)
        most = LOUDEST / max(float(np.abs(wave_n).max()), 1e-9)
        return first, (wave_n * min(gain, max(most, 1.0))).astype(np.float32)

    def collate(self, items: list[np.ndarray]) -> Waves:
        """Pieces as one batch."""
        return Waves(torch.from_numpy(np.stack(items)), self.hop)


@dataclass
class WavePairs:
    """A batch of sounds [b, n], degraded and clean. hop: samples that count as a token in the log."""

    given_bn: Tensor
    true_bn: Tensor
    hop: int

    @property
    def num_tokens(self) -> int:
        """Frames of these sounds."""
        return self.true_bn.numel() // self.hop

    def to(self, device: torch.device | str) -> WavePairs:
        """The same on another device."""
        return WavePairs(self.given_bn.to(device), self.true_bn.to(device), self.hop)


class Pairs(Drawn):
    """Pieces of speech and what a chain of degradations makes of them."""

    def __init__(self, records: Draws, degrade: Degrade, *, rate_hz: int, size: int, hop: int) -> None:
        self.crops, self.degrade, self.hop = Crops(records, rate_hz=rate_hz, size=size, hop=hop), degrade, hop
        self.fingerprint = records.fingerprint

    def draw(self, rng: np.random.Generator) -> tuple[Any, tuple[np.ndarray, np.ndarray]]:
        """The first utterance of a piece, and the pair (degraded, clean), float32 [size]."""
        record, true_n = self.crops.draw(rng)
        given, _ = self.degrade(Sound(true_n, self.crops.rate_hz), rng)
        return record, (given.wave_n, true_n)

    def collate(self, items: list[tuple[np.ndarray, np.ndarray]]) -> WavePairs:
        """Pairs as one batch."""
        given, true = (torch.from_numpy(np.stack(column)) for column in zip(*items, strict=True))
        return WavePairs(given, true, self.hop)
