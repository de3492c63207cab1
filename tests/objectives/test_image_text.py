"""Losses of pictures and texts: against open_clip, exact plans, capacities, order, hidden words, and all processes together."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmlm.encoders.fusion import Fusion
from mmlm.objectives.config import SoftClipConfig, TokenMatchingConfig
from mmlm.objectives.contrastive import divergence, soft_clip, soft_targets
from mmlm.objectives.token_matching import TokenMatching
from mmlm.objectives.transport import plan

PLAIN = SoftClipConfig()
SOFT = SoftClipConfig(alpha=0.2)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float(), dim=-1)


def test_without_softening_it_is_the_loss_of_open_clip():
    package = pytest.importorskip("open_clip")
    pictures, texts, scale = unit(12, 16), unit(12, 16, seed=1), torch.tensor(14.0)
    mine = soft_clip(3 * pictures, 0.5 * texts, pictures, texts, scale, 0, 0.0, PLAIN) / 12
    assert abs(float(mine - package.ClipLoss()(pictures, texts, scale))) < 1e-6


def test_targets_keep_their_own_share_and_spread_the_rest_over_the_others():
    cosines = unit(6, 8) @ unit(9, 8, seed=1).T
    for spread in ("similarity", "uniform"):
        targets = soft_targets(cosines, 2, 0.2, SoftClipConfig(alpha=0.2, spread=spread))
        own = targets[torch.arange(6), torch.arange(6) + 2]
        torch.testing.assert_close(own, torch.full((6,), 0.8))
        torch.testing.assert_close(targets.sum(1), torch.ones(6))
        others = targets.masked_fill(F.one_hot(torch.arange(6) + 2, 9).bool(), 0)
        best = cosines.masked_fill(F.one_hot(torch.arange(6) + 2, 9).bool(), -9).argmax(1)
        assert torch.equal(others.argmax(1), best) if spread == "similarity" else others[others > 0].unique().numel() == 1


def test_identical_captions_cost_less_with_soft_targets():
    """A pair that cannot be told apart: the soft target asks for less of what cannot be had."""
    pictures, texts = unit(6, 16), unit(6, 16, seed=1)
    texts[1], pictures[1] = texts[0], pictures[0]
    cosines = pictures @ texts.T
    scores = 20 * cosines
    hard, soft = (divergence(scores, soft_targets(cosines, 0, alpha, SOFT))[:2].mean() for alpha in (0.0, 0.2))
    assert soft < hard
    far = 20 * unit(6, 16, seed=2) @ unit(6, 16, seed=3).T
    targets = soft_targets(far / 20, 0, 0.2, SOFT)
    assert (divergence(targets.log(), targets).abs() < 1e-5).all()  # nothing is left where the targets are met


def planted(words: int, patches: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines [1, m, n] with one patch for each word, and which."""
    g = torch.Generator().manual_seed(seed)
    where = torch.randperm(patches, generator=g)[:words]
    cosines = 0.2 * torch.randn(1, words, patches, generator=g)
    cosines[0, torch.arange(words), where] = 0.9
    return cosines, where


def test_the_relaxed_plan_finds_planted_matches_as_the_exact_assignment_does():
    relaxed, exact = TokenMatchingConfig(), TokenMatchingConfig(plan="hungarian")
    same = total = 0
    for seed in range(60):
        cosines, where = planted(8, 20, seed)
        is_word = torch.ones(1, 8, dtype=torch.bool)
        mine, true = plan(cosines, is_word, relaxed)[0].argmax(1), plan(cosines, is_word, exact)[0].argmax(1)
        same += int((mine == true).sum())
        total += 8
        assert torch.equal(true, where)
    assert same / total >= 0.99


def test_words_give_their_mass_patches_take_no_more_than_they_can_and_padding_has_none():
    config = TokenMatchingConfig(iterations=20, inner=20)
    cosines = torch.rand(3, 7, 12, generator=torch.Generator().manual_seed(0))
    is_word = torch.ones(3, 7, dtype=torch.bool)
    is_word[1, 4:] = is_word[2, 1:] = False
    found = plan(cosines, is_word, config)
    assert (found.sum(1) <= config.capacity / 12 + 1e-6).all() and not found[1, 4:].any() and not found[2, 1:].any()
    torch.testing.assert_close(found.sum(2), is_word / is_word.sum(1, keepdim=True), atol=5e-3, rtol=0)
    few = plan(cosines, is_word, TokenMatchingConfig(iterations=200, inner=2))  # which begins each step with the scales of the last one
    torch.testing.assert_close(few.sum(2), is_word / is_word.sum(1, keepdim=True), atol=5e-3, rtol=0)
    one_sided = plan(cosines, is_word, TokenMatchingConfig(plan="max"))
    assert (one_sided.sum(1) > config.capacity / 12 + 0.05).any()  # which no capacity holds back
    mixed = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    again = plan(cosines[:1, mixed], is_word[:1, mixed], config)
    torch.testing.assert_close(again, found[:1, mixed], atol=1e-6, rtol=1e-4)


def test_the_plan_is_dearer_for_what_is_full():
    """All words want one patch, which takes what it can; the rest goes to the next best."""
    cosines = torch.full((1, 4, 8), 0.0)
    cosines[..., 0], cosines[..., 1] = 0.9, 0.5
    found = plan(cosines, torch.ones(1, 4, dtype=torch.bool), TokenMatchingConfig(iterations=100))[0].sum(0)
    assert float(found[0]) == pytest.approx(0.25, abs=1e-3) and float(found[1]) == pytest.approx(0.25, abs=5e-3)


@pytest.mark.parametrize("kind", ["relaxed", "hungarian", "max"])
def test_what_matches_scores_above_what_does_not_and_padding_changes_nothing(kind):
    matching = TokenMatching(TokenMatchingConfig(plan=kind))
    words = unit(4, 5, 16)
    patches = torch.cat([words, unit(4, 4, 16, seed=2)], 1)
    is_word = torch.ones(4, 5, dtype=torch.bool)
    near = matching(patches, words, patches, words, is_word, 0)
    far = matching(patches.roll(1, 0), words, patches.roll(1, 0), words, is_word, 0)
    assert float(near.detach()) < 0.5 * float(far.detach())
    longer, filled = torch.cat([words, unit(4, 3, 16, seed=5)], 1), torch.cat([is_word, torch.zeros(4, 3, dtype=torch.bool)], 1)
    torch.testing.assert_close(matching(patches, longer, patches, longer, filled, 0), near)
    matching.log_scale.data.fill_(9.0)
    assert torch.isfinite(matching(patches, words, patches, words, is_word, 0))
    words.requires_grad_(True)
    matching(patches, words, patches, words, is_word, 0).backward()
    assert words.grad.abs().sum() > 0


def test_closed_gates_change_nothing_and_learn():
    fusion = Fusion(width=8, num_layers=4, widths=[6, 6, 10], num_stages=2, num_heads=2)
    x, stages = torch.randn(2, 5, 8), [torch.randn(2, 9, width) for width in (6, 6, 10)]
    for layer in range(4):
        assert torch.equal(fusion(layer, x, stages), x)
    fusion(3, x, stages).sum().backward()
    assert float(fusion.looks[1].gate.grad.abs()) > 0
    fusion.looks[1].gate.data.fill_(1.0)
    assert not torch.equal(fusion(3, x, stages), x) and torch.equal(fusion(1, x, stages), x)


ONE_OF_TWO = """
import sys
import numpy as np, torch
from torch import distributed as dist
from mmlm.objectives.config import SoftClipConfig
from mmlm.objectives.contrastive import soft_clip
from mmlm.objectives.gathering import gathered
rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
given = np.load(f"{folder}/given.npz")
pictures, texts = (torch.tensor(given[name], requires_grad=True) for name in ("pictures", "texts"))
mine = slice(4 * rank, 4 * rank + 4)
(all_pictures, first), (all_texts, _) = gathered(pictures[mine]), gathered(texts[mine])
config = SoftClipConfig(alpha=0.2)
loss = soft_clip(pictures[mine], texts[mine], all_pictures, all_texts, torch.tensor(10.0), first, 0.2, config)
loss.backward()
total = loss.detach().clone()
for each in (total, pictures.grad, texts.grad):  # as the trainer adds up
    dist.all_reduce(each)
np.savez(f"{folder}/{rank}.npz", loss=total.numpy(), pictures=pictures.grad.numpy(), texts=texts.grad.numpy())
dist.destroy_process_group()
"""


def test_two_processes_have_the_loss_and_gradient_of_one(tmp_path):
    pictures, texts = unit(8, 16).requires_grad_(True), unit(8, 16, seed=1).requires_grad_(True)
    np.savez(tmp_path / "given.npz", pictures=pictures.detach().numpy(), texts=texts.detach().numpy())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", ONE_OF_TWO]
    workers = [
        subprocess.Popen([*command, str(rank), str(port), str(tmp_path)], cwd=Path(__file__).resolve().parents[2]) for rank in range(2)
    ]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    loss = soft_clip(pictures, texts, pictures, texts, torch.tensor(10.0), 0, 0.2, SOFT)
    loss.backward()
    for rank in range(2):
        found = np.load(tmp_path / f"{rank}.npz")
        assert float(found["loss"]) == pytest.approx(float(loss.detach()), abs=1e-4)
        np.testing.assert_allclose(found["pictures"], pictures.grad.numpy(), atol=1e-5)
        np.testing.assert_allclose(found["texts"], texts.grad.numpy(), atol=1e-5)
