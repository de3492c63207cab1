"""Values of inputs and outputs as words of a command line and as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mmlm.analysis.drawing import write_png
from mmlm.base.errors import DataError
from mmlm.base.files import write_text_whole
from mmlm.data.audio_files import read_sound, write_sound
from mmlm.data.picture_files import ENDINGS, read_picture
from mmlm.data.speech_check import files_below
from mmlm.data.sweep_source import read_ahead
from mmlm.data.table_reader import read_table
from mmlm.serving.values import to_json
from mmlm.tasks.forms import Audio, Field, Flag, Image, Number, Part, Pictures, Points, Table

FLAGS = {"yes": True, "true": True, "no": False, "false": False}


def from_word(field: Field, name: str, word: str) -> Any:
    """What a word of a command line says: a number, yes or no, a box, a text, or the path of a sound, picture, folder of pictures, sweep or
    table. Raises DataError."""
    if isinstance(field, Number):
        try:
            return float(word)
        except ValueError:
            raise DataError(f"{name}: must be a number, but is {word[:40]!r}.") from None
    if isinstance(field, Flag):
        if word not in FLAGS:
            raise DataError(f"{name}: must be one of {', '.join(FLAGS)}, but is {word[:40]!r}.")
        return FLAGS[word]
    if isinstance(field, Part):
        try:
            left, top, right, bottom = map(float, word.split(","))
            return [left, top, right, bottom]
        except ValueError:
            raise DataError(f"{name}: must be LEFT,TOP,RIGHT,BOTTOM in pixels, but is {word[:40]!r}.") from None
    if isinstance(field, Audio):
        return read_sound(word)
    if isinstance(field, Image):
        return read_picture(word)
    if isinstance(field, Pictures):
        return [read_picture(path) for path in (files_below(Path(word), ENDINGS) if Path(word).is_dir() else [Path(word)])]
    if isinstance(field, Points):
        return read_ahead(Path(word))
    if isinstance(field, Table):
        table = read_table(Path(word))
        columns = {name: table.texts(name) for name in table.names}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return word


def write_value(field: Field, value: Any, path: Path) -> Path:
    """Write a value of an output beside others; returns the file, whose ending says what it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(field, Audio):
        target = path.with_suffix(".wav")
        write_sound(target, value)
    elif isinstance(field, Image):
        target = path.with_suffix(".png")
        write_png(target, value)
    elif isinstance(field, Pictures):
        target = path
        target.mkdir(exist_ok=True)
        for number, one in enumerate(value, 1):
            write_png(target / f"{number}.png", one)
    elif isinstance(value, np.ndarray):
        target = path.with_suffix(".npy")
        np.save(target, value)
    elif isinstance(value, str):
        target = path.with_suffix(".txt")
        write_text_whole(target, value + "\n")
    else:
        target = path.with_suffix(".json")
        write_text_whole(target, json.dumps(to_json(value), indent=1, ensure_ascii=False) + "\n")
    return target
