"""Files that are there whole or not at all, whatever stops the process, even where what is written is read from the file itself; and JSON,
strict in what is written and wary of what somebody else wrote."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmlm.base.errors import CheckpointError


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
    """The same of a text in UTF-8. Halves of characters, as names of files in another encoding hold them, are written as escapes such as
    \\udce9, which JSON has too: a run that meets such a name goes on."""
    write_whole(path, [text.encode(errors="backslashreplace")])


def beside(path: Path, ending: str) -> Path:
    """Where what is made of a file or folder goes by default: `a/b.wav` and `.new.wav` give `a/b.new.wav`, the folder `a/b.c` and `.new`
    give `a/b.c.new`. The current folder, ".", and ".." are taken by their names."""
    whole = path if path.name not in ("", "..") else path.resolve()
    return whole.with_name(f"{whole.name if path.is_dir() else whole.stem}{ending}")


def user_cache_folder() -> Path:
    """The folder for what can be made again: $XDG_CACHE_HOME/mmlm, else ~/.cache/mmlm."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmlm"


def is_hub_id(name: str) -> bool:
    """Whether a name that is no file or folder here may be looked for on the hub, as owner/name. Where its first part is a folder here, or
    `runs`, in which runs lie, a path is meant that is not there: nobody else's model is fetched in its place."""
    owner = name.partition("/")[0]
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None and owner != "runs" and not Path(owner).is_dir()


MOST_DIGITS = 300  # of a whole number, so that each is a float too


def parse_json(text: str | bytes, **hooks: Any) -> Any:
    """What a JSON text says. hooks: those of json.loads. Raises json.JSONDecodeError, a ValueError, whatever is wrong with the text.

    json.loads has other errors for bytes that are no text, for long numbers and for brackets within brackets.
    """
    try:
        return json.loads(text, **{"parse_int": _whole_number, **hooks})
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", "", 0) from None
    except ValueError as error:
        raise json.JSONDecodeError(str(error), "", 0) from None


def _whole_number(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a whole number of {len(text)} digits")
    return int(text)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError where there is none."""
    try:
        found = parse_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{path}: no such file.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not JSON: {getattr(error, 'strerror', None) or error}.") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: must hold one object.")
    return found


def without_nan(value: Any) -> Any:
    """A value of JSON with null in place of all numbers that are not finite, since JSON has none."""
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
