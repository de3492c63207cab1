"""Spectra: framing, the inverse, gradients, mel bands; the classical method of making sound from mel frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmlm.sound import Sound
from mmlm.tokenizers.codec.griffin_lim import mel_griffin_lim
from mmlm.tokenizers.codec.spectra import frames, log_mel, magnitude, mel_filters, overlap_add, spectrum


def waves(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_overlap_add_is_the_inverse_of_the_spectrum_up_to_both_ends():
    for count in (1, 2, 9):
        wave_bn = waves(2, 4 * count)
        torch.testing.assert_close(overlap_add(spectrum(wave_bn, 16, 4), 16, 4), wave_bn)


def test_padding_that_is_masked_changes_nothing():
    wave_bn = waves(1, 40)
    found = spectrum(wave_bn, 16, 4)
    more = torch.cat([found, torch.ones(1, 5, found.shape[2], dtype=found.dtype)], dim=1)
    mask = torch.tensor([1.0] * 10 + [0.0] * 5, dtype=torch.float64)[None, :, None]
    torch.testing.assert_close(overlap_add(more, 16, 4, mask)[:, :40], wave_bn)


@pytest.mark.parametrize("causal", [False, True])
def test_magnitudes_and_their_gradient(causal):
    wave_bn = waves(2, 48).requires_grad_()
    plain = spectrum(wave_bn, 16, 4, causal=causal).abs()
    torch.testing.assert_close(magnitude(wave_bn, 16, 4, causal=causal), plain, atol=1e-5, rtol=1e-5)
    assert torch.autograd.gradcheck(lambda x: magnitude(x, 16, 4, causal=causal), (wave_bn,))


def test_a_causal_frame_ends_with_its_hop():
    wave_bn = waves(1, 40)
    assert torch.equal(frames(wave_bn, 16, 4, causal=True)[0, 5], wave_bn[0, 8:24])
    assert torch.equal(frames(wave_bn, 16, 4)[0, 5], wave_bn[0, 14:30])


def test_mel_bands_cover_the_frequencies_and_a_tone_is_loudest_in_its_band():
    filters_fc = mel_filters(16000, 640, 80)
    assert filters_fc.shape == (321, 80) and float(filters_fc.sum(0).min()) > 0
    assert float(filters_fc[1:310].sum(1).min()) > 0.3  # no frequency is left out but those at half the rate
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(16000) / 16000)[None]
    band = int(log_mel(tone, 16000, 640, 160, 80).mean(1).argmax())
    mel = 2595 * np.log10(1 + 1000 / 700)
    assert abs(band - (mel / (2595 * np.log10(1 + 8000 / 700)) * 81 - 1)) < 1


def test_sound_made_from_mel_frames_resembles_the_sound():
    time = np.arange(8000) / 16000
    sound = Sound((0.3 * np.sin(2 * np.pi * 440 * time) * (time > 0.1)).astype(np.float32), 16000)
    again = mel_griffin_lim(sound, 160)
    assert len(again.wave_n) == 8000
    power = np.abs(np.fft.rfft(again.wave_n)) ** 2
    assert abs(float(np.fft.rfftfreq(8000, 1 / 16000)[power.argmax()]) - 440) < 30
    assert float(np.square(again.wave_n[:1000]).mean()) < 0.1 * float(np.square(again.wave_n[3000:7000]).mean())
