"""A small codec that computes at the rate of its frames, with an inverse Fourier transform at its end.

Two log-mel frames make a token. The decoder writes magnitude and phase of a short-time spectrum, twice as many frames as tokens; the
waveform is their overlap-add. Nothing is computed at the rate of the samples, which is why it is quick to train.

Source: residual quantizer of SoundStream, arXiv:2107.03312; ConvNeXt blocks and spectral head of Vocos, arXiv:2306.00814. The sizes and
the mel front end are choices of this project.
Axes: b sounds   n samples   t tokens   m spectral frames, two a token   d channels
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmlm.parameters import linear
from mmlm.tokenizers.codec.base import Codec, CodecModel
from mmlm.tokenizers.codec.blocks import Blocks
from mmlm.tokenizers.codec.spectra import log_mel, overlap_add
from mmlm.tokenizers.config import SmallCodecConfig, SpectralConfig

LOUDEST = 6.0  # largest logarithm of a magnitude that is written
MEL_MEAN, MEL_SCALE = -4.0, 0.5  # bring log-mel values of speech to the size that a layer expects
OUTPUT_SCALE = 0.02  # standard deviation of the weights of the last layer


class SpectralEncoder(nn.Module):
    """Waveform to vectors, through log-mel frames."""

    def __init__(self, config: SpectralConfig) -> None:
        super().__init__()
        self.config = config
        self.inner = linear(2 * config.mel_bands, config.width, "sound", "channels", bias=True)
        self.blocks = Blocks(config.encoder_blocks, config.width, causal=config.causal)
        self.norm = nn.LayerNorm(config.width)
        self.outer = nn.Linear(config.width, config.latent_size)

    @property
    def reach(self) -> tuple[int, int]:
        """Tokens before and after a token that are seen at it."""
        past, ahead = self.blocks.reach
        rest = self.config.window - self.config.hop // 2
        before = rest if self.config.causal else rest // 2
        return past + math.ceil(before / self.config.hop), ahead + math.ceil((rest - before) / self.config.hop)

    def forward(self, wave_bn: Tensor, mask_bt1: Tensor | None = None) -> Tensor:
        """[b, t, latent_size] of waveforms of t hops."""
        config = self.config
        with torch.autocast(wave_bn.device.type, enabled=False):
            mel = log_mel(wave_bn, config.sample_rate_hz, config.window, config.hop // 2, config.mel_bands, causal=config.causal)
        pairs = ((mel - MEL_MEAN) * MEL_SCALE).unflatten(1, (-1, 2)).flatten(2)
        return self.outer(self.norm(self.blocks(self.inner(pairs), mask_bt1)))


class SpectralDecoder(nn.Module):
    """Vectors to a waveform, through magnitude and phase of its spectrum."""

    def __init__(self, config: SpectralConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.inner = nn.Linear(config.latent_size, width)
        self.blocks = Blocks(config.decoder_blocks, width, causal=config.causal)
        self.split = nn.Linear(width, 2 * width)
        self.fine = Blocks(config.fine_blocks, width, causal=config.causal)
        self.norm = nn.LayerNorm(width)
        self.outer = linear(width, config.window + 2, "channels", "sound", bias=True)
        nn.init.normal_(self.outer.weight, std=OUTPUT_SCALE)

    @property
    def reach(self) -> tuple[int, int]:
        """Tokens before and after a token that its samples depend on."""
        past, ahead = self.blocks.reach
        fine_past, fine_ahead = self.fine.reach
        step = self.config.hop // 2
        around = math.ceil((self.config.window - step) / step)  # frames that overlap a frame's window
        return past + math.ceil((fine_past + around) / 2), ahead + math.ceil((fine_ahead + around) / 2)

    @property
    def ahead_samples(self) -> int:
        """Samples at the end of what is decoded that later tokens still change."""
        fine = 2 * self.blocks.reach[1] + self.fine.reach[1]
        step = self.config.hop // 2
        return fine * step + (self.config.window - step) // 2

    def forward(self, z_btd: Tensor, mask_bt1: Tensor | None = None) -> Tensor:
        """The waveform [b, n] of vectors: t hops."""
        window = self.config.window
        x = self.split(self.blocks(self.inner(z_btd), mask_bt1)).unflatten(-1, (2, -1)).flatten(1, 2)
        fine_mask = None if mask_bt1 is None else mask_bt1.repeat_interleave(2, dim=1)
        y = self.outer(self.norm(self.fine(x, fine_mask))).float()
        with torch.autocast(y.device.type, enabled=False):
            magnitude, phase = y.chunk(2, -1)
            turned = 1 - 2 * (torch.arange(magnitude.shape[-1], device=y.device) % 2)  # phase 0 is a pulse in the middle of the window
            magnitude = magnitude.clamp_max(LOUDEST).exp() * turned
            spectrum = torch.complex(magnitude * phase.cos(), magnitude * phase.sin())
            return overlap_add(spectrum, window, self.config.hop // 2, fine_mask)


class SmallCodec(Codec):
    """The codec with residual books, or another quantizer."""

    config: SmallCodecConfig

    def build(self) -> CodecModel:
        """Encoder, quantizer and decoder."""
        config = self.config
        return CodecModel(SpectralEncoder(config), config.books.build(config.latent_size), SpectralDecoder(config))

    def _sizes(self) -> list[int]:
        return list(self._known().books.sizes)
