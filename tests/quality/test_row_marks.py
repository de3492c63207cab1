"""Row marks tell grids apart: 2 x 6 and 3 x 4 patches are the same list of patches, so whether one lies in the last row is not to be known
without marks, whatever is learned, and is learned within seconds with them (SOLO's decisive check).

One of the patches 6 to 11 is marked: all of them lie in the last row of 2 x 6, the last four in that of 3 x 4. Of 6 and 7 the answer hangs
on the grid alone.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmlm.model import MultimodalLM
from mmlm.model_config import ModelConfig
from mmlm.stream import Segment, Stream, pack
from mmlm.tokenizers.image_patches import PATCH, VISION, row_ids

pytestmark = pytest.mark.quality
STEPS, BATCH, TESTED = 500, 64, 2000


def sample(rng: np.random.Generator, marks: bool, places: range) -> tuple[Stream, int]:
    """A grid with one marked patch, and whether that lies in the last row."""
    rows, columns = (2, 6) if rng.random() < 0.5 else (3, 4)
    place = int(rng.integers(places.start, places.stop))
    ids = row_ids(rows, columns, marks)
    features = torch.zeros(12, 2)
    features[:, 0], features[place, 1] = 1, 1
    answer = int(place // columns == rows - 1)
    picture = Segment(VISION, ids, features=features, encoder=VISION, feature_at=(ids == PATCH).nonzero()[:, 0])
    return Stream([picture, Segment("answer", torch.tensor([answer]), weight=1.0)]), answer


def accuracy(marks: bool) -> float:
    """Of a small causal model, on the patches 6 and 7."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    config = {
        "schema": 1, "vocabulary": {VISION: 4, "answer": 2}, "encoders": {VISION: {"type": "patch_matrix"}}, "features": {VISION: 2},
        "backbone": {"width": 48, "num_layers": 2, "pattern": [{"type": "attention", "num_heads": 2}]},
        "heads": {"language_model": {"type": "language_model", "ranges": ["answer"]}},
    }  # fmt: skip
    model = MultimodalLM(ModelConfig.model_validate(config))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(STEPS):
        batch = pack([sample(rng, marks, range(6, 12))[0] for _ in range(BATCH)], model.vocabulary)
        loss = sum(total / weight for total, weight in model.losses(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    right = 0
    with torch.no_grad():
        for _ in range(TESTED // BATCH):
            drawn = [sample(rng, marks, range(6, 8)) for _ in range(BATCH)]
            batch = pack([stream for stream, _ in drawn], model.vocabulary)
            h_btd, _ = model.hidden(batch)
            scores = model.heads["language_model"].predict(h_btd[0][batch.weight[0] > 0], model.vocabulary.span("answer"))
            right += int((scores.argmax(-1) == torch.tensor([answer for _, answer in drawn])).sum())
    return right / (TESTED // BATCH * BATCH)


def test_marks_between_rows_tell_what_nothing_else_does() -> None:
    found = {marks: accuracy(marks) for marks in (True, False)}
    print(f"\nin the last row, patches 6 and 7 of 2 x 6 or 3 x 4: with marks {found[True]:.3f}, without {found[False]:.3f}")
    assert found[True] >= 0.98
    assert abs(found[False] - 0.5) <= 3 * (0.25 / TESTED) ** 0.5 + 0.01
