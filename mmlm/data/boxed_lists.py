"""A list of boxes with pictures in archives, made into a list that the source picture_manifest reads.

    python -m mmlm.data.boxed_lists FOLDER OUTPUT

FOLDER holds boxes.jsonl, lines of {"image": name, "boxes": [[class, x1, y1, x2, y2], ...]}, and the pictures in .tar files. OUTPUT gets
the pictures and pictures.jsonl; a box without extent is left out and told in the log. An archive is refused that holds what is no ordinary
file, what would lie outside OUTPUT, a name twice, in other letter case too, or far more than its size.
"""

from __future__ import annotations

import json
import logging
import sys
import tarfile
import zlib
from pathlib import Path

from mmlm.base.errors import DataError, MmlmError
from mmlm.base.files import parse_json, write_text_whole, write_whole
from mmlm.data.listed import check_unpacked, numbered_lines

logger = logging.getLogger(__name__)

LIST, MADE = "boxes.jsonl", "pictures.jsonl"


def write_pictures(folder: Path, output: Path) -> Path:
    """Unpack the pictures of a folder and write their list; returns it. Raises DataError naming file and line."""
    output.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    for archive in sorted(folder.glob("*.tar")):
        size = 0
        try:
            with tarfile.open(archive) as held:
                for member in held:
                    size += member.size
                    check_unpacked(archive, size)
                    _unpack(held, member, archive, output, seen)
        except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{archive}: cannot be unpacked: {error}.") from None
    lines = []
    for number, line in numbered_lines(folder / LIST):
        try:
            raw = parse_json(line)
            boxes = [(str(label), tuple(map(float, box))) for label, *box in raw["boxes"]]
            flat = [box for _, (x1, y1, x2, y2) in boxes if x1 == x2 or y1 == y2 for box in [(x1, y1, x2, y2)]]
            name = str(raw["image"])
        except (ValueError, KeyError, TypeError) as error:
            form = "{image, boxes: [[class, x1, y1, x2, y2], ...]}"
            raise DataError(f"{folder / LIST}, line {number}: must be {form} ({type(error).__name__}: {error}).") from None
        if not (output / name).is_file():
            raise DataError(f"{folder / LIST}, line {number}: {name} is in no archive beside the list.")
        if flat:
            logger.warning("%s, line %d: boxes without extent are left out: %s.", folder / LIST, number, flat)
        things = [{"label": label, "box": list(box)} for label, box in boxes if box not in flat]
        lines.append(json.dumps({"image": name, "things": things}))
    write_text_whole(output / MADE, "\n".join(lines) + "\n")
    return output / MADE


def _unpack(held: tarfile.TarFile, member: tarfile.TarInfo, archive: Path, output: Path, seen: set[str]) -> None:
    """Write one file of an archive; folders are made for files alone. Raises DataError for anything else, for a file elsewhere, and for a
    name that was seen before."""
    if member.isdir():
        return
    path = (output / member.name).resolve()
    content = held.extractfile(member) if member.isfile() else None
    if content is None or output.resolve() not in path.parents:
        raise DataError(f"{archive}: {member.name} is no ordinary file inside the folder that it is unpacked to.")
    key = path.relative_to(output.resolve()).as_posix().casefold()
    if key in seen:
        raise DataError(f"{archive}: {member.name} occurs twice.")
    seen.add(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, [content.read()])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        write_pictures(Path(sys.argv[1]), Path(sys.argv[2]))
    except MmlmError as error:
        sys.exit(str(error))
