"""A recognizer of strings of digits, learned from the recordings that they are joined of: the ready-made ones
err in four words of ten of such strings.

Axes: b strings   t frames   f mel bands
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.sound import Sound
from mmlm.tokenizers.codec.spectra import log_mel
from mmlm.tokenizers.spoken_numbers import ONES

RATE_HZ, HOP, BANDS = 16_000, 320, 40
BLANK, NOTHING = 10, -1  # between digits; behind the end


class DigitRecognizer(nn.Module):
    """Convolutions and a recurrence in both directions, read frame by frame."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.local = nn.Sequential(nn.Conv1d(BANDS, width, 5, padding=2), nn.GELU(), nn.Conv1d(width, width, 5, padding=2), nn.GELU())
        self.context = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * width, BLANK + 1)

    def forward(self, mel_btf: Tensor) -> Tensor:
        """Logits [b, t, 11] of ten digits and the blank."""
        return self.out(self.context(self.local(mel_btf.transpose(1, 2)).transpose(1, 2))[0])

    def learn(self, clips: dict[int, Sequence[Sound]], steps: int = 500, seed: int = 0) -> DigitRecognizer:
        """From strings of one to ten clips, each with a loudness of its own and a little noise. A digit is told in the middle of its clip,
        between digits the blank."""
        rng, optimizer = np.random.default_rng(seed), torch.optim.AdamW(self.parameters(), lr=3e-3)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * min(1.0, step / 20) * (1 - step / steps)
            waves, labels = zip(*(_string(clips, rng) for _ in range(12)), strict=True)
            logits_btv = self._logits(waves)
            wanted_bt = torch.full(logits_btv.shape[:2], NOTHING)
            for row, label in enumerate(labels):
                wanted_bt[row, : len(label)] = torch.from_numpy(label[: wanted_bt.shape[1]])
            loss = F.cross_entropy(logits_btv.flatten(0, 1), wanted_bt.flatten(), ignore_index=NOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return self.eval()

    @torch.no_grad()
    def transcribe(self, sounds: Sequence[Sound]) -> list[str]:
        """The digits in each sound, as words."""
        said = []
        for sound in sounds:
            best = torch.unique_consecutive(self._logits([sound.at(RATE_HZ).wave_n])[0].argmax(-1))
            said.append(" ".join(ONES[digit] for digit in best.tolist() if digit != BLANK))
        return said

    def _logits(self, waves: Sequence[np.ndarray]) -> Tensor:
        longest = max(len(wave) for wave in waves)
        wave_bn = torch.from_numpy(np.stack([np.pad(wave, (0, longest - len(wave))) for wave in waves]))
        return self(log_mel(wave_bn, RATE_HZ, 4 * HOP, HOP, BANDS) / 3 + 1)


def _string(clips: dict[int, Sequence[Sound]], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The samples of a string of clips, and the label of each frame."""
    parts, labels = [], []
    for digit in rng.integers(0, 10, rng.integers(1, 11)).tolist():
        wave_n = clips[digit][rng.integers(len(clips[digit]))].wave_n
        label = np.full(len(wave_n), BLANK)
        label[int(0.3 * len(label)) : int(0.7 * len(label))] = digit
        parts.append(wave_n)
        labels.append(label)
    wave_n = np.concatenate(parts) * rng.uniform(0.3, 1.5)
    noise_n = rng.normal(0, 10 ** rng.uniform(-5, -2), len(wave_n))
    return (wave_n + noise_n).astype(np.float32), np.concatenate(labels)[HOP // 2 :: HOP]
