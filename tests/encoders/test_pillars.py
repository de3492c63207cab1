"""Points to maps: nothing hangs on their order, cells are those of a loop, empty ones are 0, a shift by a cell is a shift by a cell."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mmlm.base.errors import DataError, RecipeError
from mmlm.data.points import read_points
from mmlm.encoders.config import PillarsConfig
from mmlm.encoders.pillars import NUMBERS

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "lidar_sustech"


def points(count: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    spread = torch.tensor([60.0, 60.0, 5.0, 1.0])
    return (torch.rand(count, 4, generator=g) * 2 - 1) * spread + torch.tensor([0.0, 0.0, -1.0, 0.0])


def built(**options):
    torch.manual_seed(0)
    return PillarsConfig(**options).build().eval()


@pytest.mark.parametrize("bins", [1, 4])
@torch.no_grad()
def test_cells_are_those_of_a_loop_over_points(bins) -> None:
    encoder, some = built(height_bins=bins), torch.cat([points(400), points(60, 1) * 0.05])
    found = encoder.canvas(some)
    config, wanted = encoder.config, torch.zeros_like(found)
    cells: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for point in some:
        if all(low <= value < high for low, value, high in zip(config.low, point.tolist(), config.high, strict=False)):
            x, y = (int((float(point[axis]) - config.low[axis]) / config.cell) for axis in (0, 1))
            z = int((float(point[2]) - config.low[2]) / (config.high[2] - config.low[2]) * bins)
            cells.setdefault((z, y, x), []).append(point)
    assert 100 < len(cells) < len(some)
    half_x, half_y = ((high - low) / 2 for low, high in zip(config.low[:2], config.high[:2], strict=True))
    assert encoder.units == (half_x, half_y, 1, 1, config.cell / 2, config.cell / 2, 1, config.cell / 2, config.cell / 2)
    for (z, y, x), held in cells.items():
        group = torch.stack(held)
        middle = torch.tensor([config.low[0] + (x + 0.5) * config.cell, config.low[1] + (y + 0.5) * config.cell])
        numbers = torch.cat([group, group[:, :3] - group[:, :3].mean(0), group[:, :2] - middle], dim=1) / torch.tensor(encoder.units)
        assert numbers.shape[1] == NUMBERS
        value = torch.relu(encoder.norm(encoder.linear(numbers))).amax(0)
        wanted[(0, slice(None), z, y, x) if bins > 1 else (0, slice(None), y, x)] = value
    assert torch.allclose(found, wanted, atol=1e-4)


def test_a_batch_of_one_point_is_trained_on() -> None:
    encoder, (one,) = built().train(), points(200)[10:11][None]
    known = encoder.norm.running_mean.clone()
    found = encoder(one * 0.1, torch.zeros(1, dtype=torch.long), 2)
    found.sum().backward()
    assert found.isfinite().all() and encoder.linear.weight.grad.abs().sum() > 0 and torch.equal(encoder.norm.running_mean, known)
    encoder(points(50))
    assert not torch.equal(encoder.norm.running_mean, known)


@torch.no_grad()
def test_order_samples_and_emptiness() -> None:
    encoder, some = built(), points(5000)
    whole = encoder.canvas(some)
    assert torch.allclose(encoder.canvas(some[torch.randperm(len(some))]), whole, atol=1e-5)
    other = points(3000, 1)
    both = encoder.canvas(torch.cat([other, some]), torch.tensor([1] * 3000 + [0] * 5000), 2)
    assert torch.allclose(both[0], whole[0], atol=1e-6) and torch.allclose(both[1], encoder.canvas(other)[0], atol=1e-6)
    near = some[(some[:, :2].abs() < 5).all(1)]
    assert int((encoder.canvas(near).abs().sum(1) > 0).sum()) <= 13 * 13 and not encoder.canvas(some[:0]).any()
    assert encoder(some).shape == (1, 96, 64, 64) and built(height_bins=4)(some).shape == (1, 96, 64, 64)


@torch.no_grad()
def test_a_shift_by_a_cell_shifts_the_canvas_by_a_cell() -> None:
    """Of an encoder that does not read absolute places, which the first two numbers tell."""
    encoder = built()
    encoder.linear.weight[:, :2] = 0
    some = points(2000) * torch.tensor([0.5, 0.5, 1.0, 1.0])
    moved = encoder.canvas(some + torch.tensor([0.8, 0.0, 0.0, 0.0]))
    assert torch.allclose(moved[..., 1:], encoder.canvas(some)[..., :-1], atol=2e-3)


@torch.no_grad()
def test_thirty_thousand_points_are_quick() -> None:
    encoder, some = built(), points(30_000)
    seconds = []
    for _ in range(7):
        start = time.process_time()
        encoder.canvas(some)
        seconds.append(time.process_time() - start)
    print(f"\n30,000 points: {1e3 * min(seconds):.1f} ms")
    assert min(seconds) < 0.05


def test_gradients_reach_the_points_and_ranges_are_checked() -> None:
    encoder, some = built(), points(200).requires_grad_()
    encoder(some).sum().backward()
    assert encoder.linear.weight.grad is not None and bool(some.grad.any())
    with pytest.raises(DataError, match=r"points are \[n, 4\]"):
        encoder.canvas(torch.zeros(3, 3))
    with pytest.raises(RecipeError, match="in a model view_aware reads it"):
        PillarsConfig().build(4)
    for options in ({"cell": 0.7}, {"low": [0, 0, 4], "high": [8, 8, 3]}, {"low": [0, 0, 0], "high": [4, 8, 3]}):
        with pytest.raises(ValidationError):
            PillarsConfig(**options)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared beside the checkout")
@torch.no_grad()
def test_real_sweeps_fill_the_cells_of_their_boxes() -> None:
    import json

    encoder = built()
    for path in sorted(REAL.glob("*.npz")):
        some = read_points(path)
        assert len(some) > 60_000 and some[:, 3].min() >= 0 and some[:, 3].max() <= 1
        filled = encoder.canvas(torch.from_numpy(some))[0].abs().sum(0) > 0
        hits = []
        for thing in json.loads(path.with_suffix(".json").read_text()):
            x, y = (int((thing["psr"]["position"][axis] + 51.2) / 0.8) for axis in "xy")
            if 1 <= x < 127 and 1 <= y < 127:
                hits.append(bool(filled[y - 1 : y + 2, x - 1 : x + 2].any()))
        assert len(hits) > 10 and np.mean(hits) > 0.95
