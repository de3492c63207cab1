"""Sweeps from files: each format gives the same points, and what is wrong with a file is told with its name."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from mmlm.base.errors import DataError
from mmlm.data.points import read_points

ZIP = b"PK\x03\x04" + bytes(40)
HUGE = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000, 4), }".ljust(127) + b"\n" + bytes(32)


def cloud(count: int = 50) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.concatenate([rng.uniform(-40, 40, (count, 3)), rng.integers(0, 256, (count, 1)) / 255], axis=1).astype(np.float32)


def pcd(points: np.ndarray, form: str) -> bytes:
    head = "# .PCD v0.7\nVERSION 0.7\nFIELDS x y z ring intensity\nSIZE 4 4 4 2 4\nTYPE F F F U F\nCOUNT 1 1 1 1 1\n"
    head += f"WIDTH {len(points)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(points)}\nDATA {form}\n"
    if form == "ascii":
        return (head + "".join(f"{x:.9g} {y:.9g} {z:.9g} 3 {i:.9g}\n" for x, y, z, i in points.tolist())).encode()
    rows = np.zeros(len(points), np.dtype([("xyz", "<f4", 3), ("ring", "<u2"), ("i", "<f4")]))
    rows["xyz"], rows["i"] = points[:, :3], points[:, 3]
    return head.encode() + rows.tobytes()


def las(points: np.ndarray) -> bytes:
    head = bytearray(227)
    head[:4], head[24], head[25] = b"LASF", 1, 2
    struct.pack_into("<HII", head, 94, 227, 227, 0)
    struct.pack_into("<BHI", head, 104, 0, 20, len(points))
    struct.pack_into("<6d", head, 131, 0.001, 0.001, 0.001, 100.0, 200.0, 0.0)
    rows = np.zeros(len(points), np.dtype([("xyz", "<i4", 3), ("i", "<u2"), ("rest", "V6")]))
    rows["xyz"] = np.rint((points[:, :3] - [100, 200, 0]) / 0.001)
    rows["i"] = np.rint(points[:, 3] * 65535)
    return bytes(head) + rows.tobytes()


def test_every_format_gives_the_same_points(tmp_path) -> None:
    points = cloud()
    five = np.concatenate([points, np.arange(50, dtype=np.float32)[:, None] % 32], axis=1)
    points.tofile(tmp_path / "kitti.bin")
    five.tofile(tmp_path / "nuscenes.bin")
    np.save(tmp_path / "a.npy", points)
    np.savez(tmp_path / "a.npz", xyz=points[:, :3], intensity=np.rint(points[:, 3] * 255).astype(np.uint8))
    np.savez(tmp_path / "one.npz", points)
    for form in ("ascii", "binary"):
        (tmp_path / f"{form}.pcd").write_bytes(pcd(points, form))
    (tmp_path / "a.las").write_bytes(las(points))
    names = ("kitti.bin", "nuscenes.bin", "a.npy", "a.npz", "one.npz", "ascii.pcd", "binary.pcd", "a.las")
    for name in names:
        found = read_points(tmp_path / name)
        assert found.dtype == np.float32 and found.shape == (50, 4) and np.allclose(found, points, atol=1e-3), name
    brighter = points * np.array([1, 1, 1, 255], np.float32)
    brighter.tofile(tmp_path / "brighter.bin")
    np.save(tmp_path / "brighter.npy", brighter)
    for name in ("brighter.bin", "brighter.npy"):
        assert np.allclose(read_points(tmp_path / name), points, atol=1e-3), name
    np.save(tmp_path / "bare.npy", points[:, :3])
    assert not read_points(tmp_path / "bare.npy")[:, 3].any()
    assert read_points(tmp_path / "kitti.bin", columns=4).shape == (50, 4)


def test_points_that_are_none_are_left_out_and_said(tmp_path, caplog) -> None:
    points = cloud()
    points[3, 1], points[7, 3] = np.nan, np.inf
    np.save(tmp_path / "a.npy", points)
    assert len(read_points(tmp_path / "a.npy")) == 48 and "2 of 50 points" in caplog.text
    points[:] = np.nan
    np.save(tmp_path / "a.npy", points)
    with pytest.raises(DataError, match="a.npy: holds 50 points, none of them finite"):
        read_points(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.bin", b"", "is empty"), ("a.bin", bytes(17), "no whole number of points"), ("a.bin", bytes(24), "cut short"),
        ("a.npy", b"none", "damaged or not a .npy"), ("a.npz", b"none", "damaged or not a .npz"),
        ("a.npy", ZIP, "damaged or not a .npy"), ("a.npz", ZIP, "damaged or not a .npz"), ("a.npy", HUGE, "damaged or not a .npy"),
        ("a.pcd", b"FIELDS x y z\n", "damaged or not"),
        ("a.pcd", pcd(cloud(), "binary")[:-40], "is cut short"), ("a.pcd", pcd(cloud(), "ascii")[:-60], "says it has 50 points|damaged"),
        ("a.pcd", pcd(cloud(), "ascii").replace(b"DATA ascii", b"DATA binary_compressed"), "binary_compressed; ascii and binary"),
        ("a.las", las(cloud())[:-9], "is cut short"), ("a.las", b"LASX" + bytes(300), "does not begin"), ("a.ply", b"ply", "sweeps end in"),
    ],
)  # fmt: skip
def test_damage_is_told_with_the_file(name, content, message, tmp_path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: .*({message})"):
        read_points(tmp_path / name)
    with pytest.raises(DataError, match="No such file"):
        read_points(tmp_path / "none.bin")
