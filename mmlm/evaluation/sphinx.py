"""pocketsphinx as a recognizer, whose model is in its package: free English poorly, words of a grammar well (digits, commands)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from mmlm.base.errors import DataError, require
from mmlm.sound import Sound
from mmlm.tokenizers.spoken_numbers import ONES

RATE_HZ = 16_000
SHORTEST = 1600  # samples; in less nothing is heard
QUIET, HISS = 3200, 1e-3  # samples around a sound, so that its first and last word are whole; zeros there make it understand nothing


class Sphinx:
    """Sounds to texts. grammar: JSGF; None for free English."""

    def __init__(self, grammar: str | None = None) -> None:
        package = require("pocketsphinx", "speech")
        self.name = "pocketsphinx en-us, " + ("a grammar" if grammar else "free English")
        settings = {"hmm": package.get_model_path("en-us/en-us"), "dict": package.get_model_path("en-us/cmudict-en-us.dict")}
        model = None if grammar else package.get_model_path("en-us/en-us.lm.bin")
        self.decoder = package.Decoder(**settings, lm=model, loglevel="FATAL", samprate=float(RATE_HZ))
        if grammar:
            try:
                self.decoder.add_jsgf_string("grammar", grammar)
                self.decoder.activate_search("grammar")
            except (RuntimeError, ValueError, KeyError) as error:
                raise DataError(f"not a JSGF grammar of known words: {error}. It began with {grammar[:60]!r}.") from None

    def transcribe(self, sounds: Sequence[Sound]) -> list[str]:
        """What is said in each sound; an empty text where nothing is understood."""
        return [self._heard(sound) for sound in sounds]

    def _heard(self, sound: Sound) -> str:
        wave_n = sound.at(RATE_HZ).wave_n
        if len(wave_n) < SHORTEST:
            return ""
        hiss_n = np.random.default_rng(0).normal(0, HISS, len(wave_n) + 2 * QUIET)
        samples_n = np.clip((np.pad(wave_n, QUIET) + hiss_n) * 32768, -32768, 32767).astype(np.int16)
        self.decoder.start_utt()
        self.decoder.process_raw(samples_n.tobytes(), no_search=False, full_utt=True)
        self.decoder.end_utt()
        found = self.decoder.hyp()
        return found.hypstr if found is not None else ""


def phrases_grammar(phrases: Iterable[str], *, is_repeated: bool = False) -> str:
    """A JSGF grammar of phrases: one of them, or several after each other."""
    options = " | ".join(phrase.lower() for phrase in phrases)
    return f"#JSGF V1.0;\ngrammar phrases;\npublic <phrases> = ( {options} ){'+' if is_repeated else ''};\n"


def digits_grammar(*, is_repeated: bool = False) -> str:
    """A JSGF grammar of one digit from zero to nine, or several."""
    return phrases_grammar(ONES[:10], is_repeated=is_repeated)
