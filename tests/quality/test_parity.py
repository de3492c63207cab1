"""Counting ones modulo two, far beyond the trained length: what a recurrence can do whose transitions have negative eigenvalues.

The label of every position is the number of ones so far modulo two. Trained on 40 bits, tested on 256; accuracy over positions 40 to 256.
No linear recurrence of finite precision with positive eigenvalues alone can do it (arXiv:2411.12537), whatever it is trained on.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmlm.backbone.backbone import Backbone
from mmlm.backbone.config import BackboneConfig
from mmlm.layout import Layout
from mmlm.parameters import initialize

pytestmark = pytest.mark.quality
WIDTH, TRAINED, TESTED, BATCH = 32, 40, 256, 64


def accuracy_beyond_the_trained_length(mixer, steps, seed=0, lr=5e-3):
    g = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    backbone = Backbone(BackboneConfig(width=WIDTH, num_layers=1, pattern=[mixer]))
    model = nn.ModuleDict({"embed": nn.Embedding(2, WIDTH), "backbone": backbone, "read": nn.Linear(WIDTH, 2)})
    initialize(model, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)

    def logits(bits):
        hidden = model["backbone"](model["embed"](bits), Layout.plain(*bits.shape))[0]
        return model["read"](hidden)

    for _ in range(steps):
        bits = torch.randint(0, 2, (BATCH, TRAINED), generator=g)
        loss = F.cross_entropy(logits(bits).flatten(0, 1), (bits.cumsum(1) % 2).flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    bits = torch.randint(0, 2, (200, TESTED), generator=g)
    with torch.no_grad():
        right = (logits(bits).argmax(-1) == bits.cumsum(1) % 2).float()
    return float(right[:, :TRAINED].mean()), float(right[:, TRAINED:].mean())


def test_negative_eigenvalues_solve_parity_beyond_the_trained_length_and_positive_ones_do_not():
    plain = {"type": "deltanet", "num_heads": 2, "key_size": 16}
    within, beyond = accuracy_beyond_the_trained_length({**plain, "negative_eigenvalues": True}, steps=1200)
    print(f"\nparity, negative eigenvalues: {within:.3f} within 40 bits, {beyond:.3f} at bits 40 to 256")
    without_within, without = accuracy_beyond_the_trained_length(plain, steps=1200)
    print(f"parity, positive eigenvalues: {without_within:.3f} within 40 bits, {without:.3f} at bits 40 to 256")
    assert within > 0.99 and beyond >= 0.95
    assert without <= 0.55
