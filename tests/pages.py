"""Pages of documentation as tests read them: the commands they show, and how one is followed from top to bottom.

A how-to holds fenced blocks. `sh`: commands, run in their order. `yaml FILE`: keys that the reader sets in FILE. `json FILE`, `text FILE`:
lines that FILE, which the test has made, must hold. `python`: run, the names of earlier blocks being known. Other blocks show output.
"""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmlm import cli
from mmlm.base import yaml

FENCE = re.compile(r"^```(\w*)(?: (\S+))?\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: its language, the file that it is about, its lines."""

    kind: str
    file: str | None
    text: str


def blocks(page: str) -> list[Block]:
    return [Block(kind, file or None, text) for kind, file, text in FENCE.findall(page)]


def words_of(lines: Iterable[str]) -> list[list[str]]:
    """Each command line as words, without its comment."""
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def commands(page: str) -> list[list[str]]:
    """Every mmlm command of a page, indented or fenced, without the program's name."""
    fenced = [line for block in blocks(page) if block.kind == "sh" for line in block.text.splitlines()]
    indented = [line for line in page.splitlines() if line.startswith("    mmlm ")]
    return [words[1:] for words in words_of([*indented, *fenced]) if words[0] == "mmlm"]


def parsed(words: Sequence[str]) -> Any:
    """The arguments of a command, as its verb takes them. Raises RecipeError for what it does not take."""
    verb, *rest = words
    parser = cli.Parser(prog=verb, allow_abbrev=False)
    importlib.import_module(f"mmlm.cli.{cli.VERBS[verb].module}").options(parser)
    return parser.parse_intermixed_args(rest)


def follow(page: str, more: Callable[[list[str]], list[str]], capsys: Any) -> dict[str, str]:
    """Do what a page says, in the current folder. more: what is added to a command, to make it small. Returns what each command printed."""
    known: dict[str, Any] = {}
    said: dict[str, str] = {}
    for block in blocks(page):
        if block.kind == "sh":
            for words in words_of(block.text.splitlines()):
                said[" ".join(words)] = _run(words, more, capsys)
        elif block.kind == "yaml" and block.file:
            _edit(Path(block.file), yaml.parse(block.text, block.file))
        elif block.file:
            held = Path(block.file).read_text(encoding="utf-8").splitlines()
            assert set(block.text.splitlines()) <= set(held), f"{block.file} is not as the page shows it"
        elif block.kind == "python":
            exec(compile(block.text, "page", "exec"), known)
    return said


def _run(words: list[str], more: Callable[[list[str]], list[str]], capsys: Any) -> str:
    program, *rest = [word for word in words if word != "&"]
    if program != "mmlm":
        assert program == "curl", f"{program}: no program that a page may call"
        return subprocess.run([program, "--fail", *rest], check=True, capture_output=True, text=True, timeout=60).stdout
    capsys.readouterr()
    code = cli.main([*rest, *more(rest)])
    out, err = capsys.readouterr()
    assert code == 0, f"mmlm {' '.join(rest)}: {err}"
    return str(out)


def _edit(file: Path, keys: Mapping[str, Any]) -> None:
    """Set the keys in a recipe that is there, or begin it."""
    held = yaml.parse(file.read_text(encoding="utf-8"), str(file)) if file.is_file() else {}
    file.write_text(yaml.dump(_merged(held, keys)), encoding="utf-8")


def _merged(held: Any, keys: Any) -> Any:
    """Sections key by key; another component, a list or a value takes the place of what was there."""
    if not isinstance(held, dict) or not isinstance(keys, dict) or held.get("type") != keys.get("type", held.get("type")):
        return keys
    return held | {key: _merged(held.get(key), value) for key, value in keys.items()}
