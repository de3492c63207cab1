"""One run folder, one process.

The lock is a POSIX record lock: the kernel releases it when its process ends, however it ends, so a stale lock does not exist; and it is
not inherited by the loader's processes, which may outlive a killed run by some seconds.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from types import TracebackType

from mmlm.base.errors import RecipeError
from mmlm.base.files import parse_json

LOCK = ".lock"
_held: set[tuple[int, int]] = set()  # (device, inode) of the locks of this process, which record locks do not keep apart


class RunLock:
    """Holds a run folder while its context is open. Raises RecipeError that names the process which holds it already."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._descriptor = -1

    def __enter__(self) -> RunLock:
        while True:
            if self._place() in _held:
                raise self._refusal(f"this process ({os.getpid()})")  # to read the file here would release its lock
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                raise self._refusal(self._owner()) from None
            place = os.fstat(descriptor).st_dev, os.fstat(descriptor).st_ino
            if place == self._place():
                break
            os.close(descriptor)  # its owner removed the file between our open and our lock
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({"process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}).encode() + b"\n")
        _held.add(place)
        self._descriptor = descriptor
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        place = os.fstat(self._descriptor).st_dev, os.fstat(self._descriptor).st_ino
        if self._place() == place:
            self.path.unlink()
        os.close(self._descriptor)
        _held.discard(place)

    def _place(self) -> tuple[int, int] | None:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _owner(self) -> str:
        try:
            owner = parse_json(self.path.read_text())
            return f"process {owner['process']}, since {owner['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    def _refusal(self, who: str) -> RecipeError:
        return RecipeError(f"{self.path.parent}: is in use by {who}. Wait for it, stop it, or choose another `output`.")
