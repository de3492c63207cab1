"""Training a codec as a run of its own, and what is left of a sound that went through it.

Axes: b sounds   n samples   t tokens   u books
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmlm.base.errors import RecipeError
from mmlm.data.audio_files import write_sound
from mmlm.data.base import Draws
from mmlm.data.crops import Crops, Waves
from mmlm.data.speech import Utterance
from mmlm.objectives.audio import Adversary, Reconstruction, mel_distance
from mmlm.objectives.base import Losses
from mmlm.sound import Sound
from mmlm.tasks.base import Heard
from mmlm.tasks.config import AdversaryConfig, CodecTaskConfig
from mmlm.tasks.forms import Audio, Field, Number, Text, Values
from mmlm.tasks.recordings import RecordingsTask
from mmlm.tasks.trains_codec import TrainsCodec
from mmlm.tokenizers.codec.base import Codec, CodecModel
from mmlm.tokenizers.codec.griffin_lim import mel_griffin_lim
from mmlm.tokenizers.codec.simcodec import ReorganizedVQ

GRIFFIN_LIM = "mel and Griffin-Lim, as many frames"


@dataclass(frozen=True)
class Coded:
    """A sound as it was, its codes [t, u], and the sound that they decode to."""

    true: Sound
    codes_tu: Tensor
    decoded: Sound


class CodecLearner(nn.Module):
    """A codec under its losses; `begin_step` begins stage two of a codec that has one, and lets the adversary in."""

    def __init__(
        self, model: CodecModel, rate_hz: int, windows: Sequence[int], stage_one: float, adversary: AdversaryConfig | None
    ) -> None:
        super().__init__()
        self.model, self.stage_one = model, stage_one
        self.reconstruction = Reconstruction(rate_hz, windows)
        self.adversary = None if adversary is None else Adversary(adversary.filters)
        self.after = adversary.after if adversary is not None else 1.0
        self.register_buffer("is_opposed", torch.tensor(0.0))

    def begin_step(self, step: int, steps: int) -> None:
        """Called before the step that follows `step` taken ones."""
        if isinstance(self.model.quantizer, ReorganizedVQ) and step >= self.stage_one * steps:
            self.model.quantizer.reorganize()
        if self.adversary is not None:
            self.is_opposed.fill_(float(step >= self.after * steps))

    def forward(self, batch: Waves) -> Losses:
        """Loss sums and weights by name; weights count sounds, and are 0 for what does not take part now."""
        decoded_bn, _, parts = self.model(batch.wave_bn)
        found = {**parts, **self.reconstruction(decoded_bn, batch.wave_bn)}
        if self.adversary is not None:
            none = (decoded_bn.new_zeros(()), torch.tensor(0.0))
            is_opposed = bool(self.is_opposed)
            found |= self.adversary(decoded_bn, batch.wave_bn) if is_opposed else dict.fromkeys(Adversary.names, none)
        return found

    def loss_weights(self, batch: Waves) -> dict[str, float]:
        """The weights that forward will report."""
        quantizer, count = self.model.quantizer, float(len(batch.wave_bn))
        names = (*quantizer.names, *Reconstruction.names, *(Adversary.names if self.adversary is not None else ()))
        found = dict.fromkeys(names, count)
        if isinstance(quantizer, ReorganizedVQ) and quantizer.is_single:
            found |= {name: 0.0 for name in names if name == "diversity"}
        if not self.is_opposed:
            found |= {name: 0.0 for name in Adversary.names if name in names}
        return found


class CodecTask(RecordingsTask, TrainsCodec[Codec]):
    """Trains one of the recipe's tokenizers, which must be a codec of ours."""

    metrics = ("mel_distance", "perplexity")

    def __init__(self, config: CodecTaskConfig, tokenizers: Mapping[str, Any]) -> None:
        super().__init__(config, tokenizers, Codec, "small_codec or single_codec")
        self.config = config
        if config.seconds * self.codec.rate_hz < max(config.windows):
            raise RecipeError(f"task.seconds: {config.seconds:g} s are shorter than the longest of task.windows ({max(config.windows)}).")

    def learner(self, seed: int) -> CodecLearner:
        """The codec under its losses."""
        torch.manual_seed(seed)
        stage_one = float(getattr(self.codec.config, "stage_one", 0.0))
        return CodecLearner(self.codec.begin(), self.codec.rate_hz, self.config.windows, stage_one, self.config.adversary)

    def samples(self, records: Draws) -> Crops:
        """Pieces of whole hops."""
        hops = round(self.config.seconds * self.codec.rate_hz / self.codec.hop)
        size, gain = max(1, hops) * self.codec.hop, self.config.gain_db
        return Crops(records, rate_hz=self.codec.rate_hz, size=size, hop=self.codec.hop, gain_db=gain)

    def shown(self, record: Utterance) -> str:
        """Length, tokens and bits of a recording."""
        told = self._told(record.seconds, len(self.codec.book_sizes))
        return "\n".join([self.title(record), f"speaker {record.speaker or 'unknown'}, language {record.language or 'unknown'}", told])

    def _told(self, seconds: float, num_books: int) -> str:
        """Tokens and bits of so many seconds in the first books."""
        rate = float(self.codec.token_rate)
        bits = rate * float(np.log2(self.codec.book_sizes[:num_books]).sum())
        return f"{seconds:.2f} s, {rate * seconds:.0f} tokens of {num_books} books, {bits:.0f} bits a second"

    @torch.no_grad()
    def predict(self, model: CodecModel, records: Sequence[Utterance]) -> list[Coded]:
        """Each sound through the codec and back."""
        true = [record.sound(self.codec.rate_hz) for record in records]
        segments = self.codec.encode_many(true)
        decoded = self.codec.decode_many(segments)
        return [Coded(sound, self.codec.codes(segment), out) for sound, segment, out in zip(true, segments, decoded, strict=True)]

    @property
    def inputs(self) -> Mapping[str, Field]:
        """A sound, and of how many books it is decoded where there are several."""
        most = self.codec.num_books
        books = Number("Books", "the sound is decoded from the first so many", True, most, 1, most, 1)
        return {"audio": Audio("Sound", "any rate; a minute at most", most_seconds=60), **({"books": books} if most > 1 else {})}

    outputs: Mapping[str, Field] = {
        "audio": Audio("Behind the codec"),
        "read": Audio("Before it, as the codec reads it"),
        "size": Text("Size"),
    }

    def given_by(self, record: Utterance) -> Values:
        """Its sound."""
        return {"audio": record.sound()}

    def answer(self, model: CodecModel, given: Values) -> Iterator[Values]:
        """A sound through the codec and back, and what it takes."""
        read, count = given["audio"].at(self.codec.rate_hz), int(given.get("books", self.codec.num_books))
        decoded = self.codec.decode(self.codec.encode(read, count))
        whole = f"; 16 bits a sample are {16 * self.codec.rate_hz}"
        yield {"audio": decoded, "read": read, "size": self._told(read.seconds, count) + whole}

    def score(self, outputs: Sequence[Coded], records: Sequence[Utterance]) -> dict[str, float]:
        """mel_distance: mean absolute difference of natural log-mel magnitudes.   perplexity: entries in use, in effect, as a share of a
        book's; mean over the books."""
        distances = [_mel_distance(one.decoded, one.true) for one in outputs]
        return {"mel_distance": float(np.mean(distances)), "perplexity": self.perplexity([one.codes_tu for one in outputs])}

    def baselines(self, records: Sequence[Utterance]) -> dict[str, dict[str, float]]:
        """Log-mel frames, as many a second as the codec has tokens and not quantized, turned into sound by Griffin and Lim's method."""
        true = [record.sound(self.codec.rate_hz) for record in records]
        distances = [_mel_distance(mel_griffin_lim(sound, self.codec.hop), sound) for sound in true]
        return {GRIFFIN_LIM: {"mel_distance": float(np.mean(distances))}}

    def heard(self, outputs: Sequence[Coded], records: Sequence[Utterance]) -> list[Heard]:
        """Each sound as it was and decoded."""
        pairs = zip(outputs, records, strict=True)
        return [Heard(one.decoded, one.true, text=record.text, language=record.language) for one, record in pairs]

    def heard_baselines(self, records: Sequence[Utterance]) -> dict[str, list[Sound]]:
        """The sounds of `baselines`."""
        return {GRIFFIN_LIM: [mel_griffin_lim(record.sound(self.codec.rate_hz), self.codec.hop) for record in records]}

    def curves(self, outputs: Sequence[Coded], records: Sequence[Utterance]) -> dict[str, list[tuple[float, float]]]:
        """The mel distance over the number of books that are decoded."""
        points = []
        for count in self.prefixes():
            decoded = self.codec.decode_many([self._prefix(one, count) for one in outputs])
            cut = [Sound(out.wave_n[: len(one.true.wave_n)], out.rate_hz) for one, out in zip(outputs, decoded, strict=True)]
            points.append((float(count), float(np.mean([_mel_distance(out, one.true) for out, one in zip(cut, outputs, strict=True)]))))
        return {"mel distance": points} if points else {}

    def write_samples(self, model: CodecModel, records: Sequence[Utterance], folder: Path) -> None:
        """Two files for each: the sound as it was, and decoded."""
        for number, one in enumerate(self.predict(model, records), 1):
            write_sound(folder / f"{number}_true.wav", one.true)
            write_sound(folder / f"{number}_decoded.wav", one.decoded)

    @staticmethod
    def _prefix(one: Coded, count: int) -> Tensor:
        return one.codes_tu[:, :count]


def _mel_distance(decoded: Sound, true: Sound) -> float:
    pair = [torch.from_numpy(sound.wave_n)[None] for sound in (decoded, true)]
    return float(mel_distance(pair[0], pair[1], true.rate_hz))
