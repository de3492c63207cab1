"""What was found in files, kept in the user's cache folder under their size and time of change: they are decoded the first time only."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

from mmlm.base.errors import DataError
from mmlm.base.files import parse_json, user_cache_folder, write_text_whole

logger = logging.getLogger(__name__)
Found = TypeVar("Found")


class Remembered(Generic[Found]):
    """What was found before in the files of one source. kind: a dataclass of plain values.   things: what the files hold, for messages.

    A file of the cache that cannot be read or written costs time, nothing else; one of another version is not read.
    """

    def __init__(self, kind: Callable[..., Found], folder: str, where: str, things: str, version: int) -> None:
        name = hashlib.blake2b(where.encode(), digest_size=12).hexdigest()
        self.path, self.things, self.version, self.is_changed = user_cache_folder() / folder / f"{name}.json", things, version, False
        self.found: dict[str, Found] = {}
        if not self.path.is_file():
            return
        try:
            held = parse_json(self.path.read_text(encoding="utf-8"))
            if held["version"] == version:
                self.found = {key: kind(**value) for key, value in held["found"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s is damaged (%r); the %s are looked at again.", self.path, error, things)

    def get(self, key: str) -> Found | None:
        """What was found under a key."""
        return self.found.get(key)

    def put(self, key: str, found: Found) -> None:
        """Keep it. Called by several threads: one assignment to a dict is whole."""
        self.found[key] = found
        self.is_changed = True

    def write(self) -> None:
        """The file, whole or not at all."""
        if not self.is_changed:
            return
        values: dict[str, Any] = dict(self.found)
        text = json.dumps({"version": self.version, "found": {key: asdict(value) for key, value in values.items()}})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text_whole(self.path, text)
        except OSError as error:
            logger.warning("%s cannot be written (%s); the %s will be looked at again next time.", self.path, error, self.things)


def key_of(path: Path, *more: Any) -> str:
    """Changes with the file, wherever it is looked at from, and with how it is looked at. Raises DataError without the file."""
    try:
        state = path.stat()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}.") from None
    return json.dumps([os.path.abspath(path), state.st_size, state.st_mtime_ns, *more])
