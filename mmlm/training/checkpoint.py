"""Checkpoints that are complete or absent.

    checkpoints/step_000500/  model.safetensors  optimizer.safetensors  ema.safetensors?  state.json  manifest.json

All files are written into `.part_<step>` and flushed to the disk one by one, the manifest with their sizes and SHA-256 last; all is read
back, the folder renamed and its parent flushed. Only then are old ones deleted, and these are renamed first, so that no half-deleted
folder bears the name of a checkpoint. The manifest holds its own digest and is accepted only byte for byte as it is written, so that no
flipped bit anywhere passes. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mmlm.base.errors import CheckpointError
from mmlm.base.files import parse_json, read_json
from mmlm.weights import read_tensors, safetensors_bytes

logger = logging.getLogger(__name__)

MANIFEST, STATE = "manifest.json", "state.json"
_NAME = re.compile(r"step_(\d{6,})")
_PART, _OLD, _DAMAGED = ".part_", ".old_", ".damaged_"


class SaveError(CheckpointError):
    """A checkpoint could not be written; the ones before it are untouched."""

    exit_code = 1


def step_name(step: int) -> str:
    """Name of the folder of a step."""
    return f"step_{step:06d}"


def step_of(folder: Path) -> int | None:
    """The step of a checkpoint folder by its name; None for a folder of another kind."""
    match = _NAME.fullmatch(folder.name)
    return int(match[1]) if match and folder.name == step_name(int(match[1])) else None


def save(root: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Write a checkpoint of a step under root. tensors: those of each file, by its stem. Returns the folder, read back and whole.

    Raises SaveError naming the file and the free space when anything fails; then the checkpoints before are as they were.
    """
    part, final = root / f"{_PART}{step_name(step)}", root / step_name(step)
    at = root
    try:
        os.makedirs(root, exist_ok=True)
        _remove(part)
        os.mkdir(part)
        files: dict[str, dict[str, Any]] = {}
        for stem, content in tensors.items():
            at = part / f"{stem}.safetensors"
            files[at.name] = _write(at, safetensors_bytes(content))
        at = part / STATE
        files[at.name] = _write(at, [json.dumps(state, indent=1, allow_nan=False).encode()])
        at = part / MANIFEST
        _write(at, [_manifest(step, files)])
        at = part
        _flush(part)
        _verify(part, step)
        os.rename(part, final)
        at = root
        _flush(root)
    except (OSError, CheckpointError) as error:
        _try_remove(part)
        what = getattr(error, "strerror", None) or error
        raise SaveError(f"{at}: cannot write the checkpoint of step {step}: {what}; {_free_gib(root)} GiB are free there.") from error
    return final


def _write(path: Path, pieces: Iterable[bytes | memoryview]) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for piece in pieces:
            view = memoryview(piece)
            digest.update(view)
            size += len(view)
            while len(view):
                view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return {"size": size, "sha256": digest.hexdigest()}


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _manifest(step: int, files: dict[str, Any]) -> bytes:
    content = {"format": 1, "step": step, "files": files}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, indent=1).encode() + b"\n"


def _read_manifest(folder: Path, step: int | None) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        raw = path.read_bytes()
        content = parse_json(raw)
        whole = raw == _manifest(content["step"], content["files"])
    except (ValueError, KeyError, TypeError):
        whole = False
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; the checkpoint is not complete.") from None
    if not whole:
        raise CheckpointError(f"{path}: is damaged; use another checkpoint.")
    if content["step"] != step:
        raise CheckpointError(f"{path}: is of step {content['step']}, but the folder is {folder.name}.")
    return dict(content["files"])


def verify(folder: Path) -> None:
    """Read every file of a checkpoint and compare size and SHA-256. Raises CheckpointError naming the file that is not as written."""
    _verify(folder, step_of(folder))


def _verify(folder: Path, step: int | None) -> list[str]:
    files = _read_manifest(folder, step)
    for name, expected in files.items():
        path = folder / name
        digest, size = hashlib.sha256(), 0
        try:
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
                    size += len(block)
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}; the checkpoint is not complete.") from None
        if size != expected["size"]:
            raise CheckpointError(f"{path}: has {size} bytes, not {expected['size']}: it was cut or changed; use another checkpoint.")
        if digest.hexdigest() != expected["sha256"]:
            raise CheckpointError(f"{path}: is damaged (its SHA-256 is not that of the manifest); use another checkpoint.")
    return list(files)


def read(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """(tensors of each file by its stem, state) of a checkpoint, after it was found whole. Raises CheckpointError."""
    names = _verify(folder, step_of(folder))
    stems = [name.removesuffix(".safetensors") for name in names if name.endswith(".safetensors")]
    return {stem: read_tensors(folder / f"{stem}.safetensors") for stem in stems}, read_json(folder / STATE)


def steps(root: Path) -> list[int]:
    """Steps that have a folder under root, whole or not, in their order."""
    if not root.is_dir():
        return []
    return sorted(step for path in root.iterdir() if path.is_dir() and (step := step_of(path)) is not None)


def newest(root: Path) -> Path | None:
    """The whole checkpoint with the highest step; None where there has never been one.

    A damaged one is passed over with a warning. Raises CheckpointError when all are damaged.
    """
    faults = []
    for step in reversed(steps(root)):
        folder = root / step_name(step)
        try:
            verify(folder)
        except CheckpointError as error:
            logger.warning("%s", error)
            faults.append(str(error))
        else:
            return folder
    if faults:
        raise CheckpointError(f"{root}: no checkpoint is whole. Start over with --fresh. {' '.join(faults)}")
    return None


def clean(root: Path) -> None:
    """Remove what interrupted saves and deletions left. For the process that holds the run."""
    if root.is_dir():
        for path in root.iterdir():
            if path.name.startswith((_PART, _OLD)):
                _try_remove(path)


def set_aside(root: Path, after: int) -> None:
    """Rename the folders of steps above `after`, which were found damaged, so that they do not count as checkpoints any more."""
    for step in steps(root):
        if step > after:
            aside = root / f"{_DAMAGED}{step_name(step)}"
            _try_remove(aside)
            os.rename(root / step_name(step), aside)


def prune(root: Path, keep: set[int]) -> None:
    """Delete the checkpoints of all other steps. A failed deletion is logged and costs nothing but space."""
    for step in steps(root):
        if step not in keep:
            folder, old = root / step_name(step), root / f"{_OLD}{step_name(step)}"
            try:
                _remove(old)
                os.rename(folder, old)
                _remove(old)
            except OSError as error:
                logger.warning("%s: the old checkpoint cannot be deleted: %s.", folder, error.strerror or error)


def _remove(folder: Path) -> None:
    if os.path.lexists(folder):
        for name in os.listdir(folder):
            os.unlink(folder / name)
        os.rmdir(folder)


def _try_remove(folder: Path) -> None:
    try:
        _remove(folder)
    except OSError as error:
        logger.warning("%s: cannot be removed: %s.", folder, error.strerror or error)


def _free_gib(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder if folder.is_dir() else folder.parent).free / 2**30:.2f}"
    except OSError:
        return "an unknown number of"
