"""Losses between waveforms: what is equal costs nothing, the sums are over sounds, the adversary moves both sides."""

from __future__ import annotations

import pytest
import torch

from mmlm.objectives.audio import Adversary, Reconstruction, mel_distance


def sounds(count=3, size=4000, seed=0):
    g = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(count, size, generator=g)


def means(losses):
    return {name: float(total / weight) for name, (total, weight) in losses.items()}


def test_a_waveform_costs_nothing_beside_itself_and_more_the_louder_the_noise():
    true = sounds()
    loss = Reconstruction(16000, [256, 512, 1024])
    assert all(value == pytest.approx(0, abs=1e-3) for value in means(loss(true, true)).values())
    costs = [means(loss(true + share * sounds(seed=1), true)) for share in (0.1, 0.5, 2.0)]
    for name in Reconstruction.names:
        assert 0 < costs[0][name] < costs[1][name] < costs[2][name]


def test_the_complex_loss_alone_knows_of_phase():
    true = sounds()
    loss = Reconstruction(16000, [256, 512, 1024])
    opposite = means(loss(-true, true))
    assert opposite["complex"] == pytest.approx(2, rel=1e-3)
    assert opposite["stft"] == pytest.approx(0, abs=1e-6) and opposite["mel"] == pytest.approx(0, abs=1e-6)
    assert means(loss(0 * true, true))["complex"] == pytest.approx(1, rel=1e-2)


def test_losses_of_a_batch_are_the_sums_of_those_of_its_sounds():
    true, decoded = sounds(), sounds(seed=1)
    loss = Reconstruction(16000)
    whole = loss(decoded, true)
    parts = [loss(decoded[at : at + 1], true[at : at + 1]) for at in range(3)]
    for name, (total, weight) in whole.items():
        assert float(weight) == 3
        torch.testing.assert_close(total, sum(part[name][0] for part in parts))
    assert float(mel_distance(decoded, true, 16000)) == pytest.approx(float(whole["mel"][0]), rel=1e-5)


def test_silence_on_both_sides_has_a_finite_loss_and_gradient():
    decoded = torch.zeros(2, 3000, requires_grad=True)
    losses = Reconstruction(16000)(decoded, torch.zeros(2, 3000))
    sum(total for total, _ in losses.values()).backward()
    assert torch.isfinite(decoded.grad).all()


def test_what_cannot_be_heard_hardly_counts():
    loss = Reconstruction(16000)
    whisper, hiss = (means(loss(size * sounds(), 0 * sounds())) for size in (1e-2, 1e-4))  # of 0.1: 60 and 100 dB below full scale
    assert whisper["mel"] > 0.3 and hiss["mel"] < 0.05


def test_each_side_of_the_adversary_is_moved_by_its_own_losses():
    pytest.importorskip("encodec")
    torch.manual_seed(0)
    adversary = Adversary(filters=4)
    decoded, true = sounds(2, 4096).requires_grad_(), sounds(2, 4096, seed=1)
    losses = adversary(decoded, true)
    weights = list(adversary.parameters())
    told = torch.autograd.grad(losses["discriminator"][0], [decoded, *weights], allow_unused=True, retain_graph=True)
    assert told[0] is None and all(grad is not None for grad in told[1:])
    for name in ("generator", "features"):
        fooled = torch.autograd.grad(losses[name][0], [decoded, *weights], allow_unused=True, retain_graph=True)
        assert float(fooled[0].abs().max()) > 0 and all(grad is None for grad in fooled[1:]), name
    assert all(float(weight) == 2 for _, weight in losses.values())
