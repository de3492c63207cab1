"""Losses between a waveform that was written and the one it should be, each as a sum over sounds and their number.

    stft        log-magnitude and spectral convergence at several resolutions    Parallel WaveGAN, arXiv:1910.11480, equations 5 to 7
    mel         distance of log-mel frames
    complex     distance of complex spectra, relative to the true ones: the only one that knows of phase
    adversary   hinge losses and feature matching with discriminators            HiFi-GAN, arXiv:2010.05646; EnCodec, arXiv:2210.13438

Axes: b sounds   n samples   m frames   f frequencies
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.base.errors import require
from mmlm.objectives.base import Losses
from mmlm.tokenizers.codec.spectra import FLOOR, magnitude, mel_filters

WINDOWS = (256, 512, 1024, 2048)
MEL_BANDS = 80
AUDIBLE = 0.02  # added to magnitudes before their logarithm is taken: speech is 1 to 100, so what is weaker by far hardly counts


class Reconstruction(nn.Module):
    """The losses stft, mel and complex of pairs of waveforms.

    windows: of the resolutions, each with a quarter of it for its hop. The mel frames are those of the third, the complex spectra those
    of the second.
    """

    names = ("stft", "mel", "complex")

    def __init__(self, rate_hz: int, windows: Sequence[int] = WINDOWS) -> None:
        super().__init__()
        self.rate_hz, self.windows = rate_hz, tuple(windows)
        self.mel_window, self.complex_window = self.windows[min(2, len(windows) - 1)], self.windows[min(1, len(windows) - 1)]

    def forward(self, decoded_bn: Tensor, true_bn: Tensor) -> Losses:
        """Sums over the sounds, each the mean over its frames and frequencies, and the number of sounds."""
        with torch.autocast(decoded_bn.device.type, enabled=False):
            decoded_bn, true_bn = decoded_bn.float(), true_bn.float()
            weight = torch.tensor(float(len(true_bn)))
            zero = decoded_bn.new_zeros(())
            sums = {"stft": zero, "mel": zero, "complex": zero}
            for window in self.windows:
                mine, theirs = magnitudes(decoded_bn, window), magnitudes(true_bn, window)
                log = (_loudness(mine) - _loudness(theirs)).abs().mean((1, 2))
                convergence = _norm(mine - theirs) / _norm(theirs)
                sums["stft"] = sums["stft"] + (log + convergence).sum() / len(self.windows)
                if window == self.mel_window:
                    sums["mel"] = _mel_distance(mine, theirs, self.rate_hz, window)
                if window == self.complex_window:
                    distance = magnitudes(decoded_bn - true_bn, window).sum((1, 2)) / theirs.sum((1, 2))
                    sums["complex"] = distance.sum()
        return {name: (total, weight) for name, total in sums.items()}


def magnitudes(wave_bn: Tensor, window: int) -> Tensor:
    """Magnitudes [b, m, f], at least 1e-5, under a Hann window, a quarter of it apart; zeros lie around the waveform."""
    hop = window // 4
    return magnitude(F.pad(wave_bn, (0, -wave_bn.shape[1] % hop)), window, hop)


def mel_distance(decoded_bn: Tensor, true_bn: Tensor, rate_hz: int, window: int = 1024) -> Tensor:
    """Mean absolute difference of natural log-mel magnitudes, summed over the sounds."""
    return _mel_distance(magnitudes(decoded_bn, window), magnitudes(true_bn, window), rate_hz, window)


def si_sdr(found_n: Tensor, wanted_n: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB over the last axis; not finite where one is silent or both are alike.

    Source: SDR half-baked or well done, arXiv:1811.02508.
    """
    found_n, wanted_n = found_n - found_n.mean(-1, keepdim=True), wanted_n - wanted_n.mean(-1, keepdim=True)
    share = (found_n * wanted_n).sum(-1, keepdim=True) / wanted_n.square().sum(-1, keepdim=True)
    part_n = share * wanted_n
    return 10 * (part_n.square().sum(-1) / (found_n - part_n).square().sum(-1)).log10()


def _mel_distance(decoded_bmf: Tensor, true_bmf: Tensor, rate_hz: int, window: int) -> Tensor:
    filters = mel_filters(rate_hz, window, MEL_BANDS).to(decoded_bmf)
    return (_loudness(decoded_bmf @ filters) - _loudness(true_bmf @ filters)).abs().mean((1, 2)).sum()


def _loudness(x_bmf: Tensor) -> Tensor:
    return (x_bmf + AUDIBLE).log()


def _norm(x_bmf: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x_bmf, dim=(1, 2))


class Adversary(nn.Module):
    """Discriminators of spectra at several scales, and the losses of both sides in one pass.

    The discriminators of what is written are learned on a copy of it without gradients; what is written is pushed through discriminators
    whose weights are held. So both sides learn from one backward pass, by the gradients of simultaneous steps.

    Raises MissingExtra without the package encodec.
    """

    names = ("discriminator", "generator", "features")

    def __init__(self, filters: int = 32) -> None:
        super().__init__()
        module = require("encodec.msstftd", "speech")
        self.discriminators = module.MultiScaleSTFTDiscriminator(filters=filters)

    def forward(self, decoded_bn: Tensor, true_bn: Tensor) -> Losses:
        """discriminator: hinge loss of telling true from written.   generator: hinge loss of passing for true.   features: mean relative
        distance of the discriminators' inner features. Sums over the sounds, and their number."""
        count = float(len(true_bn))
        weight = torch.tensor(count)
        with torch.autocast(decoded_bn.device.type, enabled=False):
            decoded, true = decoded_bn.float()[:, None], true_bn.float()[:, None]
            real, real_features = self.discriminators(true)
            faked, _ = self.discriminators(decoded.detach())
            held = {name: parameter.detach() for name, parameter in self.discriminators.named_parameters()}
            passed, features = torch.func.functional_call(self.discriminators, held, (decoded,))
            told = torch.stack([F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in zip(real, faked)]).mean()
            fooled = torch.stack([F.relu(1 - score).mean() for score in passed]).mean()
            near = torch.stack(
                [
                    (mine - theirs.detach()).abs().mean() / theirs.detach().abs().mean().clamp_min(FLOOR)
                    for some, others in zip(features, real_features)
                    for mine, theirs in zip(some, others)
                ]
            ).mean()
        return {name: (value * count, weight) for name, value in zip(self.names, (told, fooled, near), strict=True)}
