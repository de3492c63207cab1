"""Recordings of one's own: listed in a .jsonl file, or in a folder with their texts beside them or in a table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmlm.base.errors import DataError, nearest
from mmlm.base.files import parse_json
from mmlm.data.audio_files import ENDINGS
from mmlm.data.config import SpeechFolderConfig, SpeechManifestConfig
from mmlm.data.config.speech import TABLES
from mmlm.data.episodes import find_file
from mmlm.data.listed import Bad, numbered_lines
from mmlm.data.speech import Utterance
from mmlm.data.speech_check import files_below
from mmlm.data.speech_source import SpeechSource

KEYS = ("audio", "text", "speaker", "language", "id", "start", "end", "channel", "rate_hz", "seconds")
COLUMNS = {
    "audio": ("audio", "file", "file_name", "filename", "path", "wav"),
    "text": ("text", "sentence", "transcription", "transcript", "normalized_text"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "language": ("language", "lang", "locale"),
}


class SpeechManifest(SpeechSource):
    """The recordings of a list. Raises DataError for a list that cannot be read; `bad` holds the lines that cannot be used."""

    def __init__(self, config: SpeechManifestConfig) -> None:
        path = find_file(config.path)
        for key in config.keys:
            if key not in KEYS:
                raise DataError(f"keys: {key!r} is none of the keys of a list.{nearest(key, KEYS)} Known: {', '.join(KEYS)}.")
        super().__init__(config, str(path), read_manifest(path, config.keys))


class SpeechFolder(SpeechSource):
    """The recordings of a folder. Raises DataError for a folder without any, and for a table or texts that are asked for and not there."""

    def __init__(self, config: SpeechFolderConfig) -> None:
        path = find_file(config.path)
        if not path.is_dir():
            raise DataError(f"{path}: is not a folder.")
        super().__init__(config, str(path), _read_folder(path, config))


def read_manifest(path: Path, names: Mapping[str, str]) -> Iterator[Utterance | Bad]:
    """The utterance of each line, or what is wrong with it. names: key of ours to the key that the list uses."""
    ours: dict[str, str] = {names.get(key, key): key for key in KEYS}
    first: dict[str, int] = {}
    for number, line in numbered_lines(path):
        where = f"{path}, line {number}"
        try:
            raw = parse_json(line)
        except json.JSONDecodeError as error:
            yield Bad(where, f"is not JSON: {error.msg}.")
            continue
        if not isinstance(raw, dict):
            yield Bad(where, f"must be an object with the key {names.get('audio', 'audio')!r}, but is {line.strip()[:60]}.")
            continue
        record = {ours.get(key) or str(key): value for key, value in raw.items() if key in ours or key not in KEYS}
        if fault := _line_fault(record, names):
            yield Bad(where, fault)
            continue
        found = _utterance(record, path.parent, where)
        if found.id in first:
            yield Bad(where, f"has the id {found.id!r} of line {first[found.id]}.")
            continue
        first[found.id] = number
        yield found


_NUMBER = ((int, float), "a number of seconds, 0 or more")
_KINDS: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(("audio", "text", "speaker", "language"), ((str,), "a text")),
    "id": ((str, int), "a text or a whole number"),
    **dict.fromkeys(("start", "end", "seconds"), _NUMBER),
    "channel": ((int,), "a whole number, counted from 0"),
    "rate_hz": ((int,), "a whole number of Hz"),
}


def _line_fault(record: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """What is wrong with a line, or nothing. null stands for a key that is not there."""
    if record.get("audio") in (None, ""):
        name = names.get("audio", "audio")
        return (
            f"has no {name!r}, the file of the sound.{nearest(name, record)} It has {', '.join(map(repr, list(record)[:8])) or 'no key'}."
        )
    for key, (kinds, want) in _KINDS.items():
        value = record.get(key)
        is_kind = isinstance(value, kinds) and not isinstance(value, bool)
        if value is not None and (not is_kind or isinstance(value, int | float) and not 0 <= value < float("inf")):
            return f"{names.get(key, key)!r} must be {want}, but is {json.dumps(value)[:60]}."
    if record.get("end") is not None and record["end"] <= (record.get("start") or 0):
        return f"ends at {record['end']:g} s, which is not after its start at {record.get('start') or 0:g} s."
    return ""


def _utterance(record: Mapping[str, Any], folder: Path, where: str) -> Utterance:
    start, end = record.get("start") or 0, record.get("end")
    part = f" {start:g}-{'' if end is None else format(end, 'g')}" if start or end is not None else ""
    given = {key: value for key, value in record.items() if value is not None}
    return Utterance(
        id=str(given.get("id", f"{record['audio']}{part}")),
        where=where,
        path=folder / record["audio"],
        start_seconds=float(start),
        end_seconds=None if end is None else float(end),
        channel=record.get("channel"),
        text=(record.get("text") or "").strip(),
        speaker=record.get("speaker") or "",
        language=record.get("language") or "",
        labels={key: value for key, value in given.items() if key not in KEYS[:8]},
    )


def _read_folder(folder: Path, config: SpeechFolderConfig) -> Iterator[Utterance | Bad]:
    files = files_below(folder, ENDINGS)
    if not files:
        raise DataError(f"{folder}: no file below this folder ends in {', '.join(ENDINGS)}.")
    table = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    is_beside = any(path.with_suffix(".txt").is_file() for path in files)
    kind = config.texts
    if kind == "auto":
        kind = "table" if table is not None else "beside" if is_beside else "none"
    if kind == "table":
        if table is None:
            raise DataError(f"{folder}: texts: table: there is none of {', '.join(TABLES)}.")
        yield from _from_table(folder, files, table, config)
        return
    if kind == "beside" and not is_beside:
        raise DataError(
            f"{folder}: texts: beside: no recording has a .txt file of its name beside it, such as {files[0].with_suffix('.txt')}."
        )
    for path in files:
        text = ""
        if kind == "beside":
            try:
                text = path.with_suffix(".txt").read_text(encoding="utf-8-sig").strip()
            except FileNotFoundError:
                yield Bad(str(path), f"has no text: {path.with_suffix('.txt').name} is missing.")
                continue
            except (OSError, UnicodeDecodeError) as error:
                yield Bad(str(path), f"its text cannot be read: {error}.")
                continue
        yield _of_file(folder, path, str(path), config, {"text": text})


def _of_file(folder: Path, path: Path, where: str, config: SpeechFolderConfig, known: Mapping[str, str]) -> Utterance:
    inside = path.relative_to(folder)
    speaker = (inside.parts[0] if len(inside.parts) > 1 else "") if config.speaker_from == "folder" else known.get("speaker", "")
    language = known.get("language") or config.language
    labels = {key: value for key, value in known.items() if key not in COLUMNS}
    return Utterance(inside.as_posix(), where, path, text=known.get("text", ""), speaker=speaker, language=language, labels=labels)


def _from_table(folder: Path, files: list[Path], table: Path, config: SpeechFolderConfig) -> Iterator[Utterance | Bad]:
    """The recordings that a table names. A file is named with or without its folder and its ending."""
    by_name: dict[str, list[Path]] = {}
    for path in files:
        inside = path.relative_to(folder)
        for name in {inside.as_posix(), inside.with_suffix("").as_posix(), path.name, path.stem}:
            by_name.setdefault(name, []).append(path)
    seen: dict[Path, int] = {}
    for number, known in _rows(table):
        where = f"{table}, line {number}"
        matches = by_name.get(known["audio"].removeprefix("./"), [])
        if len(matches) != 1:
            several = (
                f"{len(matches)} files are named so below {folder}: {', '.join(str(path.relative_to(folder)) for path in matches[:3])}"
            )
            yield Bad(where, f"{known['audio']!r}: {several if matches else f'no such file below {folder}'}.")
        elif matches[0] in seen:
            yield Bad(where, f"{known['audio']!r} is named in line {seen[matches[0]]} already.")
        else:
            seen[matches[0]] = number
            yield _of_file(folder, matches[0], where, config, {key: value for key, value in known.items() if key != "audio"})


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, what the columns say) of each row. Without a header the first column names the file and the last that is filled is the text.

    Columns are apart by | if the first line has one, else by a tab, else by a comma. Raises DataError.
    """
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table}: cannot be read as UTF-8 text: {error}.") from None
    first = text.partition("\n")[0]
    mark = next((mark for mark in ("|", "\t") if mark in first), ",")
    reader = csv.reader(io.StringIO(text), delimiter=mark, quoting=csv.QUOTE_MINIMAL if mark == "," else csv.QUOTE_NONE)
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise DataError(f"{table}, line {reader.line_num}: {error}.") from None
    names: list[str] = []
    for number, row in rows:
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if number == 1 and {cell.lower() for cell in cells} & {*COLUMNS["audio"], *COLUMNS["text"]}:
            names = [next((ours for ours, theirs in COLUMNS.items() if cell.lower() in theirs), cell) for cell in cells]
            if "audio" not in names:
                raise DataError(f"{table}: no column names the file: {', '.join(cells)}. It is called {' or '.join(COLUMNS['audio'])}.")
            continue
        if names:
            yield number, {name: cell for name, cell in zip(names, cells, strict=False) if cell or name == "audio"}
        else:
            yield number, {"audio": cells[0], "text": next((cell for cell in reversed(cells[1:]) if cell), "")}
