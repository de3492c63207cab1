"""Speech by the library of espeak-ng that the package espeakng-loader brings, where the program is not installed.

The library is one for the process: one text is spoken at a time. Source: espeak-ng, speak_lib.h, the calls named here.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from mmlm.base.errors import DataError, MissingExtra, require
from mmlm.data.audio_files import write_sound
from mmlm.sound import Sound

SYNCHRONOUS, BY_CHARACTERS, UTF8 = 2, 1, 1  # AUDIO_OUTPUT_SYNCHRONOUS, POS_CHARACTER, espeakCHARS_UTF8
_ONE_AT_A_TIME = Lock()
_Listener = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class EspeakLibrary:
    """espeak-ng in this process. Raises MissingExtra without the package, DataError where the library does not begin."""

    def __init__(self) -> None:
        loader = require("espeakng_loader", "phonemes")
        self.calls = ctypes.CDLL(loader.get_library_path())
        self.calls.espeak_Info.restype = ctypes.c_char_p
        self.heard: list[bytes] = []
        self.listener: Any = _Listener(self._hear)  # held, as the library keeps no hold of it
        self.rate_hz = self.calls.espeak_Initialize(SYNCHRONOUS, 0, os.fsencode(loader.get_data_path()), 0)
        if self.rate_hz <= 0:
            raise DataError(f"espeak-ng: the library of espeakng-loader does not begin (code {self.rate_hz}).")
        self.calls.espeak_SetSynthCallback(self.listener)

    def _hear(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self.heard.append(ctypes.string_at(samples, 2 * count))
        return 0

    @property
    def version(self) -> str:
        """Such as 1.52.0."""
        return str(self.calls.espeak_Info(None).decode()).split()[0]

    def has(self, voice: str) -> bool:
        """Whether it knows a voice, such as en-us or en-us+f3."""
        with _ONE_AT_A_TIME:
            return bool(self.calls.espeak_SetVoiceByName(voice.encode()) == 0)

    def speak(self, text: str, voice: str, path: Path) -> None:
        """Write a text as sound. Raises DataError for a voice that it does not know, or a text of which it makes nothing."""
        given = text.encode("utf-8").replace(b"\0", b" ")
        with _ONE_AT_A_TIME:
            if self.calls.espeak_SetVoiceByName(voice.encode()) != 0:
                raise DataError(f"espeak-ng: has no voice {voice!r}.")
            self.heard.clear()
            code = self.calls.espeak_Synth(given, len(given) + 1, 0, BY_CHARACTERS, 0, UTF8, None, None)
            code = code or self.calls.espeak_Synchronize()
            wave_n = np.frombuffer(b"".join(self.heard), dtype=np.int16).astype(np.float32) / 32768
        if code or not len(wave_n):
            raise DataError(f"espeak-ng: made nothing of {text[:60]!r} with the voice {voice} (code {code}).")
        write_sound(path, Sound(wave_n, self.rate_hz))


@functools.cache
def espeak_library() -> EspeakLibrary:
    """The library, begun once. Raises MissingExtra with both ways to have espeak-ng."""
    try:
        return EspeakLibrary()
    except MissingExtra as error:
        raise MissingExtra(f"the program espeak-ng is not installed (apt-get install espeak-ng); in its place: {error}") from None
