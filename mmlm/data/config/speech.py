"""Configs of the sources of recorded and made speech. Imports no torch and no numpy."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from mmlm.data.config.base import SOURCES, Held, PartedConfig, true_path

PROGRAMS = ("espeak-ng", "flite")
TABLES = ("metadata.csv", "metadata.tsv", "metadata.txt")  # of the texts of a folder


class SpeechConfig(PartedConfig):
    """What every source of speech has: which recordings count, how they are trimmed, which are never trained on."""

    gives: ClassVar[str] = "speech"
    languages: list[str] | None = Field(None, min_length=1, description="only recordings in these languages")
    speakers: list[str] | None = Field(None, min_length=1, description="only recordings of these speakers")
    needs_text: bool = Field(False, description="recordings without a text are left out")
    min_seconds: float = Field(0.1, gt=0, description="shorter recordings are left out")
    max_seconds: float = Field(30.0, gt=0, description="longer recordings are left out")
    trim_silence: bool = Field(False, description="leave out what is silent before and after the speech")
    trim_level_db: float = Field(40.0, gt=0, le=100, description="what lies so far below the loudest 20 ms is silent")
    trim_margin_seconds: float = Field(0.1, ge=0, description="silence that stays on both sides")
    max_clipped: float = Field(0.01, ge=0, le=1, description="a recording with a larger share of samples at full scale is bad")
    on_bad: Literal["stop", "skip"] = Field("stop", description="recordings that cannot be used: told as an error | listed and left out")
    keep_hz: int | None = Field(
        None, ge=1000, description="at this rate sounds are decoded once and kept, in 16 bits, in the user's cache folder; null: never"
    )
    split_by: Literal["text", "utterance", "speaker"] = Field(
        "text", description="what is never in two parts: equal texts | the recording alone (few texts said often) | a speaker"
    )

    @model_validator(mode="after")
    def _some_lengths_fit(self) -> SpeechConfig:
        if self.min_seconds >= self.max_seconds:
            raise ValueError(f"min_seconds ({self.min_seconds:g}) must be below max_seconds ({self.max_seconds:g})")
        return self

    def without_effect(self) -> dict[str, str]:
        """Of trimming and splitting, what has nothing to act on."""
        idle = {} if self.trim_silence else dict.fromkeys(("trim_level_db", "trim_margin_seconds"), "trim_silence is false")
        if not self.hold_out and not self.validate_share:
            idle["split_by"] = "hold_out and validate_share are 0"
        return idle

    def _told_apart(self, what: str) -> str:
        """What the source holds, with the filters that let two sources share a file."""
        only = "; ".join(f"{key} {', '.join(sorted(names))}" for key, names in self._filters().items())
        return f"{what} ({only})" if only else what

    def _filters(self) -> dict[str, list[str]]:
        filters = {"languages": self.languages, "speakers": self.speakers}
        return {key: names for key, names in filters.items() if names}

    def _held(self, kind: str, names: Iterable[str], *, below: bool = False) -> Held:
        """Recordings by the names of where they are, of the languages and speakers that are taken alone."""
        return Held(kind, frozenset(names), below, {key: frozenset(values) for key, values in self._filters().items()})


@SOURCES.register("mmlm.data.speech_files:SpeechManifest", source="files of your own")
class SpeechManifestConfig(SpeechConfig):
    """Recordings listed in a .jsonl file, one object a line: audio (path relative to the list), and where known text, speaker, language,
    id, start and end (seconds within the file), channel, rate_hz and seconds (compared with the file); other keys become labels."""

    type: Literal["speech_manifest"] = "speech_manifest"
    path: str = Field(description="the list: .jsonl or .jsonl.gz")
    keys: dict[str, str] = Field({}, description="names that the list uses for these keys, such as {audio: file, language: lang}")

    def holds(self) -> str:
        """The list, and what of it."""
        return self._told_apart(f"the recordings in {true_path(self.path)}")

    def held(self) -> Held:
        """See `Held`."""
        return self._held("recordings", [true_path(self.path)])


@SOURCES.register("mmlm.data.speech_files:SpeechFolder", source="files of your own; metadata files as in LJSpeech and Common Voice")
class SpeechFolderConfig(SpeechConfig):
    """Recordings in a folder and those below it, with their texts in files beside them, in one table, or without texts."""

    type: Literal["speech_folder"] = "speech_folder"
    path: str = Field(description="the folder")
    texts: Literal["auto", "table", "beside", "none"] = Field(
        "auto", description="metadata.csv or .tsv (file|text, or with a header) | x.txt beside x.wav | none; auto: the first that is there"
    )
    speaker_from: Literal["table", "folder"] = Field(
        "table", description="a speaker is named in the table | by the first folder below path"
    )
    language: str = Field("", description="the language of all recordings, where the table names none")

    def holds(self) -> str:
        """The folder, and what of it."""
        return self._told_apart(f"the recordings in {true_path(self.path)}")

    def held(self) -> Held:
        """A table names some of the recordings below a folder; without one all are taken."""
        has_table = any(os.path.isfile(os.path.join(self.path, name)) for name in TABLES)
        return self._held("recordings", [true_path(self.path)], below=self.texts in ("beside", "none") or not has_table)


@SOURCES.register(
    "mmlm.data.asterisk:Asterisk", source="prompts of the telephone system Asterisk, Debian asterisk-core-sounds, CC BY(-SA) 3.0"
)
class AsteriskConfig(SpeechConfig):
    """Prompts of a telephone system, read by one professional voice a language, 16 kHz, 23 to 29 minutes each, with their texts."""

    type: Literal["asterisk"] = "asterisk"
    languages: list[Literal["en", "es", "fr", "it", "ru"]] = Field(["en"], min_length=1, description="which of en, es, fr, it, ru")  # type: ignore[assignment]

    def holds(self) -> str:
        """The languages."""
        return self._told_apart("the prompts of asterisk")

    def held(self) -> Held:
        """See `Held`."""
        return self._held("prompts", ["asterisk"])


@SOURCES.register("mmlm.data.synthesized:Synthesized", source="the programs espeak-ng and flite")
class SynthesizedConfig(SpeechConfig):
    """Sentences spoken by a speech synthesizer that is installed; every record says that it is made. Each voice speaks each sentence."""

    type: Literal["synthesized"] = "synthesized"
    path: str | None = Field(None, description="a text file with a sentence a line")
    sentences: list[str] = Field([], description="sentences, in place of a file or with it")
    max_sentences: int | None = Field(None, ge=1, description="only so many of them, from the first on")
    voices: list[str] = Field(
        ["espeak-ng:en-us", "flite:slt"], min_length=1, description="program:voice, such as espeak-ng:fr, espeak-ng:en-us+f3 or flite:awb"
    )

    @field_validator("voices")
    @classmethod
    def _known_programs(cls, voices: list[str]) -> list[str]:
        for voice in voices:
            program, colon, name = voice.partition(":")
            if program not in PROGRAMS or not colon or not name or not name.replace("-", "").replace("+", "").replace("_", "").isalnum():
                raise ValueError(f"a voice is written program:voice with the program {' or '.join(PROGRAMS)}, but this is {voice!r}")
        return voices

    @model_validator(mode="after")
    def _has_sentences(self) -> SynthesizedConfig:
        if self.path is None and not self.sentences:
            raise ValueError("write path, a file with a sentence a line, or sentences, a list of them")
        return self

    def holds(self) -> str:
        """Where the sentences come from."""
        return self._told_apart(f"the sentences of {true_path(self.path) if self.path else self.sentences[:3]}")

    def held(self) -> Held:
        """The file, and each sentence by itself."""
        return self._held("sentences", [*([true_path(self.path)] if self.path else []), *(text.strip() for text in self.sentences)])
