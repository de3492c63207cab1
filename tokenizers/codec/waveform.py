"""An encoder and a decoder of convolutions on samples, as SimCodec and HiFi-GAN have them.

Source: GenSE's SimCodec, arXiv:2502.02942, section 3.2; residual blocks of HiFi-GAN, arXiv:2010.05646, section 2.2. Norms are over the
channels. Padding is masked before every convolution, so that a shorter sound in a batch is coded as it is alone.

Axes: b sounds   n samples   t tokens   c channels
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.tokenizers.config import SingleCodecConfig

DILATIONS, TAPS, ENDS, SLOPE = (1, 3, 5), 3, 7, 0.1


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of [b, c, n]."""

    def forward(self, x_bcn: Tensor) -> Tensor:
        """[b, c, n]."""
        return super().forward(x_bcn.transpose(1, 2)).transpose(1, 2)


class Residual(nn.Module):
    """Dilated convolutions, each added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(ChannelNorm(channels) for _ in DILATIONS)
        self.wide = nn.ModuleList(nn.Conv1d(channels, channels, TAPS, dilation=step, padding=step) for step in DILATIONS)
        self.narrow = nn.ModuleList(nn.Conv1d(channels, channels, TAPS, padding=1) for _ in DILATIONS)

    reach = sum(step * (TAPS // 2) + TAPS // 2 for step in DILATIONS)

    def forward(self, x_bcn: Tensor, mask_b1n: Tensor | None) -> Tensor:
        """[b, c, n]."""
        for norm, wide, narrow in zip(self.norms, self.wide, self.narrow):
            inner = wide(masked(F.leaky_relu(norm(x_bcn), SLOPE), mask_b1n))
            x_bcn = x_bcn + narrow(masked(F.leaky_relu(inner, SLOPE), mask_b1n))
        return x_bcn


class WaveformEncoder(nn.Module):
    """Waveform to vectors: strided convolutions, each after a residual block."""

    def __init__(self, config: SingleCodecConfig) -> None:
        super().__init__()
        self.strides = config.strides
        sizes = [config.channels << number for number in range(len(config.strides) + 1)]
        self.inner = nn.Conv1d(1, sizes[0], ENDS, padding=ENDS // 2)
        self.blocks = nn.ModuleList(Residual(size) for size in sizes[:-1])
        self.down = nn.ModuleList(
            nn.Conv1d(size, wider, 2 * step, stride=step) for size, wider, step in zip(sizes, sizes[1:], config.strides)
        )
        self.outer = nn.Conv1d(sizes[-1], config.latent_size, TAPS, padding=1)

    @property
    def reach(self) -> tuple[int, int]:
        """Tokens before and after a token that are seen at it."""
        return tokens_seen(self.strides)

    def forward(self, wave_bn: Tensor, mask_bt1: Tensor | None = None) -> Tensor:
        """[b, t, latent_size] of waveforms of t hops."""
        mask, step = sample_mask(mask_bt1, self.strides), 1
        x = self.inner(masked(wave_bn[:, None], mask))
        for block, down, stride in zip(self.blocks, self.down, self.strides):
            x = masked(F.leaky_relu(block(x, mask), SLOPE), mask)
            x = down(F.pad(x, (stride // 2, stride - stride // 2)))
            step *= stride
            mask = None if mask is None else mask[..., ::stride]
        return self.outer(masked(F.leaky_relu(x, SLOPE), mask)).transpose(1, 2)


class WaveformDecoder(nn.Module):
    """Vectors to a waveform: transposed convolutions, each before a residual block, and a hyperbolic tangent."""

    def __init__(self, config: SingleCodecConfig) -> None:
        super().__init__()
        self.strides = config.strides
        sizes = [config.channels << number for number in range(len(config.strides) + 1)][::-1]
        self.inner = nn.Conv1d(config.latent_size, sizes[0], ENDS, padding=ENDS // 2)
        self.up = nn.ModuleList(
            nn.ConvTranspose1d(size, narrower, 2 * step, stride=step)
            for size, narrower, step in zip(sizes, sizes[1:], config.strides[::-1])
        )
        self.blocks = nn.ModuleList(Residual(size) for size in sizes[1:])
        self.outer = nn.Conv1d(sizes[-1], 1, ENDS, padding=ENDS // 2)

    @property
    def reach(self) -> tuple[int, int]:
        """Tokens before and after a token that its samples depend on."""
        return tokens_seen(self.strides)

    @property
    def ahead_samples(self) -> int:
        """Samples at the end of what is decoded that later tokens still change."""
        return self.reach[1] * int(torch.tensor(self.strides).prod())

    def forward(self, z_btd: Tensor, mask_bt1: Tensor | None = None) -> Tensor:
        """The waveform [b, n] of vectors: t hops."""
        mask = None if mask_bt1 is None else mask_bt1.transpose(1, 2)
        x = self.inner(masked(z_btd.transpose(1, 2), mask))
        for block, up, stride in zip(self.blocks, self.up, self.strides[::-1]):
            size = x.shape[-1] * stride
            x = up(masked(F.leaky_relu(x, SLOPE), mask))[..., stride // 2 : stride // 2 + size]
            mask = None if mask is None else mask.repeat_interleave(stride, dim=-1)
            x = block(x, mask)
        return torch.tanh(self.outer(masked(F.leaky_relu(x, SLOPE), mask)))[:, 0].float()


def masked(x_bcn: Tensor, mask_b1n: Tensor | None) -> Tensor:
    """Zeros at padding."""
    return x_bcn if mask_b1n is None else x_bcn * mask_b1n


def sample_mask(mask_bt1: Tensor | None, strides: Sequence[int]) -> Tensor | None:
    """The mask [b, 1, n] of samples from that of tokens."""
    hop = int(torch.tensor(strides).prod())
    return None if mask_bt1 is None else mask_bt1.transpose(1, 2).repeat_interleave(hop, dim=-1)


def tokens_seen(strides: Sequence[int]) -> tuple[int, int]:
    """An upper bound of the tokens before and after a token that the convolutions of either side see."""
    hop, step, samples = int(torch.tensor(strides).prod()), 1, ENDS // 2
    for stride in strides:
        samples += step * Residual.reach + 2 * step * stride
        step *= stride
    samples += step * (ENDS // 2)
    tokens = -(-samples // hop)
    return tokens, tokens
