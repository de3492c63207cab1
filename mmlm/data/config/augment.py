"""Configs of what is done to clean sound: changes of time and pitch, rooms, noise, and damage on the way. Imports no torch and no numpy.

A range is two numbers; each use draws a value evenly between them.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from mmlm.base.registry import Component, Registry
from mmlm.data.config.base import SOURCES

AUGMENTATIONS = Registry("augmentation", "mmlm.augmentations")
NOISES = Registry("noise", "mmlm.noises")


def _ordered(bounds: list[float]) -> list[float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"a range is [low, high], but {bounds[0]:g} is above {bounds[1]:g}")
    return bounds


def _positive(bounds: list[float]) -> list[float]:
    if bounds[0] <= 0:
        raise ValueError(f"a range of values above 0, but it begins at {bounds[0]:g}")
    return _ordered(bounds)


def _share(bounds: list[float]) -> list[float]:
    if not 0 <= bounds[0] <= 1 or not 0 <= bounds[1] <= 1:
        raise ValueError(f"a range within 0 to 1, but it is {bounds[0]:g} to {bounds[1]:g}")
    return _ordered(bounds)


_Two = Field(min_length=2, max_length=2)
Range = Annotated[list[float], _Two, AfterValidator(_ordered)]
PositiveRange = Annotated[list[float], _Two, AfterValidator(_positive)]
ShareRange = Annotated[list[float], _Two, AfterValidator(_share)]


class AugmentationConfig(Component):
    """What every augmentation has. keeps_time: what comes out is aligned with what went in, sample by sample."""

    keeps_time: ClassVar[bool] = True
    chance: float = Field(1.0, ge=0, le=1, description="how often it is done")


@AUGMENTATIONS.register("mmlm.data.audio_time:TimeStretch", source="phase vocoder, Flanagan & Golden 1966; Laroche & Dolson 1999")
class TimeStretchConfig(AugmentationConfig):
    """Faster or slower at the same pitch; the length becomes length / rate."""

    keeps_time: ClassVar[bool] = False
    type: Literal["time_stretch"] = "time_stretch"
    rate: PositiveRange = Field([0.8, 1.2], description="speed; above 1 is faster")


@AUGMENTATIONS.register("mmlm.data.audio_time:PitchShift", source="phase vocoder and resampling, Laroche & Dolson 1999")
class PitchShiftConfig(AugmentationConfig):
    """Higher or lower at the same length, formants included."""

    keeps_time: ClassVar[bool] = False
    type: Literal["pitch_shift"] = "pitch_shift"
    semitones: Range = Field([-4.0, 4.0], description="above 0 is higher")


@AUGMENTATIONS.register("mmlm.data.audio_rooms:Room", source="image sources, Allen & Berkley 1979; decaying noise, Polack 1988")
class RoomConfig(AugmentationConfig):
    """Reverberation of a room. The direct sound stays where it was: delay 0, gain 1."""

    type: Literal["room"] = "room"
    kind: Literal["decay", "simulated", "measured"] = Field(
        "decay",
        description="decaying noise | a box with image sources (pyroomacoustics) and a diffuse tail | impulse responses of a folder",
    )
    rt60: PositiveRange = Field([0.2, 0.6], description="seconds in which the sound falls by 60 dB")
    direct_db: Range = Field([0.0, 10.0], description="energy of the direct sound over all that follows")
    path: str | None = Field(None, description="folder of impulse responses; those that its index.jsonl calls rir, else all its sounds")

    @model_validator(mode="after")
    def _has_a_folder(self) -> RoomConfig:
        if self.kind == "measured" and self.path is None:
            raise ValueError("kind: measured needs path, a folder with impulse responses")
        return self

    def without_effect(self) -> dict[str, str]:
        """A measured room is as it is, and a simulated one has the direct sound that its places give."""
        idle = {"path": f"kind is {self.kind}"} if self.kind != "measured" else {"rt60": "kind is measured"}
        return idle if self.kind == "decay" else {**idle, "direct_db": f"kind is {self.kind}"}


class NoiseSourceConfig(Component):
    """What every noise has."""

    weight: float = Field(1.0, gt=0, description="how often it is chosen, relative to the others")


@NOISES.register("mmlm.data.audio_noise:GeneratedNoise", source="power spectra of 1, 1/f and 1/f^2; mains hum with harmonics")
class GeneratedNoiseConfig(NoiseSourceConfig):
    """Noise from a formula."""

    type: Literal["generated"] = "generated"
    kinds: list[Literal["white", "pink", "brown", "hum"]] = Field(
        ["white", "pink", "brown", "hum"], min_length=1, description="which; hum is 50 or 60 Hz with its harmonics"
    )


@NOISES.register("mmlm.data.audio_noise:NoiseFolder", source="recordings of your own")
class NoiseFolderConfig(NoiseSourceConfig):
    """Recorded noise in a folder: the files that its index.jsonl calls noise, by label, else all its sounds, by the folder or file name."""

    type: Literal["noise_folder"] = "noise_folder"
    path: str = Field(description="the folder")
    kinds: list[str] | None = Field(None, min_length=1, description="only these labels; numbers at their ends do not count")
    hold_out: float = Field(0.0, ge=0, lt=1, description="share of the labels that is used by part: held_out alone")
    part: Literal["trained", "held_out"] = Field("trained", description="noises to train with | noises that training never hears")

    @model_validator(mode="after")
    def _part_is_there(self) -> NoiseFolderConfig:
        if self.part == "held_out" and not self.hold_out:
            raise ValueError("part: held_out needs hold_out above 0")
        return self


@NOISES.register("mmlm.data.audio_noise:Keyboard", source="recorded keys of a Model M, Debian bucklespring-data, GPL-2+")
class KeyboardConfig(NoiseSourceConfig):
    """Somebody types."""

    type: Literal["keyboard"] = "keyboard"
    keys_per_second: PositiveRange = Field([2.0, 8.0], description="how fast")


@NOISES.register("mmlm.data.audio_noise:Babble", source="other people's speech, summed at equal level")
class BabbleConfig(NoiseSourceConfig):
    """Several people talk at once."""

    type: Literal["babble"] = "babble"
    speech: SOURCES.choice = Field(
        description="whose speech: a source such as {type: asterisk, languages: [fr, it]}; its training part is used"
    )
    min_voices: int = Field(3, ge=1, description="fewest that talk")
    max_voices: int = Field(6, ge=1, description="most that talk")

    @model_validator(mode="after")
    def _speech_is_spoken(self) -> BabbleConfig:
        if (gives := getattr(self.speech, "gives", None)) != "speech":
            raise ValueError(f"speech: {self.speech.type!r} gives {gives}, not speech")
        if self.min_voices > self.max_voices:
            raise ValueError(f"min_voices ({self.min_voices}) must be at most max_voices ({self.max_voices})")
        return self


@AUGMENTATIONS.register("mmlm.data.audio_noise:AddNoise", source="additive noise at a signal-to-noise ratio")
class AddNoiseConfig(AugmentationConfig):
    """Noise beneath the sound."""

    type: Literal["add_noise"] = "add_noise"
    noises: list[NOISES.choice] = Field([GeneratedNoiseConfig()], min_length=1, description="what kinds; one is chosen by weight")
    snr_db: Range = Field([-5.0, 20.0], description="power of the sound over that of the noise, both over the whole clip")


@AUGMENTATIONS.register("mmlm.data.audio_augment:Gain", source="a factor")
class GainConfig(AugmentationConfig):
    """Louder or quieter."""

    type: Literal["gain"] = "gain"
    gain_db: Range = Field([-12.0, 6.0], description="above 0 is louder; nothing is driven beyond full scale")


@AUGMENTATIONS.register("mmlm.data.audio_augment:BandLimit", source="zero-phase filter in the frequency domain")
class BandLimitConfig(AugmentationConfig):
    """Low and high frequencies are cut away."""

    type: Literal["band_limit"] = "band_limit"
    low_hz: Range = Field([0.0, 300.0], description="what lies below is cut")
    high_hz: PositiveRange = Field([2000.0, 7000.0], description="what lies above is cut")


@AUGMENTATIONS.register("mmlm.data.audio_augment:Telephone", source="telephone band of ITU-T G.712 and mu-law of ITU-T G.711")
class TelephoneConfig(AugmentationConfig):
    """The band of a telephone, 300 to 3400 Hz, in 8 bits of mu-law."""

    type: Literal["telephone"] = "telephone"


@AUGMENTATIONS.register("mmlm.data.audio_augment:Clip", source="hard limit")
class ClipConfig(AugmentationConfig):
    """Too loud for the microphone: peaks are cut off."""

    type: Literal["clip"] = "clip"
    level: ShareRange = Field([0.1, 0.7], description="height at which peaks are cut, as a share of the highest")


@AUGMENTATIONS.register("mmlm.data.audio_augment:PacketLoss", source="two-state loss model, Gilbert 1960")
class PacketLossConfig(AugmentationConfig):
    """Packets of a call get lost."""

    type: Literal["packet_loss"] = "packet_loss"
    rate: ShareRange = Field([0.02, 0.2], description="share of packets that is lost")
    burst: float = Field(2.0, ge=1, description="packets lost in a row, on average")
    packet_seconds: float = Field(0.02, gt=0, le=0.2, description="length of a packet")
    fill: Literal["silence", "repeat"] = Field("silence", description="what is heard in its place: nothing | the packet before it, fading")
