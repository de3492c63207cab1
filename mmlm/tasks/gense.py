"""GenSE: clean speech is written anew, in two steps, by two models that never see each other's losses.

    units   [units of what was given] begin -> [units of clean speech]
    codes   [units of what was given][units of clean speech] begin [codes of what was given] -> [codes of clean speech]

Both write exactly as many tokens as there are. In the first step a clean unit stands where the noisy one stands. In the second, everything
stands at its time, counted in codes: what was given from 0 on, what is clean from a fixed base on. So a clean code finds the units and the
noisy code of its time always equally far away, which short training needs; the paper counts the units of the second step on from 0. Also
beyond the paper, what is written sees of all this only what is near its own time (`reach_seconds`), and training hides clean tokens where
they are read, of each sample another share: most tokens are those before them once more, and a model that has learned to repeat, and little
else, writes one token for ever. The paper's codec has one book; of one with several, each is written a step later than the one before it
(arXiv:2306.05284).

Source: GenSE, arXiv:2502.02942, and its published inference code.
Axes: t tokens   u books
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmlm.alignment import window_by_alignment
from mmlm.base.errors import CheckpointError, RecipeError
from mmlm.base.files import parse_json, write_text_whole
from mmlm.data.speech import Utterance
from mmlm.generation import Sampling
from mmlm.layout import EVERYTHING
from mmlm.model import MultimodalLM
from mmlm.objectives.audio import mel_distance
from mmlm.objectives.masked import drawn_cells
from mmlm.recipe import Recipe
from mmlm.sound import Sound
from mmlm.staged import generate_staged
from mmlm.stages import Length, Stage
from mmlm.stream import NO_LABEL, Segment, Stream, pack, unpack
from mmlm.tasks.base import CODEC_ALONE, GIVEN, tokenizer_of
from mmlm.tasks.config import GenseCodesConfig, GenseUnitsConfig
from mmlm.tasks.degraded import GATE, DegradedSpeech, Enhanced, MendsSpeech
from mmlm.tasks.spectral_gate import spectral_gate
from mmlm.tasks.windows import joined, windows
from mmlm.tokenizers.codec.base import Codec
from mmlm.tokenizers.config import CodebookOrder
from mmlm.tokenizers.patterns import EMPTY, CodebookPattern
from mmlm.tokenizers.unit_measures import unit_edit_distance
from mmlm.tokenizers.units import ABOUT, UnitTokenizer

UNITS, CODES = 1, 2  # groups of tokens that see one another in both directions
UNIT, CODEC, SPECIAL, MASK = "unit", "codec", "special", "mask"
RATE_HZ = 16_000


@dataclass(frozen=True)
class Reading:
    """How what was given is read. reach: tokens before and after its time that a clean one is made from; None: all.
    both_ways: what is read is seen by what stands before it too, as by an encoder; false: in order, as published."""

    reach: int | None = None
    both_ways: bool = False

    def group(self, number: int) -> int:
        """`mutual` of a segment that is read."""
        return number if self.both_ways else 0


IN_ORDER = Reading()


def units_stream(noisy_t: Tensor, clean_t: Tensor | None = None, hidden_t: Tensor | None = None, reading: Reading = IN_ORDER) -> Stream:
    """What the first step reads, and the clean units with their loss where they are given. hidden: bool [t], of the clean ones."""
    time_t, rows = torch.arange(len(noisy_t)), near(len(noisy_t), reading.reach)
    begin = Segment(SPECIAL, torch.zeros(1, dtype=torch.long), reach=None if rows is None else rows[:1])
    mark = None if rows is None else time_t
    segments = [Segment(UNIT, noisy_t, position=_at(time_t), mark=mark, mutual=reading.group(UNITS)), begin]
    if clean_t is not None:
        seen = None if rows is None else rows[1:]
        segments.append(Segment(UNIT, clean_t, weight=1.0, position=_at(torch.arange(len(clean_t))), hidden=hidden_t, reach=seen))
    return Stream(segments)


def near(count: int, reach: int | None) -> Tensor | None:
    """First and last mark, long [count + 1, 2], that the queries which predict so many tokens see, and the one behind them; None: all."""
    return None if reach is None else window_by_alignment(torch.ones(count, dtype=torch.long), reach)


def write_units(model: MultimodalLM, noisy: Sequence[Tensor], temperature: float, reading: Reading = IN_ORDER) -> list[Tensor]:
    """Clean units [t] for noisy ones [t], as many."""
    reach = reading.reach
    stage = Stage(
        "units", UNIT, Length.exactly(lambda so_far: len(noisy[so_far.number])), position=0, sampling=_sampling(temperature),
        reach=None if reach is None else lambda so_far, tokens: _rows_of(len(noisy[so_far.number]), reach)[1 : 1 + tokens],
    )  # fmt: skip
    return [found.written["units"] for found in generate_staged(model, [units_stream(each, reading=reading) for each in noisy], [stage])]


def write_units_by_windows(model: MultimodalLM, noisy: Sequence[Tensor], size: int, temperature: float, reading: Reading) -> list[Tensor]:
    """The same of units that may be more than the `size` that training samples have at most."""
    spans = [windows(len(each), size) for each in noisy]
    cut = [each[start:end] for each, some in zip(noisy, spans, strict=True) for start, end in some]
    written = iter(write_units(model, cut, temperature, reading))
    return [joined([next(written) for _ in some], some) for some in spans]


def _rows_of(count: int, reach: int) -> Tensor:
    rows = near(count, reach)
    assert rows is not None
    return rows


@torch.no_grad()
def read_units(model: MultimodalLM, noisy_t: Tensor, clean_t: Tensor, reading: Reading = IN_ORDER) -> Tensor:
    """The likeliest clean units [t], each behind the true ones before it: in one pass, unlike `write_units`."""
    batch = pack([units_stream(noisy_t, clean_t, reading=reading)], model.vocabulary).to(model.device)
    h_btd, _ = model.hidden(batch)
    (h_td,), (labels_t,) = unpack(h_btd, batch.layout), unpack(batch.labels, batch.layout)
    scores_tv = model.heads["language_model"].predict(h_td[labels_t != NO_LABEL], model.vocabulary.span(UNIT))
    return scores_tv.argmax(-1).cpu()


@dataclass(frozen=True)
class CleanUnits:
    """Units [t] of a record: of the clean sound, of the degraded one, and those that were written."""

    true_t: Tensor
    given_t: Tensor
    made_t: Tensor


class GenseUnitsTask(DegradedSpeech):
    """The first step."""

    metrics = ("unit_edit_distance", "accuracy")

    def __init__(self, config: GenseUnitsConfig, tokenizers: Mapping[str, Any]) -> None:
        super().__init__(config.degrade, config.degrade_test, RATE_HZ)
        self.config, self.tokenizers = config, tokenizers
        self.units = tokenizer_of(tokenizers, config.units, "task.units", UnitTokenizer, "units")

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """A token to begin with, one for what is hidden, and the units."""
        return {SPECIAL: 1, MASK: 1, **self.units.sizes}

    def example(self, record: Utterance, rng: np.random.Generator) -> Stream:
        """Units of a sound degraded and clean."""
        clean = record.sound(self.rate_hz)
        given, _ = self.chain(clean, rng)
        noisy_t, clean_t = _units(self.units, [given, clean])
        return units_stream(noisy_t, clean_t, drawn_cells(clean_t.shape, self.config.code_dropout, rng), self.reading)

    @property
    def rate(self) -> Fraction:
        """Units a second."""
        return Fraction(*self.units.rate_hz)

    @property
    def reading(self) -> Reading:
        """How units are read."""
        return _reading(self.config, self.units.rate_hz)

    def predict(self, model: MultimodalLM, records: Sequence[Utterance]) -> list[CleanUnits]:
        """Units of each record, degraded as its id decides."""
        pairs = [self.pair(record) for record in records]
        true, given = (_units(self.units, sounds) for sounds in zip(*pairs, strict=True))
        made = write_units_by_windows(model, given, int(self.config.seconds * self.rate), self.config.temperature, self.reading)
        return [CleanUnits(*each) for each in zip(true, given, made, strict=True)]

    def score(self, outputs: Sequence[CleanUnits], records: Sequence[Utterance]) -> dict[str, float]:
        """unit_edit_distance: edits in 100 clean units.   accuracy: share of the units that are the clean ones, place by place."""
        return _unit_score(outputs, [one.made_t for one in outputs])

    def baselines(self, records: Sequence[Utterance]) -> dict[str, dict[str, float]]:
        """The units of what was given."""
        true, given = (_units(self.units, sounds) for sounds in zip(*map(self.pair, records), strict=True))
        outputs = [CleanUnits(one, other, other) for one, other in zip(true, given, strict=True)]
        return {GIVEN: _unit_score(outputs, [one.given_t for one in outputs])}

    def write_samples(self, model: MultimodalLM, records: Sequence[Utterance], folder: Path) -> None:
        """units.txt: units of each record, clean, degraded and written."""
        lines = []
        for record, one in zip(records, self.predict(model, records), strict=True):
            lines.append(self.title(record))
            lines += [f"  {name:<8} {' '.join(map(str, ids.tolist()))}" for name, ids in vars(one).items()]
        write_text_whole(folder / "units.txt", "\n".join(lines) + "\n")


@dataclass(frozen=True)
class EnhancedCodes(Enhanced):
    """Also the codes [t, u] of the clean sound, and those that were written."""

    true_tu: Tensor
    made_tu: Tensor


class GenseCodesTask(MendsSpeech):
    """The second step, with the first as a model that is not trained."""

    metrics = ("mel_distance", "accuracy")

    def __init__(self, config: GenseCodesConfig, tokenizers: Mapping[str, Any]) -> None:
        self.units: UnitTokenizer | None = None
        if config.units_run is not None:
            self.units = tokenizer_of(tokenizers, config.units, "task.units", UnitTokenizer, "units")
        self.codec = tokenizer_of(tokenizers, config.codec, "task.codec", Codec, "small_codec or single_codec")
        super().__init__(config.degrade, config.degrade_test, self.codec.rate_hz)
        self.config, self.tokenizers = config, tokenizers
        (self.part,) = CodebookPattern(CodebookOrder(order="delay"), self.codec.num_books).parts
        if self.part.num_steps(int(config.seconds * self.codec.token_rate)) > config.base:
            raise RecipeError(f"task.base: {config.base} codes are less than task.seconds ({config.seconds:g} s) hold.")
        self._first: MultimodalLM | None = None
        self._first_reading = IN_ORDER

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """A token to begin with, one for what is hidden, the units and the codes."""
        return {SPECIAL: 1, MASK: 1, **({} if self.units is None else self.units.sizes), **self.codec.sizes}

    @property
    def window_seconds(self) -> float:
        """As long as training samples."""
        return self.config.seconds

    @property
    def first(self) -> MultimodalLM:
        """The model of the first step. Raises CheckpointError where its run is gone or was trained on other units."""
        if self._first is None:
            assert self.config.units_run is not None and self.units is not None
            run = Path(self.config.units_run)
            known = [parse_json(path.read_text(encoding="utf-8"))["fingerprint"] for path in run.glob(f"tokenizers/*/{ABOUT}")]
            if not known:
                raise CheckpointError(f"task.units_run: {run}: holds no finished run with units.")
            if self.units.fingerprint not in known:
                raise CheckpointError(f"task.units_run: {run}: was trained on other units; write tokenizers.units.path: {run}.")
            self._first = MultimodalLM.from_pretrained(run).eval()
            (about,) = Recipe.read(run / "recipe.yaml").tasks
            self._first_reading = _reading(about, self.units.rate_hz)
        return self._first

    @property
    def first_reading(self) -> Reading:
        """How the first step reads."""
        _ = self.first  # which is read with it
        return self._first_reading

    def example(self, record: Utterance, rng: np.random.Generator) -> Stream:
        """Units and codes of a sound degraded and clean; in some samples the clean units are those that the first step predicts."""
        clean = record.sound(self.rate_hz)
        given, _ = self.chain(clean, rng)
        units = None if self.units is None else self._units_read(self.units, given, clean, rng)
        given_tu, codes_tu = _codes(self.codec, [given, clean])
        steps_su = self.part.forward(codes_tu)
        hidden_su = drawn_cells(steps_su.shape, self.config.code_dropout, rng) & (steps_su != EMPTY)
        return self.stream(units, given_tu, steps_su, hidden_su)

    def _units_read(self, units: UnitTokenizer, given: Sound, clean: Sound, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        noisy_t, clean_t = _units(units, [given, clean])
        if rng.random() < self.config.written_units:
            clean_t = read_units(self.first, noisy_t, clean_t, self.first_reading)
        return noisy_t, clean_t

    def stream(
        self,
        units: tuple[Tensor, Tensor] | None,
        given_tu: Tensor,
        steps_su: Tensor | None = None,
        hidden_su: Tensor | None = None,
    ) -> Stream:
        """What the second step reads, and the steps of clean codes with their loss where they are given.

        units: noisy and clean ones [t], None in one step.   hidden: bool [s, u], of the steps.
        """
        base, reading = self.config.base, self.reading
        segments = []
        if units is not None:
            assert self.units is not None
            rate = self.codec.token_rate / Fraction(*self.units.rate_hz)
            times_t = torch.arange(len(units[0])) * rate.numerator // rate.denominator
            mark = None if reading.reach is None else times_t
            segments = [
                Segment(UNIT, units_t, position=_at(start + times_t), mark=mark, mutual=reading.group(UNITS))
                for start, units_t in zip((0, base), units, strict=True)
            ]
        segments.append(Segment(SPECIAL, torch.zeros(1, dtype=torch.long)))
        if self.config.reads_codes:
            time_t = torch.arange(len(given_tu))
            mark = None if reading.reach is None else time_t
            segments.append(Segment(CODEC, given_tu, position=_at(time_t), mark=mark, mutual=reading.group(CODES)))
        rows = self.rows(len(given_tu))
        if rows is not None:  # the token before the first clean code predicts it
            segments[-1].reach = torch.tensor(EVERYTHING).repeat(len(segments[-1]), 1)
            segments[-1].reach[-1] = rows[0]
        if steps_su is not None:
            seen = None if rows is None else rows[1:]
            place = _at(base + torch.arange(len(steps_su)))
            segments.append(Segment(CODEC, steps_su, weight=1.0, position=place, hidden=hidden_su, reach=seen))
        return Stream(segments)

    @property
    def reading(self) -> Reading:
        """How units and codes are read; reach is counted in codes."""
        return _reading(self.config, self.codec.token_rate.as_integer_ratio())

    def rows(self, frames: int) -> Tensor | None:
        """What the queries that predict the steps of so many frames see, see `near`."""
        return near(self.part.num_steps(frames), self.reading.reach)

    def write_codes(self, model: MultimodalLM, units: Sequence[tuple[Tensor, Tensor] | None], given: Sequence[Tensor]) -> list[Tensor]:
        """Clean codes [t, u], as many as `given` holds, for units noisy and clean and codes of what was given."""
        prompts = [self.stream(*each) for each in zip(units, given, strict=True)]
        stage = Stage(
            "codes", CODEC, Length.exactly(lambda so_far: len(given[so_far.number])), self.part, position=self.config.base,
            sampling=_sampling(self.config.temperature),
            reach=None if self.reading.reach is None else lambda so_far, tokens: self._rows(len(given[so_far.number]))[1 : 1 + tokens],
        )  # fmt: skip
        return [found.written["codes"] for found in generate_staged(model, prompts, [stage])]

    def _rows(self, frames: int) -> Tensor:
        rows = self.rows(frames)
        assert rows is not None
        return rows

    def enhance(self, model: MultimodalLM, sounds: Sequence[Sound]) -> list[Sound]:
        """Each sound, at `rate_hz`, written anew, with as many samples."""
        return [made for made, _ in self._written(model, sounds, _codes(self.codec, sounds))]

    def _written(self, model: MultimodalLM, sounds: Sequence[Sound], given: Sequence[Tensor]) -> list[tuple[Sound, Tensor]]:
        spans = [windows(len(each), int(self.config.seconds * self.codec.token_rate)) for each in given]
        cut = [each[start:end] for each, some in zip(given, spans, strict=True) for start, end in some]
        units: list[tuple[Tensor, Tensor] | None] = [None] * len(cut)
        if self.units is not None:
            share = Fraction(*self.units.rate_hz) / self.codec.token_rate
            noisy = [
                each[int(start * share) : max(int(end * share), int(start * share) + 1) if end < len(codes_tu) else None]
                for each, codes_tu, some in zip(_units(self.units, sounds), given, spans, strict=True)
                for start, end in some
            ]
            units = list(zip(noisy, write_units(self.first, noisy, self.config.temperature, self.first_reading), strict=True))
        written = iter(self.write_codes(model, units, cut))
        codes = [joined([next(written) for _ in some], some) for some in spans]
        return [(self._sound(codes_tu, len(sound.wave_n)), codes_tu) for codes_tu, sound in zip(codes, sounds, strict=True)]

    def _sound(self, codes_tu: Tensor, num_samples: int) -> Sound:
        decoded = self.codec.decode(codes_tu)
        return Sound(decoded.wave_n[:num_samples], decoded.rate_hz)

    def predict(self, model: MultimodalLM, records: Sequence[Utterance]) -> list[EnhancedCodes]:
        """Each record degraded and written anew."""
        pairs = [self.pair(record) for record in records]
        true, given = (_codes(self.codec, sounds) for sounds in zip(*pairs, strict=True))
        written = self._written(model, [sound for _, sound in pairs], given)
        return [EnhancedCodes(*pair, made, true_tu, made_tu) for pair, true_tu, (made, made_tu) in zip(pairs, true, written, strict=True)]

    def score(self, outputs: Sequence[EnhancedCodes], records: Sequence[Utterance]) -> dict[str, float]:
        """mel_distance: mean absolute difference of natural log-mel magnitudes.   accuracy: share of the codes that are the clean ones."""
        accuracy = _alike([one.true_tu for one in outputs], [one.made_tu for one in outputs])
        return {"mel_distance": _mel(outputs, [one.made for one in outputs]), "accuracy": accuracy}

    def baselines(self, records: Sequence[Utterance]) -> dict[str, dict[str, float]]:
        """What was given, the spectral gate, and the clean sound through the codec, which no writing of codes can be better than."""
        pairs = [self.pair(record) for record in records]
        outputs = [Enhanced(true, given, given) for true, given in pairs]
        sounds = {GIVEN: [given for _, given in pairs], **self.heard_baselines(records)}
        return {name: {"mel_distance": _mel(outputs, some)} for name, some in sounds.items()}

    def heard_baselines(self, records: Sequence[Utterance]) -> dict[str, list[Sound]]:
        """The spectral gate, and the clean sound through the codec."""
        pairs = [self.pair(record) for record in records]
        through = self.codec.decode_many(self.codec.encode_many([true for true, _ in pairs]))
        return {GATE: [spectral_gate(given) for _, given in pairs], CODEC_ALONE: through}


def _reading(config: Any, rate_hz: tuple[int, int]) -> Reading:
    """How tokens of a rate are read by a config."""
    reach = None if config.reach_seconds is None else max(1, round(config.reach_seconds * rate_hz[0] / rate_hz[1]))
    return Reading(reach, config.both_ways)


def _at(place_t: Tensor) -> Tensor:
    """Positions [t, 1]."""
    return place_t[:, None]


def _codes(codec: Codec, sounds: Sequence[Sound]) -> list[Tensor]:
    """Codes [t, u]."""
    return [segment.ids for segment in codec.encode_many(sounds)]  # type: ignore[misc]


def _sampling(temperature: float) -> Sampling:
    return Sampling(temperature=temperature)


def _units(units: UnitTokenizer, sounds: Sequence[Sound]) -> list[Tensor]:
    return [segment.ids for segment in units.encode_many(sounds)]  # type: ignore[misc]


def _unit_score(outputs: Sequence[CleanUnits], found: Sequence[Tensor]) -> dict[str, float]:
    clean = [one.true_t.numpy() for one in outputs]
    distance = unit_edit_distance(clean, [each.numpy() for each in found])
    return {"unit_edit_distance": distance, "accuracy": _alike([one.true_t for one in outputs], found)}


def _alike(true: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Share of the tokens that are the true ones, place by place."""
    same = torch.cat([(one == each).flatten() for one, each in zip(true, found, strict=True)])
    return float(same.double().mean())


def _mel(outputs: Sequence[Enhanced], sounds: Sequence[Sound]) -> float:
    """Mean distance of log-mel magnitudes from the true sounds."""
    found = []
    for one, sound in zip(outputs, sounds, strict=True):
        pair = [torch.from_numpy(each.wave_n)[None] for each in (sound, one.true)]
        found.append(float(mel_distance(pair[0], pair[1], sound.rate_hz)))
    return float(np.mean(found))
