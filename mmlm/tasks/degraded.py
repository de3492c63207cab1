"""What tasks share that mend degraded speech: pairs of clean and degraded sound, what has to be beaten, and what is shown to people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmlm.data.audio_augment import Degrade, Made
from mmlm.data.audio_files import write_sound
from mmlm.data.config.augment import AugmentationConfig
from mmlm.data.speech import Utterance
from mmlm.sound import Sound
from mmlm.tasks.base import Heard
from mmlm.tasks.forms import Audio, Field, Values
from mmlm.tasks.recordings import RecordingsTask
from mmlm.tasks.spectral_gate import spectral_gate
from mmlm.training.order import derived

GATE = "spectral gate"


@dataclass(frozen=True)
class Enhanced:
    """A clean sound, what was done to it, and what a model made of that."""

    true: Sound
    given: Sound
    made: Sound


class DegradedSpeech(RecordingsTask):
    """Base of such tasks. While a run is trained, its records are degraded by `degrade`; in tests by `degrade_test`, if there is any."""

    def __init__(self, degrade: Sequence[AugmentationConfig], degrade_test: Sequence[AugmentationConfig] | None, rate_hz: int) -> None:
        self.rate_hz = rate_hz
        self.chain, self.test = Degrade(degrade), degrade_test

    def begin_tests(self) -> None:
        """From now on, records are degraded as in tests."""
        if self.test is not None:
            self.chain = Degrade(self.test)

    def pair(self, record: Utterance) -> tuple[Sound, Sound]:
        """A record, clean and degraded; how depends on its id and on nothing else."""
        clean, given, _ = self._degraded(record)
        return clean, given

    def _degraded(self, record: Utterance) -> tuple[Sound, Sound, list[Made]]:
        clean = record.sound(self.rate_hz)
        given, done = self.chain(clean, np.random.default_rng(derived("degraded", record.id, str(record.start_seconds))))
        return clean, given, done

    def predict(self, model: Any, records: Sequence[Utterance]) -> list[Any]:
        """An output for each record, with `true`, `given` and `made`."""
        raise NotImplementedError

    def heard(self, outputs: Sequence[Enhanced], records: Sequence[Utterance]) -> list[Heard]:
        """Clean, degraded, mended."""
        pairs = zip(outputs, records, strict=True)
        return [Heard(one.made, one.true, one.given, text=record.text, language=record.language) for one, record in pairs]

    def heard_baselines(self, records: Sequence[Utterance]) -> dict[str, list[Sound]]:
        """The spectral gate."""
        return {GATE: [spectral_gate(self.pair(record)[1]) for record in records]}

    def write_samples(self, model: Any, records: Sequence[Utterance], folder: Path) -> None:
        """Three files for each: as it was, degraded, mended."""
        for number, one in enumerate(self.predict(model, records), 1):
            for name in ("true", "given", "made"):
                write_sound(folder / f"{number}_{name}.wav", getattr(one, name))

    def shown(self, record: Utterance) -> str:
        """Its length, and what is done to it."""
        clean, _, done = self._degraded(record)
        return "\n".join([self.title(record), f"{clean.seconds:.2f} s", *map(_told, done)])

    def sounds(self, record: Utterance) -> list[Sound]:
        """Its sound, clean: what units are fitted on."""
        return [record.sound(self.rate_hz)]


def _told(made: Made) -> str:
    values = (f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in made.items() if key not in SILENT)
    return f"  {made['type']}: {', '.join(values)}"


SILENT = ("type", "seed")


class MendsSpeech(DegradedSpeech):
    """Base of those that mend a sound by themselves, which people ask for by hand."""

    def enhance(self, model: Any, sounds: Sequence[Sound]) -> list[Sound]:
        """Each sound, at `rate_hz`, as it should be, with as many samples."""
        raise NotImplementedError

    inputs: Mapping[str, Field] = {"audio": Audio("Noisy speech", "any rate; a minute at most", most_seconds=60)}
    outputs: Mapping[str, Field] = {"audio": Audio("Mended")}

    def given_by(self, record: Utterance) -> Values:
        """What was done to it."""
        return {"audio": self.pair(record)[1]}

    def answer(self, model: Any, given: Values) -> Iterator[Values]:
        """A sound, mended."""
        sound: Sound = given["audio"]
        (made,) = self.enhance(model, [sound.at(self.rate_hz)])
        yield {"audio": made.at(sound.rate_hz)}
