"""What a spinning LiDAR sees of a plane with cuboids on it: of each ray the nearest hit.

All rays of one azimuth run above one line on the ground, so that a cuboid is met between two distances along it, whatever the elevation;
where a ray is then as high as the cuboid it meets a side, where it comes from above the roof.

Axes: r rings   a azimuths, or those that pass through a cuboid
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mmlm.data.config.street import StreetConfig
from mmlm.tokenizers.boxes import Box

GROUND, THINGS = 0.2, (0.1, 0.9)  # how much light comes back


def cast(rng: np.random.Generator, config: StreetConfig, boxes: Sequence[Box]) -> tuple[np.ndarray, np.ndarray]:
    """(points float32 [n, 4], of each the number of the box that it lies on, -1 for the ground)."""
    tangent_r = np.tan(np.radians(np.linspace(config.lowest_degrees, config.highest_degrees, config.rings)))
    angle_a = (np.arange(config.azimuths) + 0.5) * (2 * math.pi / config.azimuths)
    along_r = np.where(tangent_r < 0, -config.sensor_height / np.minimum(tangent_r, -1e-9), np.inf)
    along_ra = np.repeat(along_r[:, None], config.azimuths, axis=1)
    owner_ra = np.full(along_ra.shape, -1)
    for number, box in enumerate(boxes):
        columns = _columns(box, config.azimuths)
        found_ra = _distances(box, angle_a[columns], tangent_r)
        nearer_ra = found_ra < along_ra[:, columns]
        along_ra[:, columns] = np.where(nearer_ra, found_ra, along_ra[:, columns])
        owner_ra[:, columns] = np.where(nearer_ra, number, owner_ra[:, columns])
    slant_r = np.sqrt(1 + tangent_r**2)
    seen_ra = (along_ra * slant_r[:, None] <= config.max_range) & (rng.random(along_ra.shape) >= config.drop_out)
    ring_n, column_n = np.nonzero(seen_ra)
    off_n = rng.normal(0.0, config.range_noise, len(ring_n)) if config.range_noise else 0.0
    flat_n = along_ra[seen_ra] + off_n / slant_r[ring_n]
    shine = np.append(rng.uniform(*THINGS, len(boxes)), GROUND)  # the last one, at -1, is the ground
    angle_n, owner_n = angle_a[column_n], owner_ra[seen_ra]
    points = np.stack([flat_n * np.cos(angle_n), flat_n * np.sin(angle_n), flat_n * tangent_r[ring_n], shine[owner_n]], axis=1)
    return points.astype(np.float32), owner_n


def _columns(box: Box, azimuths: int) -> np.ndarray:
    """The azimuths that may meet a box."""
    x, y, _, length, width, _, _ = box
    half = math.asin(min(math.hypot(length, width) / 2 / math.hypot(x, y), 1.0))
    middle, step = math.atan2(y, x), 2 * math.pi / azimuths
    return np.arange(math.floor((middle - half) / step) - 1, math.ceil((middle + half) / step) + 1) % azimuths


def _distances(box: Box, angle_a: np.ndarray, tangent_r: np.ndarray) -> np.ndarray:
    """Metres along the ground [r, a] to where rays meet a box; infinite where they do not."""
    x, y, z, length, width, height, heading = box
    cos, sin = math.cos(heading), math.sin(heading)
    start = np.array([-x * cos - y * sin, x * sin - y * cos])  # the sensor, seen from the box
    way_2a = np.stack([np.cos(angle_a - heading), np.sin(angle_a - heading)])
    way_2a = np.where(np.abs(way_2a) < 1e-9, 1e-9, way_2a)
    ends = np.array([length, width])[:, None] / 2
    one_2a, other_2a = (-ends - start[:, None]) / way_2a, (ends - start[:, None]) / way_2a
    near_a, far_a = np.minimum(one_2a, other_2a).max(0), np.maximum(one_2a, other_2a).min(0)
    low, high = z - height / 2, z + height / 2
    at_near_ra = near_a * tangent_r[:, None]
    is_side_ra = (at_near_ra >= low) & (at_near_ra <= high)
    is_roof_ra = (at_near_ra > high) & (far_a * tangent_r[:, None] <= high)
    roof_r = high / np.where(tangent_r < 0, tangent_r, -1e-9)
    found_ra = np.where(is_side_ra, near_a, np.where(is_roof_ra, roof_r[:, None], np.inf))
    return np.where((near_a > 0) & (near_a <= far_a), found_ra, np.inf)
