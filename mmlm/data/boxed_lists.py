"""A list of boxes with pictures in archives, made into a list that the source picture_manifest reads.

    python -m mmlm.data.boxed_lists FOLDER OUTPUT

FOLDER holds boxes.jsonl, lines of {"image": name, "boxes": [[class, x1, y1, x2, y2], ...]}, and the pictures in .tar files. OUTPUT gets the
pictures and pictures.jsonl. What is no ordinary file of an archive, or would lie outside OUTPUT, is refused.
"""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path

from mmlm.base.errors import DataError, MmlmError
from mmlm.base.files import write_text_whole
from mmlm.data.listed import numbered_lines

LIST, MADE = "boxes.jsonl", "pictures.jsonl"


def write_pictures(folder: Path, output: Path) -> Path:
    """Unpack the pictures of a folder and write their list; returns it. Raises DataError naming file and line."""
    output.mkdir(parents=True, exist_ok=True)
    for archive in sorted(folder.glob("*.tar")):
        try:
            with tarfile.open(archive) as held:
                held.extractall(output, filter="data")
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"{archive}: cannot be unpacked: {error}.") from None
    lines = []
    for number, line in numbered_lines(folder / LIST):
        try:
            raw = json.loads(line)
            things = [{"label": str(label), "box": [float(value) for value in box]} for label, *box in raw["boxes"]]
            name = str(raw["image"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{folder / LIST}, line {number}: must be {{image, boxes: [[class, x1, y1, x2, y2], ...]}} ({type(error).__name__}: {error})."
            ) from None
        if not (output / name).is_file():
            raise DataError(f"{folder / LIST}, line {number}: {name} is in no archive beside the list.")
        lines.append(json.dumps({"image": name, "things": things}))
    write_text_whole(output / MADE, "\n".join(lines) + "\n")
    return output / MADE


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        write_pictures(Path(sys.argv[1]), Path(sys.argv[2]))
    except MmlmError as error:
        sys.exit(str(error))
