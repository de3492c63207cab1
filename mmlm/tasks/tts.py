"""Text to speech: what is learned of recordings with their texts, and texts as sound.

Axes: e entries   n units   t frames   u codebooks
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmlm.analysis.attention import attention_maps, most_focused
from mmlm.base.errors import DataError, RecipeError
from mmlm.base.files import write_text_whole
from mmlm.base.giving_up import as_told
from mmlm.data.audio_files import write_sound
from mmlm.data.speech import Utterance
from mmlm.data.spoken_entries import Entries, EntryTokens
from mmlm.data.styled import asked_style
from mmlm.data.token_shards import Progress, TokenShards, logged, tokens_of
from mmlm.model import MultimodalLM
from mmlm.model_config import ChannelConfig
from mmlm.sound import Sound
from mmlm.staged import Chunk, generate_staged
from mmlm.stream import Segment, Stream
from mmlm.tasks.base import RESYNTHESIS, Heard, UsualTask, tokenizer_of
from mmlm.tasks.config import TextToSpeechConfig
from mmlm.tasks.forms import ATTENTION, Audio, Field, Looks, Number, Text, Values, looks
from mmlm.tasks.tts_plan import Said, SpeechPlan
from mmlm.tasks.tts_stages import SPEECH, Writing
from mmlm.tasks.tts_text import STYLE, InstructionReader, PhonemeReader, TextReader
from mmlm.tokenizers.codec.base import Codec
from mmlm.tokenizers.codec.streaming import StreamingDecoder
from mmlm.tokenizers.phonemes import PhonemeTokenizer
from mmlm.tokenizers.prosody import Prosody
from mmlm.tokenizers.text import TextTokenizer
from mmlm.tokenizers.units import UnitTokenizer, dedup

TEXTS_AT_ONCE = 16
SHORTEST_VOICE, LONGEST_VOICE = 0.5, 15.0  # seconds in which a voice can be heard


@dataclass(frozen=True)
class Spoken:
    """A text as it was spoken. true: the recording of it, if there is one.   attention: see `Heard`."""

    text: str
    sound: Sound
    said: Said
    true: Sound | None = None
    attention: Callable[[], tuple[Sequence[str], Tensor] | None] | None = None


class TextToSpeechTask(UsualTask):
    """Streams of recordings, and speech."""

    features: Mapping[str, int] = {}
    over = "seconds of the recording"
    metrics = ("length_error",)
    asks = None

    def __init__(self, config: TextToSpeechConfig, tokenizers: Mapping[str, Any]) -> None:
        self.config, self.tokenizers = config, tokenizers
        self.reader: TextReader
        if config.instruction is None:
            self.reader = PhonemeReader(self._tokenizer("phonemes", PhonemeTokenizer, "phonemes"))
        else:
            self.reader = InstructionReader(self._tokenizer("instruction", TextTokenizer, "text"), config.bare_text)
        self.codec: Codec = self._tokenizer("codec", Codec, "small_codec, single_codec or encodec")
        self.prosody: Prosody | None = None if config.prosody is None else self._tokenizer("prosody", Prosody, "prosody")
        self.units: UnitTokenizer | None = None if config.units is None else self._tokenizer("units", UnitTokenizer, "units")
        self.codes: TokenShards | None = None
        self.aligned: TokenShards | None = None
        self.unit_ids: TokenShards | None = None
        self.beside: dict[tuple[str, str], list[Utterance]] = {}

    def _tokenizer(self, key: str, kind: type, types: str) -> Any:
        return tokenizer_of(self.tokenizers, getattr(self.config, key), f"task.{key}", kind, types)

    @cached_property
    def plan(self) -> SpeechPlan:
        """Where everything stands."""
        return SpeechPlan(self.config, self.codec.book_sizes, 0 if self.units is None else self.units.config.num_units)

    @cached_property
    def entry_tokens(self) -> EntryTokens | None:
        """What gives phonemes with their durations; None without prosody."""
        if self.prosody is None:
            return None
        assert isinstance(self.reader, PhonemeReader)
        return EntryTokens(self.reader.phonemes, self.prosody, self.codec.rate_hz, self.codec.token_rate)

    @property
    def longest(self) -> int:
        """Frames of the longest entry."""
        return self.prosody.config.longest_frames if self.prosody is not None else 0

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """What is read, marks, prosody or units, and codes."""
        pitches = self.prosody.config.pitch_buckets if self.prosody is not None else 0
        return self.plan.vocabulary(self.reader.size, pitches, self.longest)

    @property
    def channels(self) -> Mapping[str, ChannelConfig]:
        """Values added to the embeddings."""
        return self.plan.channels

    def texts(self, record: Utterance, rng: np.random.Generator) -> list[str]:
        """An instruction as samples have it, or the text, if there is one."""
        if not record.text:
            return []
        return [self.reader.drawn([record], rng)] if isinstance(self.reader, InstructionReader) else [record.text]

    def sounds(self, record: Utterance) -> list[Sound]:
        """The recording."""
        return [record.sound()]

    def read_ahead(self, records: Sequence[Utterance], progress: Progress | None = None) -> None:
        """Make the tokens of all recordings that samples will be drawn from. Raises DataError for one without a text, or with an
        instruction that asks for something else."""
        if (silent := next((each for each in records if not each.text), None)) is not None:
            raise DataError(f"{silent.where}: has no text, which speech is learned by; needs_text: true leaves such recordings out.")
        for each in records:
            self.reader.check(each)
        self.codes = tokens_of(records, self.codec, progress=progress or logged("codes"))
        if self.units is not None:
            self.unit_ids = tokens_of(records, self.units, progress=progress or logged("units"))
        if self.entry_tokens is not None:
            self.aligned = tokens_of(records, self.entry_tokens, progress=progress or logged("phonemes along the sound"))
        groups: dict[str, list[Utterance]] = {}
        for each in records:
            groups.setdefault(_manner(each), []).append(each)
        self.beside |= {(each.where, each.id): groups[_manner(each)] for each in records}

    def example(self, record: Utterance, rng: np.random.Generator) -> Stream | None:
        """A training sample of a recording, or of several of its speaker; None where it is too long or could not be aligned."""
        low, high = self.config.join
        others = self.beside.get((record.where, record.id), [record])
        more = [others[int(rng.integers(len(others)))] for _ in range(int(rng.integers(low, high + 1)) - 1)]
        said = self._said([record, *more], rng)
        if said is None or len(said.codes) > self.most_frames:
            return None
        return self.plan.sample(said, rng)

    @property
    def most_frames(self) -> int:
        """Frames of the longest sample."""
        return int(self.config.max_seconds * self.codec.token_rate)

    def _said(self, records: Sequence[Utterance], rng: np.random.Generator) -> Said | None:
        """Text, prosody or units, and codes of recordings in a row; None where one could not be aligned."""
        if self.codes is None:
            raise DataError("the recordings have no tokens yet: read_ahead makes them.")
        codes = _joined(self.codes, records)
        if self.entry_tokens is None:
            units = Said.nothing(0).units if self.unit_ids is None else torch.unique_consecutive(_joined(self.unit_ids, records))
            return Said(self.reader.of(records, rng), codes, units=units)
        assert self.aligned is not None
        joined: Entries | None = None
        for record in records:
            entries = self.entry_tokens.entries(torch.from_numpy(self.aligned.ids(record).astype(np.int64)))
            if entries is None:
                return None
            joined = entries if joined is None else joined.then(entries, self.entry_tokens.slot)
        assert joined is not None
        whole = joined.split(self.longest)
        return Said(whole.phone, codes, whole.pitch, whole.frames)

    def title(self, record: Utterance) -> str:
        """What is said, and by whom."""
        return f"{record.text} ({record.seconds:.2f} s, {record.speaker or 'somebody'})"

    def shown(self, record: Utterance) -> str:
        """What is read of it, and the prosody or units and frames that are written."""
        self.read_ahead([record])
        said = self._said([record], np.random.default_rng(0))
        if said is None:
            return f"{record.text}\n(its text could not be laid along its sound)"
        frames = f"{len(said.codes)} frames of {self.codec.num_books} codebooks"
        if isinstance(self.reader, InstructionReader):
            head = self.reader.text.decode(said.text.tolist())
        else:
            assert isinstance(self.reader, PhonemeReader)
            names = [self.reader.phonemes.symbols[number] for number in said.text.tolist()]
            head = f"{record.text}\n{' '.join(names)}"
        if self.units is not None:
            return f"{head}\n{len(said.units)} units: {' '.join(map(str, said.units.tolist()))}\n{frames}"
        if self.prosody is None:
            return f"{head}\n{frames}"
        pitch_hz = self.prosody.decode(said.pitch) if not self.prosody.config.is_relative else said.pitch.numpy()
        rows = [
            f"{name:>4} {frames:3d} frames {hertz:6.1f}" for name, frames, hertz in zip(names, said.frames.tolist(), pitch_hz, strict=True)
        ]
        return "\n".join([record.text, *rows])

    def predict(self, model: MultimodalLM, records: Sequence[Utterance]) -> list[Spoken]:
        """The text of each recording, or what its first instruction asks for, spoken anew."""
        made = self.speak(model, [self.reader.asked(record) for record in records])
        return [
            replace(one, true=record.sound(self.codec.rate_hz), attention=partial(self._attention, model, one.said))
            for one, record in zip(made, records, strict=True)
        ]

    def _attention(self, model: MultimodalLM, said: Said) -> tuple[Sequence[str], Tensor] | None:
        """What the frames looked at, in the head that looks most at one thing at a time."""
        stream = self.plan.first(said)
        places, start = self.plan.looked_at(said), len(stream) - len(stream.segments[-1])
        frames = slice(start - 1, start - 1 + len(said.codes))
        maps_nte = sum(attention_maps(model, stream)[:, frames, place] for place in places)
        weights_te = most_focused(maps_nte)
        return None if weights_te is None else (self._names(said), weights_te.T)

    def _names(self, said: Said) -> list[str]:
        """What the frames look at."""
        if self.plan.has_units:
            return [str(unit) for unit in said.units.tolist()]
        if isinstance(self.reader, InstructionReader):
            return [self.reader.text.decode([token]) for token in said.text.tolist()]
        assert isinstance(self.reader, PhonemeReader)
        return [self.reader.phonemes.symbols[phone] for phone in said.text.tolist()]

    @property
    def inputs(self) -> Mapping[str, Field]:
        """A text or an instruction, a voice, and a pace where durations are written."""
        asked = Text("Text", "what is said", num_lines=3)
        if isinstance(self.reader, InstructionReader):
            asked = Text("Instruction", "how something is said, and in quotes what", num_lines=3)
        paces = {"pace": Number("Pace", "2 is twice as fast", True, 1.0, 0.25, 4.0)} if self.plan.has_prosody else {}
        return {
            "text": asked,
            "voice": Audio("Voice", f"{SHORTEST_VOICE:g} to {LONGEST_VOICE:g} s of speech in whose voice it is said", True),
            "voice_text": Text("What is said in the voice", "needed with a voice", True, ""),
            **paces,
            "seed": Number("Seed", "another number, another reading", True, 0, 0, 1_000_000, 1),
            "attention": ATTENTION,
        }

    @property
    def outputs(self) -> Mapping[str, Field]:
        """Speech."""
        return {"audio": Audio("Speech", grows=self.is_heard_early), "attention": Looks("What each moment looked at")}

    def given_by(self, record: Utterance) -> Values:
        """Its text, or its first instruction."""
        return {"text": self.reader.asked(record)}

    def answer(self, model: MultimodalLM, given: Values) -> Iterator[Values]:
        """The sound of a text, growing while it is written where the model can write so."""
        asked: dict[str, Any] = {"pace": given.get("pace", 1.0), "seed": int(given["seed"])}
        asked["voice"] = voice_of(given["voice"], given["voice_text"])
        if given["attention"] and given["voice"] is not None:
            raise DataError("attention: is shown of speech without a voice that is given.")
        told, wave_n = list[Spoken](), np.zeros(0, dtype=np.float32)
        if self.is_heard_early:
            for piece in self.pieces(model, given["text"], told, **asked):
                wave_n = np.concatenate([wave_n, piece.wave_n])
                yield {"audio": Sound(wave_n, piece.rate_hz)}
        else:
            told += self.speak(model, [given["text"]], **asked)
        looked = self._attention(model, told[0].said) if given["attention"] else None
        yield {"audio": told[0].sound, "attention": None if looked is None else looks(*looked)}

    @property
    def is_heard_early(self) -> bool:
        """Whether sound comes while it is written: no codebooks are written behind the others."""
        return len(self.plan.parts) == 1

    def pieces(self, model: MultimodalLM, text: str, whole: list[Spoken] | None = None, **asked: Any) -> Iterator[Sound]:
        """The sound of a text piece by piece, see `speak`, while the rest is being written. Whoever asks for no more ends it.
        whole: what it was in the end is put there."""

        def work(tell: Callable[[Sound], None]) -> None:
            found = self.speak(model, [text], hear=lambda _, sound: tell(sound), **asked)
            if whole is not None:
                whole.extend(found)

        return as_told(work)

    def speak(
        self,
        model: MultimodalLM,
        texts: Sequence[str],
        *,
        voice: Utterance | None = None,
        pace: float = 1.0,
        seed: int = 0,
        listen: Callable[[int, Sound], None] | None = None,
        hear: Callable[[int, Sound], None] | None = None,
    ) -> list[Spoken]:
        """Texts, or what instructions ask for, as speech. voice: a recording with its text, in whose voice they are spoken. pace: how fast,
        1 as learned; other than 1 it needs prosody. listen: told (number of the text, its sound) as soon as it is there. hear: told of
        each piece of a sound while the rest of it is being written.

        Raises DataError for a text that cannot be spoken and a voice that cannot be used, RecipeError for a pace that cannot be kept and
        for pieces of a model that writes codebooks one after the other.
        """
        if hear is not None and not self.is_heard_early:
            raise RecipeError(
                "this model writes further codebooks behind the first one, whole: train with task.order=delay to hear pieces."
            )
        if pace != 1 and not self.plan.has_prosody:
            raise RecipeError("a pace needs durations, which this model does not write: train with task.prosody.")
        if not 0.25 <= pace <= 4:
            raise RecipeError(f"pace must be from 0.25 to 4, but is {pace:g}.")
        said = self._voice(voice)
        tokens = [self.reader.ids(text, "" if voice is None else voice.text) for text in texts]
        found: list[Spoken] = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            some = tokens[start : start + TEXTS_AT_ONCE]
            writing = Writing(self.plan, some, [said] * len(some), model.vocabulary, pace, self.most_frames)
            pieces = None if hear is None else _Pieces(self.codec, start, hear)
            written = generate_staged(model, writing.prompts(), writing.stages(), seed=seed + start, listen=pieces)
            said_now = [writing.spoken(so_far) for so_far in written]
            sounds = self._decoded([each.codes for each in said_now]) if pieces is None else pieces.sounds
            for number, (each, sound) in enumerate(zip(said_now, sounds, strict=True), start):
                found.append(Spoken(texts[number], sound, each))
                if listen is not None:
                    listen(number, sound)
        return found

    def _marks(self, said: Said) -> list[tuple[str, float]]:
        """What is said until when, where the model wrote durations."""
        ends = (said.frames.cumsum(0) / float(self.codec.token_rate)).tolist()
        rows = zip(self._names(said), said.frames.tolist(), ends, strict=True) if self.plan.has_prosody else ()
        return [(name, end) for name, frames, end in rows if frames]

    def _decoded(self, codes: Sequence[Tensor]) -> list[Sound]:
        """Sounds of codes; where a model ended before its first frame, one frame of silence."""
        spoken = iter(self.codec.decode_many([each for each in codes if len(each)]))
        return [next(spoken) if len(each) else _silence(self.codec) for each in codes]

    def _voice(self, voice: Utterance | None) -> Said:
        if voice is None:
            return Said.nothing(self.codec.num_books)
        if not voice.text:
            raise DataError(f"{voice.where}: a voice needs the text that is said in it.")
        sound = voice.sound(self.codec.rate_hz)
        codes = _ids(self.codec.encode(sound))
        nothing = Said.nothing(self.codec.num_books)
        units = nothing.units if self.units is None else dedup(_ids(self.units.encode(sound)))[0]
        if isinstance(self.reader, InstructionReader):  # which quotes what is heard in the voice
            return Said(nothing.text, codes, units=units)
        if self.entry_tokens is None:
            return Said(self.reader.ids(voice.text), codes, units=units)
        (segment,) = self.entry_tokens.encode_utterances([voice])
        assert segment.ids is not None
        entries = self.entry_tokens.entries(segment.ids)
        if entries is None:
            raise DataError(f"{voice.where}: the text {voice.text[:60]!r} could not be laid along the sound of the voice.")
        whole = entries.split(self.longest)
        return Said(whole.phone, codes, whole.pitch, whole.frames)

    def score(self, outputs: Sequence[Spoken], records: Sequence[Utterance]) -> dict[str, float]:
        """length_error: mean distance of the logarithms of the lengths of speech and recording; 0.1 is about ten percent."""
        pairs = [(one.sound.seconds, one.true.seconds) for one in outputs if one.true is not None]
        return {"length_error": float(np.mean([abs(np.log(mine / theirs)) for mine, theirs in pairs]))}

    def baselines(self, records: Sequence[Utterance]) -> dict[str, dict[str, float]]:
        """What no speech of this codec can be better than."""
        return {RESYNTHESIS: {"length_error": 0.0}}

    def heard(self, outputs: Sequence[Spoken], records: Sequence[Utterance]) -> list[Heard]:
        """What was spoken, and the recordings, which say the same at a pace of their own."""
        return [
            Heard(
                one.sound, one.true, None, record.text, record.language, is_aligned=False, marks=self._marks(one.said),
                style=asked_style(record), attention=one.attention,
            )
            for one, record in zip(outputs, records, strict=True)
        ]  # fmt: skip

    def heard_baselines(self, records: Sequence[Utterance]) -> dict[str, list[Sound]]:
        """The recordings through the codec: no speech of this codec can be understood better."""
        return {RESYNTHESIS: self.codec.decode_many(self.codec.encode_many([record.sound() for record in records]))}

    def curves(self, outputs: Sequence[Spoken], records: Sequence[Utterance]) -> dict[str, list[tuple[float, float]]]:
        """How long each text takes, beside its recording."""
        return {"seconds": sorted((one.true.seconds, one.sound.seconds) for one in outputs if one.true is not None)}

    def write_samples(self, model: MultimodalLM, records: Sequence[Utterance], folder: Path) -> None:
        """Of each record its text, the recording, the recording through the codec, and the text spoken."""
        for number, (one, record) in enumerate(zip(self.predict(model, records), records, strict=True), 1):
            assert one.true is not None
            write_text_whole(folder / f"{number}_text.txt", f"{self.reader.asked(record)}\n")
            write_sound(folder / f"{number}_true.wav", one.true)
            write_sound(folder / f"{number}_codec.wav", self.codec.decode(self.codec.encode(one.true)))
            write_sound(folder / f"{number}_spoken.wav", one.sound)


class _Pieces:
    """Tells of sound while it is written. start: number of the first text."""

    def __init__(self, codec: Codec, start: int, hear: Callable[[int, Sound], None]) -> None:
        self.codec, self.start, self.hear = codec, start, hear
        self.decoders: dict[int, StreamingDecoder] = {}
        self.told: dict[int, list[np.ndarray]] = {}

    @property
    def sounds(self) -> list[Sound]:
        """What was told of each text, whole."""
        return [Sound(np.concatenate(self.told[number]), self.codec.rate_hz) for number in sorted(self.told)]

    def __call__(self, chunk: Chunk) -> None:
        if chunk.stage != SPEECH:
            return
        decoder = self.decoders.setdefault(chunk.number, StreamingDecoder(self.codec))
        parts = [decoder.push(chunk.ids)] if len(chunk.ids) else []
        parts += [decoder.flush()] if chunk.is_last else []
        wave_n = np.concatenate([np.zeros(0, dtype=np.float32), *parts])
        told = self.told.setdefault(chunk.number, [])
        if chunk.is_last and not told and not len(wave_n):
            wave_n = _silence(self.codec).wave_n
        if len(wave_n):
            told.append(wave_n)
            self.hear(self.start + chunk.number, Sound(wave_n, self.codec.rate_hz))


def _silence(codec: Codec) -> Sound:
    """What a model says that ends before its first frame: one frame of silence."""
    return Sound(np.zeros(codec.hop, dtype=np.float32), codec.rate_hz)


def voice_of(voice: str | Path | Sound | None, text: str) -> Utterance | None:
    """A recording, or the file of one, with what is said in it, as a voice to speak in. Raises DataError where it is none."""
    if voice is None:
        if text:
            raise DataError("voice_text says what is heard in a voice, but no voice is given.")
        return None
    where = "the voice" if isinstance(voice, Sound) else str(voice)
    if not text.strip():
        raise DataError(f"{where}: give voice_text, what is said in it.")
    given: dict[str, Any] = {"held": voice} if isinstance(voice, Sound) else {"path": Path(voice)}
    found = Utterance(id=where, where=where, text=text, **given)
    if not SHORTEST_VOICE <= found.seconds <= LONGEST_VOICE:
        raise DataError(f"{where}: a voice lasts {SHORTEST_VOICE:g} to {LONGEST_VOICE:g} s, but this one {found.seconds:.2f} s.")
    return found


def _manner(record: Utterance) -> str:
    """What recordings that may be joined have in common: who speaks, and how."""
    return f"{record.speaker} {record.labels.get(STYLE, '')}"


def _joined(shards: TokenShards, records: Sequence[Utterance]) -> Tensor:
    return torch.cat([torch.from_numpy(shards.ids(record).astype(np.int64)) for record in records])


def _ids(segment: Segment) -> Tensor:
    assert segment.ids is not None
    return segment.ids
