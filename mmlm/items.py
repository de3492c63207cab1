"""What people name on a command line, as items of an encoder: files, rows of tables, texts and molecules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmlm.base.errors import DataError
from mmlm.data.audio_files import ENDINGS as SOUNDS
from mmlm.data.picture_files import ENDINGS as PICTURES
from mmlm.data.speech_check import files_below
from mmlm.data.table_reader import ENDINGS as TABLES
from mmlm.data.table_reader import read_table
from mmlm.embedding import Embedder, PictureEmbedder
from mmlm.encoders.vectors import Vectors
from mmlm.text_vectors import TextEmbedder


def named_items(encoder: Vectors, words: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Name and item for each word: files of sounds and pictures by their paths, all those below a folder by theirs, sorted, and molecules
    by their SMILES.

    An encoder of texts takes a table's rows, "FILE, row 1" and so on, the content of another file, and other words as they are.
    Raises DataError for a file that cannot be read as what it is, for a folder without files of a kind that the encoder reads, and for any
    folder where it reads texts.
    """
    for word in words:
        path = Path(word)
        if (endings := _endings(encoder)) and _is(Path.is_dir, path):
            paths = files_below(path, endings)
            if not paths:
                raise DataError(f"{path}: no file below this folder ends in {', '.join(endings)}.")
            yield from ((str(each), str(each)) for each in paths)
        elif isinstance(encoder, TextEmbedder) and _is(Path.is_dir, path):
            raise DataError(f"{path}: is a folder; name the files in it, or write the text otherwise.")
        elif not isinstance(encoder, TextEmbedder) or not _is(Path.is_file, path):
            yield word, word
        elif path.suffix.lower() in TABLES:
            for number, row in enumerate(_rows(path), 1):
                yield f"{word}, row {number}", row
        else:
            yield word, _text(path)


def query_vectors(encoder: Vectors, word: str) -> tuple[list[str], np.ndarray]:
    """Names and vectors [n, d] of what a query asks for: a file (a table gives its rows), all files below a folder, or a text.

    Raises DataError for a file that cannot be read, and RecipeError for a text where the encoder reads none.
    """
    if not _is(Path.exists, Path(word)) and isinstance(encoder, Embedder | PictureEmbedder):
        return [word], encoder.encode_texts([word])
    names, items = zip(*named_items(encoder, [word]), strict=True)
    return list(names), encoder.encode(items)


def _endings(encoder: Vectors) -> Sequence[str]:
    """Of the files that an encoder reads; of others nothing, as their items are no files."""
    return SOUNDS if isinstance(encoder, Embedder) else PICTURES if isinstance(encoder, PictureEmbedder) else ()


def _is(what: Callable[[Path], bool], path: Path) -> bool:
    try:
        return what(path)
    except OSError:  # a text may be longer than a name of a file can be
        return False


def _rows(path: Path) -> Iterator[dict[str, str | None]]:
    table = read_table(path)
    texts = {column.name: table.texts(column.name) for column in table.columns}
    for number in range(table.num_rows):
        yield {name: cells[number] for name, cells in texts.items()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a text: {error}.") from None
