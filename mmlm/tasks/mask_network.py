"""A mask for the short-time spectrum of a degraded sound: what is multiplied with it leaves the speech.

    log magnitudes, less their mean -> mean and spread over the sound added to each frame (its noise) -> ConvNeXt blocks (nearby frames)
    -> mask

A complex mask may turn phases and lies within a circle of radius 1; a magnitude mask lies from 0 to 1. Frames are 10 ms apart.
Sources: complex ratio mask, Williamson et al. 2016; bounded by a tanh, DCCRN, arXiv:2008.00264. The loss compares compressed spectra of
what comes out, Braun & Tashev 2020, arXiv:2009.12286. The network is a choice of ours.

Axes: b sounds   n samples   m frames   f frequencies   d channels
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmlm.objectives.base import Losses
from mmlm.tasks.config import MaskNetworkConfig
from mmlm.tokenizers.codec.blocks import Blocks
from mmlm.tokenizers.codec.spectra import FLOOR, overlap_add, spectrum

COMPRESSION = 0.3  # power of magnitudes under which soft sounds count beside loud ones
BEGIN = 2.0  # of a magnitude mask before its sigmoid, so that at first nearly all passes


class MaskNetwork(nn.Module):
    """Waveforms to the same waveforms without what does not belong there."""

    def __init__(self, config: MaskNetworkConfig) -> None:
        super().__init__()
        self.config, bins = config, config.window // 2 + 1
        self.embed = nn.Linear(bins, config.width)
        self.blocks = Blocks(config.num_blocks, config.width, causal=False)
        self.whole = nn.Linear(2 * bins, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, bins * (2 if config.mask == "complex" else 1))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.out.weight.device

    def forward(self, wave_bn: Tensor) -> Tensor:
        """[b, n] of any length."""
        window, hop, count = self.config.window, self.config.hop, wave_bn.shape[1]
        with torch.autocast(wave_bn.device.type, enabled=False):
            given_bmf = spectrum(F.pad(wave_bn.float(), (0, -count % hop)), window, hop)
            level_bmf = given_bmf.abs().add(FLOOR).log()
            mask_bmf = self._mask(level_bmf - level_bmf.mean((1, 2), keepdim=True))
            return overlap_add(given_bmf * mask_bmf, window, hop)[:, :count]

    def _mask(self, x_bmf: Tensor) -> Tensor:
        spread_b1f = (x_bmf.var(1, correction=0, keepdim=True) + FLOOR).sqrt()
        whole_b1d = self.whole(torch.cat([x_bmf.mean(1, keepdim=True), spread_b1f], dim=-1))
        out = self.out(self.norm(self.blocks(self.embed(x_bmf) + whole_b1d)))
        if self.config.mask == "magnitude":
            return torch.sigmoid(out + BEGIN)
        real_bmf, imaginary_bmf = out.chunk(2, dim=-1)
        real_bmf = real_bmf + 1
        size_bmf = (real_bmf.square() + imaginary_bmf.square() + 1e-8).sqrt()
        return torch.complex(real_bmf, imaginary_bmf) * (torch.tanh(size_bmf) / size_bmf)


def compressed_spectrum_losses(made_bn: Tensor, true_bn: Tensor, window: int, hop: int) -> Losses:
    """magnitude, complex: squared distance of compressed spectra, relative to the power of the true ones, so that soft sounds count as much
    as loud ones; summed over the sounds, and their number."""
    padding = (0, -true_bn.shape[1] % hop)
    made, true = (spectrum(F.pad(wave_bn.float(), padding), window, hop) for wave_bn in (made_bn, true_bn))
    made_size, true_size = (((each.real.square() + each.imag.square()) + FLOOR**2).sqrt() for each in (made, true))
    size_made, size_true = made_size**COMPRESSION, true_size**COMPRESSION
    power_b = size_true.square().mean((1, 2))
    weight = torch.tensor(float(len(true_bn)))
    turned = made * (size_made / made_size) - true * (size_true / true_size)
    found = {"magnitude": (size_made - size_true).square(), "complex": turned.real.square() + turned.imag.square()}
    return {name: ((each.mean((1, 2)) / power_b).sum(), weight) for name, each in found.items()}
