"""Sweeps of LiDAR from files, as float32 [n, 4]: x, y, z in metres and intensity from 0 to 1.

    .bin          float32, four numbers a point (KITTI) or five (nuScenes), told apart by their number, or as asked for
    .npy          an array [n, 3 or more]
    .npz          arrays xyz [n, 3] and intensity [n], or one array as in .npy
    .pcd          ascii and binary, any fields with x, y, z
    .las          versions 1.0 to 1.4, uncompressed

Whole numbers of intensity are divided by the largest that their type holds, others by 255 where they go beyond 1. Points with a number that
is none are left out.

Axes: n points
"""

from __future__ import annotations

import logging
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mmlm.base.errors import DataError
from mmlm.data.listed import check_unpacked

logger = logging.getLogger(__name__)

PCD_TYPES = {("F", 4): "f4", ("F", 8): "f8", ("U", 1): "u1", ("U", 2): "u2", ("U", 4): "u4", ("I", 1): "i1", ("I", 2): "i2", ("I", 4): "i4"}
DAMAGED = (ValueError, KeyError, IndexError, struct.error, EOFError, OSError, TypeError, SyntaxError, OverflowError, MemoryError,
           NotImplementedError, zipfile.BadZipFile, zlib.error, tokenize.TokenError)  # fmt: skip
LAS_HEADER = 227  # bytes that every version has


def read_points(path: Path | str, columns: int | None = None) -> np.ndarray:
    """The points of a file, float32 [n, 4]. columns: numbers of a point in a .bin file, where their number does not tell.

    Raises DataError naming the file for one that is empty, cut short, of another kind, or without a finite point.
    """
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: sweeps end in {', '.join(READERS)}.")
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}.") from None
    if not data:
        raise DataError(f"{path}: is empty.")
    try:
        found = _from_bin(data, path, columns) if path.suffix.lower() == ".bin" else reader(data, path)
    except DataError:
        raise
    except DAMAGED as error:
        raise DataError(f"{path}: is damaged or not a {path.suffix} file: {error}.") from None
    finite_n = np.isfinite(found).all(1)
    if not finite_n.any():
        raise DataError(f"{path}: holds {len(found)} points, none of them finite.")
    if not finite_n.all():
        logger.warning("%s: %d of %d points have a number that is none and are left out.", path, int((~finite_n).sum()), len(found))
    return found[finite_n]


def _four(xyz: np.ndarray, intensity: np.ndarray | None) -> np.ndarray:
    """float32 [n, 4]; intensity as whole numbers by the range of their type, else from 0 to 1 or to 255."""
    found = np.zeros((len(xyz), 4), dtype=np.float32)
    found[:, :3] = xyz[:, :3]
    if intensity is not None:
        if np.issubdtype(intensity.dtype, np.integer):
            scale = float(np.iinfo(intensity.dtype).max)
        else:
            scale = 255.0 if (intensity[np.isfinite(intensity)] > 1).any() else 1.0
        found[:, 3] = intensity.reshape(-1) / scale
    return found


def _from_bin(data: bytes, path: Path, columns: int | None) -> np.ndarray:
    values = np.frombuffer(data, dtype="<f4") if len(data) % 4 == 0 else None
    fitting = [] if values is None else [count for count in ((columns,) if columns else (4, 5)) if len(values) % count == 0]
    if values is None or not fitting:
        raise DataError(f"{path}: {len(data)} bytes are no whole number of points with {columns or '4 or 5'} numbers; is it cut short?")
    if len(fitting) > 1:  # both fit: of four numbers a point, every fifth is no ring number, which is whole
        rings = values.reshape(-1, 5)[:, 4]
        fitting = [5] if bool(np.isfinite(rings).all() and (rings == np.round(rings)).all() and rings.min() >= 0) else [4]
    points = values.reshape(-1, fitting[0])
    return _four(points, points[:, 3])


def _from_npy(data: bytes, path: Path) -> np.ndarray:
    import io

    return _of_array(np.load(io.BytesIO(data), allow_pickle=False), path)


def _of_array(array: Any, path: Path) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: holds several arrays; name it .npz.")
    if array.ndim != 2 or array.shape[1] < 3 or not len(array):
        raise DataError(f"{path}: points are an array [n, 3 or more], but this is {list(array.shape)}.")
    return _four(array, array[:, 3] if array.shape[1] > 3 else None)


def _from_npz(data: bytes, path: Path) -> np.ndarray:
    import io

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        check_unpacked(path, sum(member.file_size for member in archive.infolist()))
    with np.load(io.BytesIO(data), allow_pickle=False) as held:
        if "xyz" in held:
            return _four(held["xyz"], held["intensity"] if "intensity" in held else None)
        if len(held.files) == 1:
            return _of_array(held[held.files[0]], path)
        raise DataError(f"{path}: holds {', '.join(held.files)}, but no xyz.")


def _from_pcd(data: bytes, path: Path) -> np.ndarray:
    head: dict[str, list[str]] = {}
    at = 0
    while "DATA" not in head:
        end = data.index(b"\n", at)
        line = data[at:end].decode("ascii", "replace").strip()
        at = end + 1
        if line and not line.startswith("#"):
            key, *values = line.split()
            head[key] = values
    names, sizes, kinds = head["FIELDS"], list(map(int, head["SIZE"])), head["TYPE"]
    counts, total, form = list(map(int, head.get("COUNT", ["1"] * len(names)))), int(head["POINTS"][0]), head["DATA"][0]
    dtype = np.dtype([(name, PCD_TYPES[kind, size], (count,)) for name, kind, size, count in zip(names, kinds, sizes, counts, strict=True)])
    if form == "binary":
        if len(data) - at < total * dtype.itemsize:
            raise DataError(f"{path}: is cut short: {total} points take {total * dtype.itemsize} bytes, but {len(data) - at} are there.")
        rows = np.frombuffer(data, dtype, total, at)
        column: Callable[[str], np.ndarray] = lambda name: rows[name][:, 0]  # noqa: E731
    elif form == "ascii":
        table = np.array([line.split() for line in data[at:].decode("ascii").splitlines() if line.strip()], dtype=np.float64)
        if len(table) != total:
            raise DataError(f"{path}: says it has {total} points, but holds {len(table)}.")
        starts = dict(zip(names, np.cumsum([0, *counts[:-1]]).tolist(), strict=True))
        column = lambda name: table[:, starts[name]].astype(dtype[name].base)  # noqa: E731
    else:
        raise DataError(f"{path}: its points are {form}; ascii and binary are read.")
    return _four(np.stack([column(axis) for axis in "xyz"], 1), column("intensity") if "intensity" in names else None)


def _from_las(data: bytes, path: Path) -> np.ndarray:
    if data[:4] != b"LASF" or len(data) < LAS_HEADER:
        raise DataError(f"{path}: does not begin as a .las file.")
    start, (kind, size) = struct.unpack_from("<I", data, 96)[0], struct.unpack_from("<BH", data, 104)
    total = struct.unpack_from("<I", data, 107)[0]
    if data[25] >= 4 and not total:
        total = struct.unpack_from("<Q", data, 247)[0]
    if kind & 0x80:
        raise DataError(f"{path}: its points are compressed (LAZ); .las without compression is read.")
    scale, offset = np.array(struct.unpack_from("<3d", data, 131)), np.array(struct.unpack_from("<3d", data, 155))
    if len(data) < start + total * size:
        raise DataError(f"{path}: is cut short: {total} points take {total * size} bytes, but {len(data) - start} are there.")
    dtype = np.dtype({"names": ["xyz", "intensity"], "formats": ["(3,)<i4", "<u2"], "offsets": [0, 12], "itemsize": size})
    rows = np.frombuffer(data, dtype, total, start)
    return _four(rows["xyz"] * scale + offset, rows["intensity"])


READERS: dict[str, Callable[[bytes, Path], np.ndarray]] = {
    ".bin": lambda data, path: _from_bin(data, path, None), ".npy": _from_npy, ".npz": _from_npz, ".pcd": _from_pcd, ".las": _from_las
}  # fmt: skip
