"""Independent judges of what a model lets one hear: each measures the model's sounds, those of baselines, what was given, and the truth.

A judge whose package is missing is left out and named in the log, unless the recipe asks for it. What a judge cannot measure of a record
(no text, no true sound, silence) is left out of its mean; how many it did measure is told beside the figures.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from mmlm.base.errors import DataError, MissingExtra, require
from mmlm.evaluation.config import EvaluateConfig
from mmlm.evaluation.speaker import SpeakerEncoder, speaker_similarity
from mmlm.evaluation.speech_quality import DNSMOS_INSTALL, dnsmos, pesq, si_sdr, stoi
from mmlm.evaluation.speech_style import has_style
from mmlm.evaluation.speech_text import normalized, text_errors
from mmlm.evaluation.whisper import Whisper
from mmlm.sound import Sound, librosa
from mmlm.tasks.base import GIVEN, TRUE, Heard

logger = logging.getLogger(__name__)

MODEL = "model"
LONGEST_SHIFT = 0.05  # seconds by which a sound and the true one may differ in length and still be compared sample by sample
Found = tuple[dict[str, float], int]


class Judge(Protocol):
    """One judge. needs_true: it compares with the true sound, so that there is nothing to say of that sound itself."""

    needs_true: bool

    def __call__(self, sounds: Sequence[Sound], heard: Sequence[Heard]) -> Found:
        """(figures by name, of how many records) of a sound for each record; no figures where none can be measured."""


class Words:
    """wer, cer: what a Whisper misunderstands, of records with a text in a language that it knows; English where none is told."""

    needs_true = False

    def __init__(self, config: EvaluateConfig) -> None:
        require("jiwer", "judges")
        self.whisper = Whisper(config.whisper)

    def __call__(self, sounds: Sequence[Sound], heard: Sequence[Heard]) -> Found:
        """See `Judge`. All languages together."""
        places: dict[str, list[int]] = {}
        for at, one in enumerate(heard):
            language = (one.language or "en").partition("-")[0].lower()
            if one.text and self.whisper.knows(language) and normalized(one.text, language):
                places.setdefault(language, []).append(at)
        errors = []
        for language, some in places.items():
            said = self.whisper.transcribe([sounds[at] for at in some], language)
            errors.append(text_errors([heard[at].text for at in some], said, language))
        if not errors:
            return {}, 0
        words, characters = sum(each.words for each in errors), sum(each.characters for each in errors)
        wer, cer = sum(each.wer * each.words for each in errors) / words, sum(each.cer * each.characters for each in errors) / characters
        return {"wer": wer, "cer": cer}, sum(each.clips for each in errors)


class Voice:
    """speaker_similarity: cosine of the voice with that of the true sound."""

    needs_true = True

    def __init__(self, config: EvaluateConfig) -> None:
        librosa()
        self.encoder = SpeakerEncoder()

    def __call__(self, sounds: Sequence[Sound], heard: Sequence[Heard]) -> Found:
        """See `Judge`."""
        pairs = [(sound, one.true) for sound, one in zip(sounds, heard, strict=True) if one.true is not None]
        pairs = [(sound, true) for sound, true in pairs if sound.wave_n.any() and true.wave_n.any()]
        if not pairs:
            return {}, 0
        return {"speaker_similarity": float(speaker_similarity(self.encoder, *zip(*pairs, strict=True)).mean())}, len(pairs)


class Style:
    """style_pitch, style_tempo, style_loudness: of records that ask for a style, how many have the level; style: the mean of these. Chance
    is a third."""

    needs_true = True

    def __init__(self, config: EvaluateConfig) -> None:
        librosa()

    def __call__(self, sounds: Sequence[Sound], heard: Sequence[Heard]) -> Found:
        """See `Judge`."""
        hits: dict[str, list[bool]] = {}
        count = 0
        for sound, one in zip(sounds, heard, strict=True):
            if one.style and one.true is not None and len(sound.wave_n):
                count += 1
                for name, hit in has_style(sound, one.true, one.style).items():
                    hits.setdefault(f"style_{name}", []).append(hit)
        found = {name: float(np.mean(values)) for name, values in hits.items()}
        return ({"style": float(np.mean(list(found.values()))), **found} if found else {}), count


class Paired:
    """A measure that compares sample by sample, of records whose sound is aligned with the true one."""

    needs_true = True

    def __init__(self, name: str, measure: Callable[[Sound, Sound], float | None], package: str | None) -> None:
        if package is not None:
            require(package, "judges")
        self.name, self.measure = name, measure

    def __call__(self, sounds: Sequence[Sound], heard: Sequence[Heard]) -> Found:
        """See `Judge`."""
        values = [
            self.measure(sound, one.true)
            for sound, one in zip(sounds, heard, strict=True)
            if one.true is not None and one.is_aligned and abs(sound.seconds - one.true.seconds) <= LONGEST_SHIFT
        ]
        kept = [value for value in values if value is not None and np.isfinite(value)]
        return ({self.name: float(np.mean(kept))}, len(kept)) if kept else ({}, 0)


class Dnsmos:
    """dnsmos_ovrl, dnsmos_sig, dnsmos_bak: what listeners would say, guessed without the true sound."""

    needs_true = False

    def __init__(self, config: EvaluateConfig) -> None:
        try:
            require("speechmos.dnsmos", "judges")
        except MissingExtra as error:
            raise MissingExtra(f"{error} DNSMOS needs: {DNSMOS_INSTALL}") from None

    def __call__(self, sounds: Sequence[Sound], heard: Sequence[Heard]) -> Found:
        """See `Judge`."""
        rows = [dnsmos(sound) for sound in sounds]
        return {f"dnsmos_{key}": float(np.mean([row[key] for row in rows])) for key in ("ovrl", "sig", "bak")}, len(rows)


BUILDERS: dict[str, Callable[[EvaluateConfig], Judge]] = {
    "words": Words,
    "voice": Voice,
    "style": Style,
    "pesq": lambda config: Paired("pesq", pesq, "pesq"),
    "stoi": lambda config: Paired("stoi", stoi, "pystoi"),
    "si_sdr": lambda config: Paired("si_sdr", _si_sdr, None),
    "dnsmos": Dnsmos,
}


@dataclass
class Verdict:
    """values: {who: {metric: value}}, the model first.   about: how many sounds, of how many each judge could say something of the model,
    and which recognizer counted words.   players: the first sounds, each as what is said, {who: sound}, and what the task tells of it."""

    values: dict[str, dict[str, float]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    players: list[tuple[str, dict[str, Sound], Heard]] = field(default_factory=list)


class Judges:
    """The judges of a recipe. Raises MissingExtra for one that the recipe names and that is not installed."""

    def __init__(self, config: EvaluateConfig) -> None:
        self.config = config
        self.judges: dict[str, Judge] = {}
        missing = []
        for name in config.judges if config.judges is not None else BUILDERS:
            try:
                self.judges[name] = BUILDERS[name](config)
            except MissingExtra as error:
                if config.judges is not None:
                    raise
                missing.append(f"  {name}: {error}")
        if missing:
            logger.warning("judges that are not installed measure nothing:\n%s", "\n".join(missing))

    @property
    def passes(self) -> int:
        """How often `judge` calls its tick for the records."""
        return len(self.judges)

    def judge(self, heard: Sequence[Heard], baselines: dict[str, list[Sound]], titles: Sequence[str], tick: Callable[[], None]) -> Verdict:
        """All judges on all voices of some records: the model, what was given, each baseline, the truth. tick: called after each judge."""
        for name, sounds in baselines.items():
            if len(sounds) != len(heard):
                raise DataError(f"the baseline {name!r} made {len(sounds)} sounds of {len(heard)} records.")
        found = Verdict(about={"sounds": len(heard), "measured": {}})
        voices: dict[str, Sequence[Sound | None]] = {MODEL: [one.made for one in heard], GIVEN: [one.given for one in heard]}
        voices.update(baselines)
        voices[TRUE] = [one.true for one in heard]
        for name, judge in self.judges.items():
            for who, voice in voices.items():
                pairs = [(sound, one) for sound, one in zip(voice, heard, strict=True) if sound is not None]
                if not pairs or judge.needs_true and who == TRUE:
                    continue
                values, count = judge([sound for sound, _ in pairs], [one for _, one in pairs])
                found.values.setdefault(who, {}).update(values)
                if who == MODEL:
                    found.about["measured"][name] = count
            tick()
        if isinstance(words := self.judges.get("words"), Words):
            found.about["recognizer"] = words.whisper.name
        for at, title in enumerate(titles[: self.config.num_players]):
            played = {who: sound for who, voice in voices.items() if (sound := voice[at]) is not None}
            found.players.append((title, played, heard[at]))
        return found


def _si_sdr(sound: Sound, reference: Sound) -> float | None:
    return si_sdr(sound, reference) if sound.wave_n.any() and reference.wave_n.any() else None
