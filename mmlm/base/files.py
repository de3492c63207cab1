"""Files that are there whole or not at all, whatever stops the process, even where what is written is read from the file itself."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def write_whole(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write beside a path, flush to the disk, and rename. Raises OSError; then the file before is as it was."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text_whole(path: Path, text: str) -> None:
    """The same of a text in UTF-8."""
    write_whole(path, [text.encode()])
