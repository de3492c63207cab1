"""Speech made by a synthesizer that is installed: espeak-ng or flite, run as programs; without the program espeak-ng, by the library that
the package espeakng-loader brings. What was spoken once is kept and spoken no more.

A file in the user's cache folder is named by program, version, voice and text. Every utterance says that it is made.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmlm.base.errors import DataError, unknown_name
from mmlm.base.files import user_cache_folder
from mmlm.data.config import SynthesizedConfig
from mmlm.data.episodes import find_file
from mmlm.data.espeak_library import espeak_library
from mmlm.data.listed import Bad
from mmlm.data.speech import Utterance
from mmlm.data.speech_source import SpeechSource

SECONDS = 60  # after which a program that speaks one sentence is given up


class Synthesized(SpeechSource):
    """Each sentence by each voice. Raises DataError with the command that installs a missing program, or with the voices that it has."""

    def __init__(self, config: SynthesizedConfig) -> None:
        sentences = [("sentences", number, text) for number, text in enumerate(config.sentences, 1)]
        if config.path is not None:
            path = find_file(config.path)
            try:
                lines = path.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{path}: cannot be read as UTF-8 text: {error}.") from None
            sentences = [(f"{path}, line", number, line) for number, line in enumerate(lines, 1)] + sentences
        sentences = [(where, number, text.strip()) for where, number, text in sentences if text.strip()][: config.max_sentences]
        if not sentences:
            raise DataError(f"synthesized: {config.path or 'sentences'}: holds no sentence.")
        for voice in config.voices:
            check_voice(voice)
        where = f"synthesized, {', '.join(config.voices)}, {config.path or 'sentences'}"
        super().__init__(config, where, _utterances(config.voices, sentences))


def _utterances(voices: Sequence[str], sentences: Sequence[tuple[str, int, str]]) -> Iterator[Utterance | Bad]:
    def made(voice: str, where: str, number: int, text: str) -> Utterance | Bad:
        try:
            path = speak(text, voice)
        except DataError as error:
            return Bad(f"{where} {number}", str(error))
        program, _, name = voice.partition(":")
        language = name.partition("+")[0].partition("-")[0] if program == "espeak-ng" else "en"
        labels = {"made_by": f"{program} {_version(program)}"}
        return Utterance(
            f"{voice}/{number} {text[:40]}",
            f"{where} {number}",
            path,
            text=text,
            speaker=voice,
            language=language,
            labels=labels,
        )

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        yield from pool.map(lambda each: made(*each), [(voice, *sentence) for voice in voices for sentence in sentences])


def check_voice(voice: str) -> None:
    """Raise DataError where the program of a voice is not installed, or has no such voice."""
    program, _, name = voice.partition(":")
    if _by_library(program):
        if not espeak_library().has(name):
            raise DataError(f"synthesized: espeak-ng has no voice {name!r}; its voices are languages such as en-us or fr, or en-us+f3.")
        return
    if shutil.which(program) is None:
        raise DataError(f"synthesized: the program {program} is not installed. Install it with: apt-get install {program}")
    if name not in (known := _voices(program)) and name.partition("+")[0] not in known:
        raise DataError(f"synthesized: {unknown_name(f'voice of {program}', name, known)}")


def _by_library(program: str) -> bool:
    """Whether a program is missing in whose place a library speaks."""
    return program == "espeak-ng" and shutil.which(program) is None


@functools.cache
def _voices(program: str) -> frozenset[str]:
    """The voices of a program; of espeak-ng the names of languages and of voice files, to which +f1 and the like may be added."""
    if program == "flite":
        return frozenset(_run(["flite", "-lv"]).partition(":")[2].split())
    rows = [line.split() for line in _run(["espeak-ng", "--voices"]).splitlines()[1:]]
    return frozenset(name for row in rows if len(row) > 4 for name in (row[1], row[4].rpartition("/")[2]))


@functools.cache
def _version(program: str) -> str:
    if _by_library(program):
        return espeak_library().version
    found = re.search(r"\d[\w.-]*", _run([program, "--version"]).replace("1999-2016", ""))  # the years of flite's copyright
    return found.group() if found else "unknown"


def _run(command: list[str], text: str = "") -> str:
    """What a program prints. Raises DataError where it fails."""
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=SECONDS, encoding="utf-8", errors="replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(f"{' '.join(command[:3])}: failed: {error}.") from None
    if done.returncode and "--version" not in command:
        raise DataError(
            f"{' '.join(command[:3])}: failed: {(done.stderr or done.stdout).strip()[-200:] or f'exit code {done.returncode}'}."
        )
    return done.stdout


def speak(text: str, voice: str) -> Path:
    """The .wav file of a text spoken by a voice, made unless it is there. Raises DataError where the program fails."""
    program, _, name = voice.partition(":")
    key = hashlib.blake2b("\0".join([program, _version(program), name, text]).encode(), digest_size=16).hexdigest()
    path = user_cache_folder() / "synthesized" / key[:2] / f"{key}.wav"
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made, said = Path(folder) / "made.wav", Path(folder) / "said.txt"
            said.write_text(text + "\n", encoding="utf-8")
            if _by_library(program):
                espeak_library().speak(text, name, made)
            elif program == "espeak-ng":
                _run(["espeak-ng", "-v", name, "-f", str(said), "-w", str(made)])
            else:
                _run(["flite", "-voice", name, "-f", str(said), "-o", str(made)])
            if not made.is_file():
                raise DataError(f"{program}: wrote nothing for {text[:60]!r} with the voice {name}.")
            os.replace(made, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}.") from None
    return path
