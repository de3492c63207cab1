"""Tensors by name, into files and out of them. The format is safetensors: a length, a JSON header, raw bytes.

A file that `write_tensors` wrote holds its own digest among the header's remarks: the SHA-256 of the file with zeros in the digest's place.
Other programs read such a file as any other, and a file without a digest is read as it is.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmlm.base.errors import CheckpointError
from mmlm.base.files import parse_json, write_whole

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_CHUNK_BYTES = 1 << 24
_DIGEST, _BLANK = "mmlm.sha256", "0" * 64


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Iterator[memoryview | bytes]:
    """The bytes of a safetensors file in pieces, so that no second copy of all tensors is ever held."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))  # wide types first keeps all aligned
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in ordered:
        if tensor.numel():
            whole = memoryview(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
            for at in range(0, len(whole), _CHUNK_BYTES):
                yield whole[at : at + _CHUNK_BYTES]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file, whole or not at all, with its digest. Tensors may lie in the very file that is replaced, as those that were read
    from it do."""
    digest = hashlib.sha256()
    for piece in safetensors_bytes(tensors, {**(metadata or {}), _DIGEST: _BLANK}):
        digest.update(piece)
    write_whole(path, safetensors_bytes(tensors, {**(metadata or {}), _DIGEST: digest.hexdigest()}))


def check_digest(path: Path) -> None:
    """Raises CheckpointError where a readable safetensors file holds a digest of other bytes than its own."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = 8 + int.from_bytes(content[:8], "little")
        header = content[:start]
        told = (parse_json(header[8:]).get("__metadata__") or {}).get(_DIGEST)
        if told is None:
            return
        digest = hashlib.sha256(header.replace(told.encode(), _BLANK.encode(), 1))
        with memoryview(content) as whole, whole[start:] as rest:
            digest.update(rest)
    if digest.hexdigest() != told:
        raise CheckpointError(f"{path}: damaged: its bytes are not those that were written. Take the file from a copy.")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises CheckpointError where it is missing, cut or broken, or not as its digest says."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file.")
    try:
        found = load_file(str(path))
        check_digest(path)
        return found
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: broken weight file: {error}.") from None


def read_foreign_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a state dict of torch, which is read without unpickling anything but tensors.

    Raises CheckpointError where the file is missing or broken, or holds something else.
    """
    if path.suffix == ".safetensors" or not path.is_file():
        return read_tensors(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch each have their own
        raise CheckpointError(f"{path}: not a state dict: {str(error).strip().splitlines()[0][:200]}") from None
    for key in ("state_dict", "model_state", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path}: not a state dict: a mapping of names to tensors is wanted.")
    return {str(name): value for name, value in found.items()}


def copy_tensors(own: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str) -> None:
    """Copy found tensors into own ones. Raises CheckpointError naming up to ten that are missing, unknown or of another shape."""
    faults = [f"missing {name}" for name in own.keys() - found.keys()]
    faults += [f"unknown {name}" for name in found.keys() - own.keys()]
    faults += [
        f"{name} is {list(found[name].shape)}, not {list(own[name].shape)}"
        for name in own.keys() & found.keys()
        if found[name].shape != own[name].shape
    ]
    if faults:
        more = f" and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise CheckpointError(f"{where}: {len(faults)} tensors do not fit the model: {'; '.join(sorted(faults)[:10])}{more}.")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(found[name])


def without_aliases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that share memory under their first name only, as safetensors wants them."""
    return {names[0]: tensors[names[0]] for names in _shared(tensors)}


def with_aliases(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `without_aliases` of the same tensors kept, under all names again."""
    names = {alias: group[0] for group in _shared(own) for alias in group}
    return {**found, **{alias: found[first] for alias, first in names.items() if alias not in found and first in found}}


def _shared(tensors: Mapping[str, Tensor]) -> Iterable[list[str]]:
    groups: dict[object, list[str]] = {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else name
        groups.setdefault(place, []).append(name)
    return groups.values()


_CTRANSLATE2 = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}  # the numbers by which the format names types


def read_ctranslate2(path: Path) -> dict[str, Tensor]:
    """The tensors of a CTranslate2 model.bin (version 6): names, shapes, types and raw bytes, one after the other.

    Raises CheckpointError for a missing, cut or broken file, for another version and for packed types.
    """
    try:
        content = memoryview(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from None
    at = 0

    def take(size: int) -> memoryview:
        nonlocal at
        if size < 0 or at + size > len(content):
            raise CheckpointError(f"{path}: broken weight file: it ends at byte {len(content):,}, in the middle of a tensor.")
        at += size
        return content[at - size : at]

    def number(size: int) -> int:
        return int.from_bytes(take(size), "little")

    if (version := number(4)) != 6:
        raise CheckpointError(f"{path}: must be a CTranslate2 model of version 6, but begins with {version}.")
    take(number(2))  # name of the kind of model
    number(4)
    found: dict[str, Tensor] = {}
    for _ in range(number(4)):
        name = bytes(take(number(2))).rstrip(b"\0").decode("utf-8", errors="replace")
        shape = [number(4) for _ in range(number(1))]
        kind, size = number(1), number(4)
        dtype = np.dtype(_CTRANSLATE2.get(kind, np.void))
        if dtype == np.void or size != dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
            raise CheckpointError(f"{path}: {name[:80]!r} of shape {shape} and type {kind} does not have {size} bytes.")
        found[name] = torch.from_numpy(np.frombuffer(take(size), dtype).reshape(shape).copy())
    return found
