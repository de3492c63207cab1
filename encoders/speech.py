"""Sound as vectors, so many a second: what every speech encoder does alike, and the one that needs no weights.

A sound is read at 16,000 samples a second, and gives ceil(samples / hop) frames, where a hop is the samples of a frame. Its frames depend
on nothing but the sound: those that are read together are never filled up to a common length, and a long sound is read in windows that
overlap, wherever it stands in a batch.

Axes: b sounds   n samples   t frames   f channels   m mel bands   y frequencies
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmlm.base.errors import DataError, require
from mmlm.encoders.config import LogMelConfig
from mmlm.encoders.copies import Copies, dtype_of
from mmlm.sound import Sound

SAMPLE_RATE_HZ = 16_000

Progress = Callable[[int, int], None]
T = TypeVar("T")


@dataclass
class Encoded:
    """tokens_btf: frames, zeros after the end of a sound.   mask_bt: where there is a frame.   pooled_bf: mean over them."""

    tokens_btf: Tensor
    mask_bt: Tensor
    pooled_bf: Tensor
    rate_hz: Fraction


class SpeechEncoder(nn.Module):
    """Base of the speech encoders. size: channels of a frame.   hop: samples of a frame.   can_stream: whether `stream` serves."""

    size: int
    hop: int
    can_stream = False

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self._copies = Copies()

    @property
    def rate_hz(self) -> Fraction:
        """Frames a second."""
        return Fraction(SAMPLE_RATE_HZ, self.hop)

    def prepare(self, sound: Sound) -> Tensor:
        """Samples [n] at 16 kHz. Raises DataError for a sound without samples, or with one that is not a number."""
        if not len(sound.wave_n):
            raise DataError("this sound holds no samples.")
        wave_n = torch.from_numpy(np.ascontiguousarray(sound.at(SAMPLE_RATE_HZ).wave_n))
        if not bool(torch.isfinite(wave_n).all()):
            raise DataError("this sound holds samples that are not finite numbers.")
        return wave_n

    def read(self, waves: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """Frames [t, size] of each piece of sound [n], at least a sample long and short enough to be read whole."""
        raise NotImplementedError

    def forward(self, features: Sequence[Tensor]) -> Encoded:
        """Frames of what `prepare` gave for each of some sounds."""
        frames = list(self._frames(features, len(features), torch.float32))
        lengths_b = torch.tensor([len(each) for each in frames], device=frames[0].device)
        tokens_btf = pad_sequence(frames, batch_first=True)
        mask_bt = torch.arange(tokens_btf.shape[1], device=lengths_b.device) < lengths_b[:, None]
        return Encoded(tokens_btf, mask_bt, torch.stack([each.mean(0) for each in frames]), self.rate_hz)

    @torch.no_grad()
    def frames(
        self, items: Iterable[Sound], *, batch_size: int = 8, precision: str = "auto", progress: Progress | None = None
    ) -> Iterator[Tensor]:
        """Frames [t, size] float32 of each sound, t = ceil(samples at 16 kHz / hop), in their order.

        batch_size: pieces of sound that are read together; speed and memory only. precision: fp32, bf16, or auto: what the config says.
        progress(done, in all) is called after each sound; in all is 0 where items has no length.
        """
        dtype = dtype_of(precision, self.config.precision, next((each.device for each in self.parameters()), torch.device("cpu")))
        total = len(items) if isinstance(items, Sequence) else 0
        groups = _batched(items, batch_size)
        every = (found for group in groups for found in self._frames((self.prepare(sound) for sound in group), batch_size, dtype))
        for done, frames_tf in enumerate(every, 1):
            yield frames_tf
            if progress is not None:
                progress(done, total)

    @torch.no_grad()
    def encode(
        self,
        items: Sequence[Sound],
        *,
        batch_size: int = 8,
        normalize: bool = False,
        precision: str = "auto",
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Vectors float32 [sounds, size]: the mean over the frames of each, of length 1 if normalize."""
        pooled = [each.mean(0) for each in self.frames(items, batch_size=batch_size, precision=precision, progress=progress)]
        vectors_bf = torch.stack(pooled) if pooled else torch.zeros(0, self.size)
        return (F.normalize(vectors_bf, dim=-1) if normalize else vectors_bf).cpu().numpy()

    def _frames(self, waves: Iterable[Tensor], batch_size: int, dtype: torch.dtype) -> Iterator[Tensor]:
        pieces = [piece for number, wave_n in enumerate(waves) for piece in self._pieces(number, wave_n)]
        parts: list[Tensor] = []
        for group in _batched(pieces, batch_size):
            for piece, frames_tf in zip(group, self.read([piece.wave_n for piece in group], dtype), strict=True):
                parts.append(frames_tf[piece.keep].float())
                if piece.is_last:
                    yield torch.cat(parts) if len(parts) > 1 else parts[0]
                    parts = []

    def _pieces(self, number: int, wave_n: Tensor) -> Iterator[_Piece]:
        """The whole, or windows that begin where the kept part of the one before ended."""
        total = -(-len(wave_n) // self.hop)
        rate = float(self.rate_hz)
        most, margin = round(self.config.window_seconds * rate), round(self.config.overlap_seconds * rate)
        if total <= most:
            yield _Piece(wave_n, slice(0, total), True)
            return
        step = most - 2 * margin
        for start in range(0, total - margin, step):  # what is left where a window ends with the sound is kept of that one
            first, last = max(0, start - margin), min(total, start + step + margin)
            keep = slice(start - first, (total if last == total else start + step) - first)
            yield _Piece(wave_n[first * self.hop : last * self.hop], keep, last == total)

    def cast(self, part: nn.Module, dtype: torch.dtype) -> nn.Module:
        """A part of the encoder, or a copy with weights of another dtype, made once for the same weights."""
        if next(part.parameters()).dtype == dtype:
            return part
        return self._copies.of(part, dtype, lambda: copy.deepcopy(part).to(dtype))


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of at most `size` items, at least 1."""
    rest = iter(items)
    while group := list(islice(rest, max(1, size))):
        yield group


def with_context(x_tf: Tensor, context: int) -> Tensor:
    """Each frame joined with those around it, the earliest first: [t, (2 context + 1) f]. Beyond an end stands the frame at the end."""
    return windows(torch.cat([x_tf[:1].expand(context, -1), x_tf, x_tf[-1:].expand(context, -1)]), context)


def windows(x_tf: Tensor, context: int) -> Tensor:
    """The same for the frames that have all of their context: [t - 2 context, (2 context + 1) f]."""
    return x_tf.unfold(0, 2 * context + 1, 1).transpose(1, 2).flatten(1)


@dataclass(frozen=True)
class _Piece:
    """Some sound, which of its frames are kept, and whether the sound ends with it."""

    wave_n: Tensor
    keep: slice
    is_last: bool


class LogMel(SpeechEncoder):
    """Logarithms of mel band energies, each frame with some frames before and after it. Has no weights.

    Frame t lies around the middle of its hop. The frames beyond an end are copies of the one at the end.
    """

    fft_size, window_size = 512, 400
    can_stream = True

    def __init__(self, config: LogMelConfig, inputs: int | None = None) -> None:
        super().__init__(config)
        self.hop = SAMPLE_RATE_HZ // config.frames_per_second
        self.size = config.num_bands * (2 * config.context + 1)
        self.before = (self.window_size - self.hop) // 2
        functional = require("torchaudio.functional", "speech")
        bands_ym = functional.melscale_fbanks(self.fft_size // 2 + 1, 0.0, SAMPLE_RATE_HZ / 2, config.num_bands, SAMPLE_RATE_HZ)
        self.register_buffer("bands_ym", bands_ym, persistent=False)
        self.register_buffer("window_n", torch.hann_window(self.window_size), persistent=False)

    def read(self, waves: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """Always in float32: the logarithm wants it, and this is cheap."""
        return [self.with_context(self.energies(wave_n)) for wave_n in waves]

    def energies(self, wave_n: Tensor) -> Tensor:
        """Log energies [t, m] of whole hops and a last part of one."""
        num_frames = -(-len(wave_n) // self.hop)
        after = (num_frames - 1) * self.hop + self.window_size - self.before - len(wave_n)
        return self.framed(F.pad(wave_n, (self.before, max(0, after))), num_frames)

    def framed(self, wave_n: Tensor, num_frames: int) -> Tensor:
        """Log energies [t, m] of the windows at the first hops."""
        frames_tn = wave_n.unfold(0, self.window_size, self.hop)[:num_frames] * self.window_n
        power_ty = torch.fft.rfft(frames_tn, n=self.fft_size).abs().square()
        return torch.log(power_ty @ self.bands_ym + self.config.floor)

    def with_context(self, energies_tm: Tensor) -> Tensor:
        """Each frame [m] joined with those around it, [t, f], the earliest first."""
        return with_context(energies_tm, self.config.context)

    def stream(self) -> LogMelStream:
        """Frames of a sound that arrives in parts."""
        return LogMelStream(self)


class LogMelStream:
    """Frames as soon as their context has been heard; together they are those of the whole sound."""

    def __init__(self, encoder: LogMel) -> None:
        self.encoder = encoder
        self.wave_n = torch.zeros(encoder.before)
        self.energies_tm: Tensor | None = None
        self.heard = 0  # samples
        self.framed = 0  # frames whose energies are known

    def push(self, wave_n: np.ndarray) -> Tensor:
        """The frames [t, f] that these further samples, at 16 kHz, complete; maybe none."""
        self.heard += len(wave_n)
        self.wave_n = torch.cat([self.wave_n, torch.from_numpy(wave_n)])
        return self._given(self._new_energies((len(self.wave_n) - self.encoder.window_size) // self.encoder.hop + 1), is_last=False)

    def flush(self) -> Tensor:
        """The frames that are left when the sound has ended."""
        encoder = self.encoder
        count = -(-self.heard // encoder.hop) - self.framed
        self.wave_n = F.pad(self.wave_n, (0, max(0, (count - 1) * encoder.hop + encoder.window_size - len(self.wave_n))))
        return self._given(self._new_energies(count), is_last=True)

    def _new_energies(self, count: int) -> Tensor:
        encoder = self.encoder
        if count <= 0:
            return torch.zeros(0, encoder.config.num_bands)
        found_tm = encoder.framed(self.wave_n, count)
        self.wave_n = self.wave_n[count * encoder.hop :]
        self.framed += count
        return found_tm

    def _given(self, new_tm: Tensor, *, is_last: bool) -> Tensor:
        """Frames whose context is there. What is kept is the context of those that follow."""
        context = self.encoder.config.context
        if self.energies_tm is None and len(new_tm):
            self.energies_tm = new_tm[:1].expand(context, -1)
        if self.energies_tm is None:
            return torch.zeros(0, self.encoder.size)
        known_tm = torch.cat([self.energies_tm, new_tm])
        if is_last:
            known_tm = torch.cat([known_tm, known_tm[-1:].expand(context, -1)])
        count = max(0, len(known_tm) - 2 * context)
        self.energies_tm = known_tm[count:]
        return windows(known_tm, context) if count else torch.zeros(0, self.encoder.size)
