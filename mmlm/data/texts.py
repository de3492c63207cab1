"""Texts to learn to write: files of one's own, and what every Python brings along.

A document longer than PIECE characters is kept in pieces, cut where a paragraph or line ends. A drawn passage begins at an even place of
all text and goes on with whole other documents where its own ends early, so that short ones fill a sample together.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from mmlm.base.errors import DataError
from mmlm.base.files import parse_json
from mmlm.data.base import Parted
from mmlm.data.config import PythonDocsConfig, TextFilesConfig
from mmlm.data.episodes import find_file
from mmlm.data.speech_check import files_below

PIECE = 50_000
ENDINGS = (".txt", ".md", ".jsonl")
PARTS = {"train": range(18), "valid": range(18, 19), "test": range(19, 20)}  # of every 20 documents
SHORTEST = 1500  # characters; modules with less to say are left out


@dataclass(frozen=True)
class Part:
    """Some text of a document. begins, ends: nothing of the document comes before, or after."""

    text: str
    begins: bool = True
    ends: bool = True
    name: str = ""


@dataclass(frozen=True)
class Passage:
    """What is read together, each part a document of its own. is_whole: everything in it is measured, however long it is."""

    parts: list[Part]
    is_whole: bool = False


class Texts:
    """Passages from documents. where: what they are, in messages. Raises DataError where there is no text."""

    def __init__(self, parts: Sequence[Part], where: str) -> None:
        self.parts, self.where = [part for part in parts if part.text], where
        if not self.parts:
            raise DataError(f"{where}: holds no text.")
        self.ends = np.cumsum([len(part.text) for part in self.parts])

    def draw(self, rng: np.random.Generator, asks: int) -> Passage:
        """`asks` characters, if there are as many: from an even place to the end of the part, then other parts from their start.

        The place is moved behind the next white space within reach, so that no word is cut.
        """
        at = int(np.searchsorted(self.ends, int(rng.integers(self.ends[-1])), side="right"))
        first = self.parts[at]
        start = int(rng.integers(max(1, len(first.text) - asks + 1)))
        space = re.compile(r"\s\S").search(first.text, start, start + 200) if start else None
        start = space.start() + 1 if space else start
        found = [_slice(first, start, asks)]
        length = len(found[0].text)
        while length < asks and len(found) < len(self.parts):
            found.append(_slice(self.parts[int(rng.integers(len(self.parts)))], 0, asks - length))
            length += len(found[-1].text)
        return Passage(found)

    def everything(self) -> list[Passage]:
        """Each part by itself."""
        return [Passage([part], is_whole=True) for part in self.parts]


def _slice(part: Part, start: int, length: int) -> Part:
    """Some characters of a part."""
    stop = start + length
    return Part(part.text[start:stop], part.begins and start == 0, part.ends and stop >= len(part.text), part.name)


class TextFiles(Parted, Texts):
    """Passages from files, but for the texts that are held out or kept back. Which these are depends on the number of pieces alone; a text
    that stands there several times is always where it is first."""

    part = Texts

    def __init__(self, config: TextFilesConfig) -> None:
        path = find_file(config.path)
        pieces = [piece for part in read_texts(path, config.field) for piece in cut(part)]
        drawn, first = np.random.default_rng(len(pieces)).permutation(len(pieces)), dict[str, int]()
        place = [drawn[first.setdefault(piece.text, at)] for at, piece in enumerate(pieces)]
        borders = [0, *np.rint(np.cumsum([config.hold_out, config.validate_share]) * len(pieces)), len(pieces)]
        *self.groups, trained = [
            [piece for piece, at in zip(pieces, place, strict=True) if low <= at < high] for low, high in pairwise(borders)
        ]
        for key, share, group in zip(("hold_out", "validate_share"), (config.hold_out, config.validate_share), self.groups, strict=True):
            if share and not group:
                count = f"{len(pieces)} text{'s' if len(pieces) != 1 else ''}"
                raise DataError(f"{path}: {key}: {share:g} of {count} is none (a long text counts for {PIECE:,} characters); raise it.")
        super().__init__(trained, str(path))


class PythonDocs(Texts):
    """Passages from the help topics of Python and the docstrings of its library; documents are dealt to the splits in turn."""

    def __init__(self, config: PythonDocsConfig) -> None:
        chosen = [document for place, document in enumerate(_python_docs()) if (7 * place) % 20 in PARTS[config.split]]
        super().__init__([piece for document in chosen for piece in cut(document)], f"python_docs, {config.split} split")


def read_texts(path: Path, field: str) -> list[Part]:
    """The documents in a file, or in all files of the known endings below a folder that are not hidden.

    Raises DataError naming file and line for what is no UTF-8, no JSON, or has no text under `field`.
    """
    files = [path]
    if path.is_dir():
        files = files_below(path, ENDINGS)
        if not files:
            raise DataError(f"{path}: no file below this folder ends in {', '.join(ENDINGS)}.")
    elif path.suffix.lower() not in ENDINGS:
        raise DataError(f"{path}: must end in {', '.join(ENDINGS)}, or be a folder with such files.")
    found = [part for file in files for part in _read(file, field)]
    if not any(part.text for part in found):
        raise DataError(f"{path}: holds no text.")
    return found


def _read(file: Path, field: str) -> Iterator[Part]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not UTF-8 text (byte {error.start}).") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}.") from None
    if file.suffix.lower() != ".jsonl":
        yield Part(text, name=str(file))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            record = parse_json(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: is not JSON: {error.msg}.") from None
        if not isinstance(record, dict) or field not in record:
            known = f" It has {', '.join(map(repr, list(record)[:8])) or 'no key'}." if isinstance(record, dict) else ""
            raise DataError(f"{where}: must be an object with the key {field!r} (field in the source).{known}")
        if not isinstance(record[field], str):
            raise DataError(f"{where}: {field!r} must be a text, but is {json.dumps(record[field])[:60]}.")
        yield Part(record[field], name=where)


def cut(part: Part) -> list[Part]:
    """A document as pieces of at most PIECE characters, cut after an empty line, else after a line, else anywhere."""
    text, pieces, start = part.text, [], 0
    while len(text) - start > PIECE:
        stop = start + PIECE
        for mark in ("\n\n", "\n"):
            place = text.rfind(mark, start + PIECE // 2, stop)
            if place >= 0:
                stop = place + len(mark)
                break
        pieces.append(text[start:stop])
        start = stop
    pieces.append(text[start:])
    last = len(pieces) - 1
    return [Part(piece, part.begins and not at, part.ends and at == last, part.name) for at, piece in enumerate(pieces)]


@functools.lru_cache(maxsize=1)
def _python_docs() -> list[Part]:
    return [*_topics(), *_docstrings()]


def _topics() -> list[Part]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError("python_docs: this Python comes without pydoc_data; install its full standard library.") from None
    return [Part(text, name=f"help topic {name}") for name, text in sorted(topics.items())]


def _docstrings() -> Iterator[Part]:
    """The docstrings of every module at the top of the standard library, as one document a module; short modules are left out."""
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        texts = list(docstrings(file.read_text(encoding="utf-8", errors="replace")))
        text = "\n\n".join(texts)
        if len(text) >= SHORTEST:
            yield Part(f"{file.stem}\n\n{text}\n", name=f"module {file.stem}")


def docstrings(code: str) -> Iterator[str]:
    """The docstrings of a module, its classes and functions, in their order."""
    todo: list[ast.AST] = [ast.parse(code)]
    while todo:
        node = todo.pop()
        if (text := ast.get_docstring(node)) is not None:  # type: ignore[arg-type]
            yield text
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        todo += [each for each in reversed(node.body) if isinstance(each, kinds)]  # type: ignore[attr-defined]
