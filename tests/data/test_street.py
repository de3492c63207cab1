"""Streets: rays meet what a slow loop over rays says, sweeps are functions of their number, boxes hold the points of their things."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from pydantic import ValidationError

from mmlm.data.config.street import StreetConfig
from mmlm.data.street.rays import cast
from mmlm.data.street.source import CLASSES, CLEAR, FEWEST, arranged
from mmlm.encoders.views import from_border

EXACT = {"range_noise": 0.0, "drop_out": 0.0}


def inside(points: np.ndarray, box, slack: float) -> np.ndarray:
    x, y, z, length, width, height, heading = box
    moved = points[:, :2] - (x, y)
    along = moved @ (math.cos(heading), math.sin(heading))
    across = moved @ (-math.sin(heading), math.cos(heading))
    sizes = np.array([length, width, height]) / 2 + slack
    return (np.abs(along) <= sizes[0]) & (np.abs(across) <= sizes[1]) & (np.abs(points[:, 2] - z) <= sizes[2])


def marched(box, direction: np.ndarray) -> float:
    """Metres along a ray until it is in a box, by small steps; infinite if never."""
    steps = np.arange(0.0, 40.0, 0.004)
    hit = inside(steps[:, None] * direction, box, 0.0)
    return float(steps[int(hit.argmax())]) if hit.any() else math.inf


def test_rays_meet_boxes_where_small_steps_along_them_do() -> None:
    config = StreetConfig(rings=12, azimuths=48, **EXACT)
    for seed in range(3):
        boxes = [each.box for each in arranged(np.random.default_rng(seed), config)]
        points, owner_n = cast(np.random.default_rng(0), config, boxes)
        found = {
            (round(math.degrees(math.atan2(p[2], math.hypot(p[0], p[1]))), 2), round(math.degrees(math.atan2(p[1], p[0])) % 360, 2)):
            (float(np.linalg.norm(p[:3])), int(owner)) for p, owner in zip(points.astype(np.float64), owner_n, strict=True)
        }  # fmt: skip
        for elevation in np.linspace(config.lowest_degrees, config.highest_degrees, 12)[::3]:
            for azimuth in (np.arange(48) + 0.5) * 7.5:
                e, a = math.radians(elevation), math.radians(azimuth)
                direction = np.array([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
                distances = [marched(box, direction) for box in boxes]
                ground = config.sensor_height / -direction[2] if direction[2] < 0 else math.inf
                wanted = min([*distances, ground])
                mine = found.get((round(float(elevation), 2), round(float(azimuth), 2)))
                if wanted > config.max_range:
                    assert mine is None
                elif abs(min([*distances, math.inf]) - ground) > 0.05:
                    assert mine is not None and mine[0] == pytest.approx(wanted, abs=0.03)


def test_a_sweep_is_a_function_of_its_number_and_its_things_are_seen() -> None:
    source, totals = StreetConfig(split="test").build(), []
    for number in range(20):
        one, again = source.record(number), source.record(number)
        points = one.read()
        assert np.array_equal(points, again.read()) and one.things == again.things
        assert points.dtype == np.float32 and points.shape[1] == 4 and np.isfinite(points).all()
        for thing in one.things:
            assert inside(points, thing.box, 0.15).sum() >= FEWEST and from_border(*thing.box[:2]) >= CLEAR
        totals.append(len(one.things))
    assert min(totals) >= 1 and not np.array_equal(source.record(0).read(), StreetConfig(split="train").build().record(0).read())
    labels = {thing.label for number in range(40) for thing in source.record(number).things}
    assert labels == set(CLASSES)


def test_noise_and_drop_out_do_what_they_say_and_a_sweep_takes_milliseconds() -> None:
    boxes = [each.box for each in arranged(np.random.default_rng(0), StreetConfig())]
    full, _ = cast(np.random.default_rng(0), StreetConfig(**EXACT), boxes)
    fewer, _ = cast(np.random.default_rng(0), StreetConfig(range_noise=0.0, drop_out=0.25), boxes)
    assert len(fewer) / len(full) == pytest.approx(0.75, abs=0.02)
    bare, _ = cast(np.random.default_rng(0), StreetConfig(range_noise=0.05, drop_out=0.0), [])
    exact, _ = cast(np.random.default_rng(0), StreetConfig(**EXACT), [])
    off = np.linalg.norm(bare[:, :3], axis=1) - np.linalg.norm(exact[:, :3], axis=1)
    assert off.std() == pytest.approx(0.05, rel=0.05) and np.allclose(exact[:, 2], -1.8, atol=1e-5)
    source, began = StreetConfig().build(), time.process_time()
    for number in range(20):
        source.record(number)
    milliseconds = 50 * (time.process_time() - began)
    print(f"\na sweep: {milliseconds:.1f} ms")
    assert milliseconds < 30
    with pytest.raises(ValidationError, match="min_things must be at most"):
        StreetConfig(min_things=9, max_things=2)
