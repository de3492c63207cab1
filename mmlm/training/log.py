"""log.jsonl: one JSON object a line. A killed run leaves lines beyond its last checkpoint; they are cut off when it goes on."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmlm.base.errors import MmlmError
from mmlm.base.files import parse_json, without_nan


class RunLog:
    """Appends lines to a file. size: bytes that belong to the state the run goes on from; what follows them is cut off.

    Raises MmlmError naming the file when it cannot be written, as on a full disk.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        with self._told():
            path.touch()
            if path.stat().st_size > size:
                os.truncate(path, size)
            self._file = path.open("ab", buffering=0)

    def write(self, record: dict[str, Any]) -> None:
        """One line; numbers that are not finite become null, since JSON has none."""
        with self._told():
            self._file.write(json.dumps(without_nan(record), allow_nan=False).encode() + b"\n")

    def size(self) -> int:
        """Bytes written so far, all of them on the disk."""
        with self._told():
            os.fsync(self._file.fileno())
            return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MmlmError(f"{self.path}: cannot be written: {error.strerror}.") from error


def read_log(path: Path | str) -> list[dict[str, Any]]:
    """The lines of a log that are whole; a line that a killed run left half-written is not."""
    records = []
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            records.append(parse_json(line))
        except json.JSONDecodeError:
            break
    return records
