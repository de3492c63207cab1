"""Pictures of real things: cut-outs that training never shows, and photographs of blood cells beside a detector of torchvision.

The detector is Faster R-CNN on MobileNetV3, from nothing as the model is, for the same seconds of training on one core, at the size of
picture that the recipe reads.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mmlm.analysis.detection import Found, average_precision
from mmlm.data import tuxpaint
from mmlm.data.boxed_lists import write_pictures
from mmlm.data.pictures import Picture
from mmlm.recipe import Recipe
from mmlm.run import evaluate, train
from mmlm.tasks.grounded import TWIN

pytestmark = pytest.mark.quality
CELLS = Path(__file__).resolve().parents[3] / "shared" / "data" / "bccd_boxes"
SECONDS = 360


def told(found: dict) -> None:
    for name, row in {"model": found["metrics"], **found["baselines"]}.items():
        print(f"\n{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in row.items()))


@pytest.mark.skipif(not tuxpaint.STAMPS.is_dir(), reason=f"needs: {tuxpaint.INSTALL}")
def test_things_that_were_never_seen_are_named_by_class_and_pointed_at(tmp_path) -> None:
    train(Recipe.read("grounded_captioning/tuxpaint", [f"output={tmp_path / 'run'}", "train.sample_every=0"]))
    found = evaluate(tmp_path / "run")
    told(found)
    values, twin = found["metrics"], found["baselines"][TWIN]
    assert values["acc_50"] > twin["acc_50"] + 0.3 and values["f1_all"] > 3 * twin["f1_all"] and values["malformed"] < 0.01


@pytest.mark.skipif(not CELLS.is_dir(), reason="needs the photographs of blood cells")
def test_cells_are_found_beside_a_detector_of_the_same_minutes(tmp_path) -> None:
    made = write_pictures(CELLS, tmp_path / "cells")
    options = [f"data.train.0.path={made}", f"output={tmp_path / 'run'}", "train.sample_every=0", f"train.max_seconds={SECONDS}"]
    recipe = Recipe.read("grounded_captioning/cells", options)
    train(recipe)
    found = evaluate(tmp_path / "run")
    told(found)
    source = recipe.data.train[0].build()
    theirs = detector(source.everything(), source.held_out_records().everything(), SECONDS)
    print(f"\nFaster R-CNN, MobileNetV3, {SECONDS} s: ap_50 {theirs.ap_50:.3f}, ap_50_95 {theirs.ap_50_95:.3f}, {theirs.by_label}")
    assert found["metrics"]["ap_50"] > found["baselines"][TWIN]["ap_50"] + 0.15


def detector(pictures: list[Picture], tests: list[Picture], seconds: float, batch: int = 4):
    """The precision of a detector that is trained on pictures for so many seconds, on tests; mirrored half of the time."""
    from torchvision.models import detection as models

    torch.manual_seed(0)
    labels = sorted({thing.label for each in pictures for thing in each.things})
    model = models.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=len(labels) + 1, min_size=72, max_size=96, box_score_thresh=0.05
    )
    rng, began, ready = np.random.default_rng(0), time.perf_counter(), [read(each) for each in pictures]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    while (spent := time.perf_counter() - began) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, spent / 15) * (1 - spent / seconds)
        images, targets = [], []
        for place in rng.integers(len(pictures), size=batch):
            image_cyx, wide = ready[place]
            boxes = torch.tensor([thing.box for thing in pictures[place].things]) * (image_cyx.shape[2] / wide)
            if rng.random() < 0.5:
                image_cyx, boxes = image_cyx.flip(2), torch.stack(
                    [image_cyx.shape[2] - boxes[:, 2], boxes[:, 1], image_cyx.shape[2] - boxes[:, 0], boxes[:, 3]], 1
                )  # fmt: skip
            images.append(image_cyx)
            targets.append({"boxes": boxes, "labels": torch.tensor([1 + labels.index(each.label) for each in pictures[place].things])})
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    model.eval()
    found, true = [], []
    with torch.no_grad():
        for each in tests:
            image_cyx, wide = read(each)
            (said,) = model([image_cyx])
            boxes = (said["boxes"] * (wide / image_cyx.shape[2])).tolist()
            rows = zip(boxes, said["labels"].tolist(), said["scores"].tolist(), strict=True)
            found.append([Found(labels[label - 1], tuple(box), score) for box, label, score in rows])
            true.append([Found(thing.label, thing.box) for thing in each.things])
    return average_precision(found, true)


def read(record: Picture) -> tuple[torch.Tensor, int]:
    """(pixels [c, y, x] from 0 to 1, the width of the whole picture, of which its boxes are)."""
    return torch.tensor(record.read()).permute(2, 0, 1).float() / 255, record.width
