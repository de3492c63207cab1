"""Prompts of the telephone system Asterisk with their texts, as Debian installs them: five languages, four professional voices.

English and Spanish have one speaker. Tones, silences, screams and recordings without a text are left out; notes in brackets are taken
out of the texts, as the voice does not say them.
"""

from __future__ import annotations

import gzip
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from mmlm.base.errors import DataError
from mmlm.data.config import AsteriskConfig
from mmlm.data.speech import Utterance
from mmlm.data.speech_check import files_below
from mmlm.data.speech_source import SpeechSource

logger = logging.getLogger(__name__)

SOUNDS = Path("/usr/share/asterisk/sounds")
DOCS = Path("/usr/share/doc")
NOTE = re.compile(r"\[[^\]]*\]|\([^)]*\)|<[^>]*>")
NAMES = {"en": {"#": " pound ", "*": " star "}}  # of signs that the English texts write and the voice says
TONES = {"beep", "beeperr", "ascending-2tone", "descending-2tone", "confbridge-join", "confbridge-leave", "tt-monkeys"}


class Asterisk(SpeechSource):
    """The prompts of some languages. Raises DataError with the command that installs what is missing."""

    def __init__(self, config: AsteriskConfig) -> None:
        missing = [language for language in config.languages if _folder(language) is None]
        if missing:
            packages = " ".join(f"asterisk-core-sounds-{language} asterisk-core-sounds-{language}-g722" for language in missing)
            raise DataError(
                f"asterisk: the prompts in {', '.join(missing)} are not installed. Install them with: apt-get install {packages}"
            )
        found = [each for language in dict.fromkeys(config.languages) for each in _prompts(language)]
        super().__init__(config, f"asterisk, {', '.join(config.languages)}", found)


def _folder(language: str) -> Path | None:
    """Where the prompts of a language lie, a folder such as en_US_f_Allison."""
    found = sorted(path for path in SOUNDS.glob(f"{language}_*_*_*") if any(path.glob("*.g722")))
    return found[0] if found else None


def _prompts(language: str) -> Iterator[Utterance]:
    folder = _folder(language)
    assert folder is not None
    list_file, texts = _texts(language)
    speaker = folder.name.rpartition("_")[2]
    for path in files_below(folder, [".g722"]):
        name = path.relative_to(folder).with_suffix("").as_posix()
        number, raw = texts.get(name, (0, ""))
        text = spoken(raw, language)
        if not text or name in TONES or name.startswith("silence/") or path.stat().st_size == 0:
            logger.debug("asterisk: %s is left out: no speech, or no text.", path)
            continue
        yield Utterance(f"{language}/{name}", f"{list_file}, line {number}", path, text=text, speaker=speaker, language=language)


def _texts(language: str) -> tuple[Path, dict[str, tuple[int, str]]]:
    """(the list, name of a prompt -> its line and text)."""
    package = f"asterisk-core-sounds-{language}"
    path = DOCS / package / f"core-sounds-{language}.txt.gz"
    if not path.is_file():
        raise DataError(
            f"asterisk: {path}, the texts of the prompts, is missing. Install it with: apt-get install --reinstall "
            f"-o Dpkg::Options::=--path-include={DOCS}/{package}/* {package}"
        )
    found = {}
    for number, line in enumerate(gzip.decompress(path.read_bytes()).decode("utf-8-sig").splitlines(), 1):
        name, colon, text = line.partition(":")
        if colon and not line.startswith(";"):
            found[name.strip()] = (number, text.strip())
    return path, found


def spoken(text: str, language: str) -> str:
    """A text without notes in brackets and with names for signs; empty where nothing is said."""
    text = NOTE.sub(" ", text)
    for sign, name in NAMES.get(language, {}).items():
        text = text.replace(sign, name)
    text = re.sub(r"\s+([.,;:!?])", r"\1", " ".join(text.split()))
    return text if re.search(r"\w", text) else ""
