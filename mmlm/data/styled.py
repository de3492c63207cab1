"""Speech in styles, made of plain speech: each recording a few times, at other pitches, paces and levels, with instructions that ask so.

Nothing is written to disk: a recording keeps what is done to it, and its sound is changed whenever it is read.

Axes: n samples
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmlm.base.errors import DataError
from mmlm.data.audio_augment import HIGHEST
from mmlm.data.audio_time import shifted
from mmlm.data.config.styled import StyledSpeechConfig
from mmlm.data.dealing import place_of
from mmlm.data.instructions import instruction_of
from mmlm.data.speech import Speech, Utterance
from mmlm.sound import Sound

STEPS = {"low": -1, "slow": -1, "soft": -1, "plain": 0, "high": 1, "fast": 1, "loud": 1}


@dataclass(frozen=True)
class Styled:
    """What is done to a recording: so many semitones higher, `rate` times as fast, at a mean power of `level_db` of full scale."""

    semitones: float
    rate: float
    level_db: float

    def __call__(self, sound: Sound) -> Sound:
        """The changed sound. What would go beyond full scale is made less loud as a whole."""
        wave_n = sound.wave_n
        if self.semitones or self.rate != 1:
            wave_n = shifted(wave_n, self.semitones, sound.rate_hz, self.rate)
        power = float(np.mean(np.square(wave_n, dtype=np.float64))) if len(wave_n) else 0.0
        factor = 10 ** (self.level_db / 20) / np.sqrt(power) if power else 1.0
        peak = float(np.abs(wave_n).max(initial=0))
        return Sound(wave_n * np.float32(min(factor, HIGHEST / peak if peak else factor)), sound.rate_hz)


class StyledSpeech(Speech):
    """Recordings in styles. Labels: `style`, {attribute: level}; `style_steps`, {attribute: how far apart levels are}; `instructions`, a
    list.

    What the plain source holds out and keeps back is so in all styles. Raises DataError for a recording without a text.
    """

    def __init__(self, config: StyledSpeechConfig) -> None:
        plain, self.config = config.speech.build(), config
        self._plain_groups = [plain.held_out_records(), plain.kept_back()]
        super().__init__(list(_styled(plain.everything(), config)), f"{plain.where}, in styles")

    def held_out_records(self) -> Speech | None:
        """Those to measure on."""
        return self._of(self._plain_groups[0])

    def kept_back(self) -> Speech | None:
        """Those for validation."""
        return self._of(self._plain_groups[1])

    def _of(self, plain: Speech | None) -> Speech | None:
        return None if plain is None else Speech(list(_styled(plain.everything(), self.config)), self.where)


def change_of(style: Mapping[str, str], config: StyledSpeechConfig) -> Styled:
    """What makes a style of a plain recording."""
    pitch, tempo, loudness = (STEPS[style[name]] for name in ("pitch", "tempo", "loudness"))
    return Styled(config.semitones * pitch, config.rate**tempo, config.level_db + config.gain_db * loudness)


def asked_style(record: Utterance) -> dict[str, tuple[str, float]]:
    """{attribute: (level, how far apart its levels are)} of a record; empty where it is in no style that can be heard."""
    return {name: (record.labels["style"][name], step) for name, step in record.labels.get("style_steps", {}).items()}


def _styled(plain: Sequence[Utterance], config: StyledSpeechConfig) -> Iterator[Utterance]:
    """Each recording in styles that depend on its id and the seed alone."""
    styles = [dict(zip(config.levels, levels, strict=True)) for levels in itertools.product(*config.levels.values())]
    for each in plain:
        if not each.text:
            raise DataError(f"{each.where}: has no text, which an instruction would ask for; needs_text: true leaves such recordings out.")
        rng = np.random.default_rng([config.seed, int(place_of(each.id) * 2**53)])
        for place in rng.permutation(len(styles))[: config.copies]:
            style = styles[place]
            wordings = [instruction_of(each.text, style, rng) for _ in range(config.wordings)]
            labels = {**each.labels, "style": style, "style_steps": config.steps, "instructions": wordings}
            name = " ".join(style.values())
            yield replace(each, id=f"{each.id} ({name})", labels=labels, change=change_of(style, config), kept=None)
