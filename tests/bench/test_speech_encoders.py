"""Frames of a HuBERT of base size beside torchaudio's own loop, one sound after the other, in float32; with random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmlm.encoders.config import Wav2Vec2Config
from mmlm.sound import Sound
from tests.bench.measure import MARGIN, compare

torchaudio = pytest.importorskip("torchaudio")
pytestmark = pytest.mark.bench
GOAL, LAYER = 2.0, 9
SECONDS = 1.1, 2.0, 4.5


def test_hubert_in_bf16_against_torchaudio(tmp_path):
    if not torch.cpu._is_amx_tile_supported():
        pytest.skip("this machine has no AMX")
    torch.manual_seed(0)
    theirs = torchaudio.models.hubert_base().eval()
    torch.save(theirs.state_dict(), tmp_path / "hubert.pt")
    ours = Wav2Vec2Config(path=str(tmp_path / "hubert.pt"), layer=LAYER).build()
    rng = np.random.default_rng(0)
    sounds = [Sound(0.1 * rng.normal(size=round(16_000 * each)).astype(np.float32), 16_000) for each in SECONDS]
    waves = [torch.nn.functional.pad(torch.from_numpy(each.wave_n), (0, -len(each.wave_n) % 320 + 80))[None] for each in sounds]

    @torch.no_grad()
    def plain():
        return [theirs.extract_features(wave_1n, num_layers=LAYER)[0][-1][0] for wave_1n in waves]

    def run(precision):
        return list(ours.frames(sounds, batch_size=len(sounds), precision=precision))

    for precision, least in (("fp32", 0.999999), ("bf16", 0.999)):
        for one, other in zip(plain(), run(precision), strict=True):
            assert one.shape == other.shape and float(torch.cosine_similarity(one, other, dim=1).min()) > least, precision
    found = compare({"torchaudio": plain, "fp32": lambda: run("fp32"), "bf16": lambda: run("bf16")}, rounds=3)
    print({name: f"{time:.0f} ms" for name, time in found.items()}, f"bf16 {found['torchaudio'] / found['bf16']:.2f} times as fast")
    assert found["torchaudio"] / found["bf16"] > GOAL / MARGIN
    assert found["torchaudio"] / found["fp32"] > 1 / MARGIN
