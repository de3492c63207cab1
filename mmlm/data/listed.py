"""What sources of one's own files share: lines of a list, and what of it cannot be used."""

from __future__ import annotations

import gzip
import io
import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmlm.base.errors import DataError

logger = logging.getLogger(__name__)

BOMB_BYTES, BOMB_RATIO = 50 << 20, 200  # beyond both, what a packed file unpacks to is not read
MOST_UNPACKED_BYTES = 1 << 30
SHOWN_BAD = 20  # things that cannot be used which a message lists


@dataclass(frozen=True)
class Bad:
    """A recording or picture that cannot be used. where: file and line. why: what was found."""

    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


def tell(bad: Sequence[Bad], total: int, things: str, where: str, on_bad: str) -> None:
    """Say which of so many things cannot be used: as a DataError (stop) or in the log (skip)."""
    if not bad:
        return
    count = f"{len(bad)} of {total} {things} cannot be used"
    lines = [f"  {each}" for each in bad[:SHOWN_BAD]]
    lines += [f"  ... and {len(bad) - SHOWN_BAD} more."] if len(bad) > SHOWN_BAD else []
    if on_bad == "stop":
        raise DataError("\n".join([f"{where}: {count}; on_bad: skip goes on without them.", *lines]))
    logger.warning("%s: %s and are left out:\n%s", where, count, "\n".join(lines))


def check_unpacked(path: Path, size: int) -> None:
    """Raises DataError where so many bytes are far more than a packed file can mean."""
    if size > MOST_UNPACKED_BYTES or size > max(BOMB_BYTES, BOMB_RATIO * path.stat().st_size):
        raise DataError(f"{path}: unpacks to {size:,} bytes or more, far more than its {path.stat().st_size:,}; it is not read.")


def _unpacked(path: Path) -> bytes:
    found = bytearray()
    with gzip.open(path) as file:
        while part := file.read(1 << 20):
            found += part
            check_unpacked(path, len(found))
    return bytes(found)


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """(number from 1 on, line) of a text in UTF-8, also packed as .gz, without empty ones. Raises DataError."""
    try:
        packed = io.BytesIO(_unpacked(path)) if path.suffix == ".gz" else path.open("rb")
        with io.TextIOWrapper(packed, encoding="utf-8-sig") as file:
            return [(number, line) for number, line in enumerate(file, 1) if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start}).") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}.") from None
