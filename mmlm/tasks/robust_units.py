"""Units that stay the same however a sound is stretched, pitched, recorded in a room or drowned in noise.

A small classifier reads the frames of the changed sound and learns, by CTC, to say the units of the clean one without repetitions: first
those of k-means, in each later round those of the classifier of the round before, with a fresh one. CTC and not a loss frame by frame, as
stretching changes their number. Beyond the paper, the frames of the clean sound are asked for the teacher's unit too, with a small
weight: without that, units drift in time and lose some of what they tell of the phones (tests/quality/test_robust_units.py).
The encoder stays as it is. `train.keep_best` with `guarded_distance` keeps the best round.

Source: augmentation-invariant discrete representation, arXiv:2209.15483.

Axes: t frames of all sounds   f channels   k units
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.base.errors import RecipeError, unknown_name
from mmlm.base.files import write_text_whole
from mmlm.data.audio_augment import Augment
from mmlm.data.base import Drawn, Draws
from mmlm.data.speech import Utterance
from mmlm.encoders.speech import SAMPLE_RATE_HZ
from mmlm.objectives.base import Losses
from mmlm.sound import Sound
from mmlm.tasks.config import RobustUnitsConfig
from mmlm.tasks.forms import Audio, Data, Field, Text, Values
from mmlm.tasks.recordings import RecordingsTask
from mmlm.tokenizers.clustering import nearest
from mmlm.tokenizers.unit_measures import unit_edit_distance, unit_perplexity, without_repetitions
from mmlm.tokenizers.units import UnitClassifier, UnitTokenizer
from mmlm.training.order import derived

COLLAPSED = 100.0  # added to a distance that fewer units in use have paid for
KMEANS = "k-means"


@dataclass
class FramePairs:
    """Frames [t, f] of clean sounds and of the same sounds changed, one after the other, and how many each has."""

    clean_tf: Tensor
    clean_lengths: list[int]
    changed_tf: Tensor
    changed_lengths: list[int]

    @property
    def num_tokens(self) -> int:
        """Frames of the changed sounds."""
        return len(self.changed_tf)

    def to(self, device: torch.device | str) -> FramePairs:
        """The same on another device."""
        return FramePairs(self.clean_tf.to(device), self.clean_lengths, self.changed_tf.to(device), self.changed_lengths)


class SoundPairs(Drawn):
    """Parts of utterances, clean and changed; a batch holds their frames."""

    def __init__(self, records: Draws, units: UnitTokenizer, augment: Augment) -> None:
        self.records, self.units, self.augment = records, units, augment
        self.fingerprint = records.fingerprint

    def draw(self, rng: np.random.Generator) -> tuple[Utterance, tuple[Sound, Sound]]:
        """An utterance, its clean sound and the same changed."""
        record = self.records.draw(rng)
        clean = record.sound(SAMPLE_RATE_HZ)
        return record, (clean, self.augment(clean, rng)[0])

    def collate(self, items: list[tuple[Sound, Sound]]) -> FramePairs:
        """Frames of all sounds, read together."""
        sounds = [sound for column in zip(*items, strict=True) for sound in column]
        frames = list(self.units.encoder.frames(sounds, batch_size=len(sounds)))
        clean, changed = frames[: len(items)], frames[len(items) :]
        return FramePairs(torch.cat(clean), list(map(len, clean)), torch.cat(changed), list(map(len, changed)))


class RobustModel(nn.Module):
    """k-means and a classifier for each round; `round` says which learns, or is used. Before round 0 there is k-means."""

    def __init__(self, units: UnitTokenizer, classifiers: Sequence[UnitClassifier]) -> None:
        super().__init__()
        for name, tensor in (("mean_f", units.mean_f), ("scale_f", units.scale_f), ("centroids_kf", units.centroids_kf)):
            self.register_buffer(name, tensor.clone())
        self.register_buffer("round", torch.tensor(len(classifiers) - 1))
        self.classifiers = nn.ModuleList(classifiers)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.centroids_kf.device

    @property
    def student(self) -> UnitClassifier:
        """The classifier of this round."""
        return self.classifiers[int(self.round)]  # type: ignore[return-value]

    def normalized(self, frames_tf: Tensor) -> Tensor:
        """Frames as k-means and classifiers read them."""
        return (frames_tf - self.mean_f) * self.scale_f

    @torch.no_grad()
    def units(self, frames_tf: Tensor, rounds: int | None = None) -> Tensor:
        """Units [t] of one sound after so many rounds: 0 is k-means; None, this one."""
        rounds = int(self.round) + 1 if rounds is None else rounds
        x_tf = self.normalized(frames_tf)
        return self.classifiers[rounds - 1].units(x_tf) if rounds else nearest(x_tf, self.centroids_kf)[0]  # type: ignore[operator]


class RobustLearner(nn.Module):
    """The model under its two losses; rounds share the steps of a run evenly."""

    def __init__(self, model: RobustModel, num_rounds: int, keep: float) -> None:
        super().__init__()
        self.model, self.num_rounds, self.keep = model, num_rounds, keep

    def begin_step(self, step: int, steps: int) -> None:
        """Called before the step that follows `step` taken ones."""
        self.model.round.fill_(min(step * self.num_rounds // steps, self.num_rounds - 1))

    def forward(self, batch: FramePairs) -> Losses:
        """ctc: of the changed sounds, a frame.   keep: of the clean sounds, a frame."""
        model, student = self.model, self.model.student
        clean = batch.clean_tf.split(batch.clean_lengths)
        targets = [model.units(frames_tf, int(model.round)) for frames_tf in clean]
        changed = [model.normalized(part) for part in batch.changed_tf.split(batch.changed_lengths)]
        log_p_tk = student(changed).float().log_softmax(-1)
        parts = [  # one by one: together they would be filled up to the longest
            F.ctc_loss(one_tk, wanted, (len(one_tk),), (len(wanted),), blank=student.num_units, reduction="sum", zero_infinity=True)
            for one_tk, wanted in zip(log_p_tk.split(batch.changed_lengths), map(torch.unique_consecutive, targets), strict=True)
        ]
        kept = F.cross_entropy(student([model.normalized(part) for part in clean]).float(), torch.cat(targets), reduction="sum")
        weights = {name: torch.tensor(weight) for name, weight in self.loss_weights(batch).items()}
        return {"ctc": (torch.stack(parts).sum(), weights["ctc"]), "keep": (self.keep * kept, weights["keep"])}

    def loss_weights(self, batch: FramePairs) -> dict[str, float]:
        """Frames."""
        return {"ctc": float(len(batch.changed_tf)), "keep": float(len(batch.clean_tf))}


@dataclass(frozen=True)
class Steady:
    """Units of a clean sound, and by the name of an augmentation those of the same sound changed by it alone."""

    clean_t: np.ndarray
    changed: dict[str, np.ndarray] = field(default_factory=dict)


class RobustUnitsTask(RecordingsTask):
    """Trains the classifier of the recipe's units, which are fitted or read before."""

    trains: Collection[str] = ()

    def __init__(self, config: RobustUnitsConfig, tokenizers: Mapping[str, Any]) -> None:
        if config.tokenizer not in tokenizers:
            raise RecipeError(f"tokenizers: {unknown_name('tokenizer', config.tokenizer, tokenizers)}")
        units = tokenizers[config.tokenizer]
        if not isinstance(units, UnitTokenizer):
            raise RecipeError(f"tokenizers.{config.tokenizer}: the task robust_units trains units, not this type.")
        self.config, self.tokenizers, self.units = config, tokenizers, units
        self.model: RobustModel | None = None
        self.singles = {each.type: Augment([each.model_copy(update={"chance": 1.0})]) for each in config.augment}

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """The range of the units."""
        return self.units.sizes

    @property
    def metrics(self) -> Sequence[str]:
        """What `score` gives."""
        return ("unit_edit_distance", *self.singles, "perplexity", "guarded_distance")

    def learner(self, seed: int) -> RobustLearner:
        """Fresh classifiers for all rounds."""
        torch.manual_seed(seed)
        size, config = self.units.centroids_kf.shape[1], self.config
        classifiers = [UnitClassifier(size, self.units.config.num_units, config.hidden, config.context) for _ in range(config.rounds)]
        self.model = RobustModel(self.units, classifiers)
        return RobustLearner(self.model, config.rounds, config.keep)

    def samples(self, records: Draws) -> SoundPairs:
        """Pairs of sounds."""
        return SoundPairs(records, self.units, Augment(self.config.augment))

    def save(self, folder: Path) -> None:
        """The units once more, now with the classifier of the round that was kept."""
        assert self.model is not None
        self.units.set_classifier(self.model.student)
        self.units.save(folder / "tokenizers" / self.config.tokenizer)

    def load(self, folder: Path) -> RobustModel:
        """k-means and the classifier that was kept. Raises RecipeError where there is none."""
        if self.units.classifier is None:
            raise RecipeError(f"{folder}: its units have no classifier; the run did not end.")
        return RobustModel(self.units, [self.units.classifier])

    def sounds(self, record: Utterance) -> list[Sound]:
        """Its sound: what k-means is fitted on."""
        return [record.sound(SAMPLE_RATE_HZ)]

    def shown(self, record: Utterance) -> str:
        """Its units by k-means, clean and changed."""
        return "\n".join([self.title(record), *_lines(self._steady(record, KMEANS, None))])

    inputs: Mapping[str, Field] = {"audio": Audio("Sound", "any rate; a minute at most", most_seconds=60)}
    outputs: Mapping[str, Field] = {"units": Text("Units, without repetitions"), "frames": Data("The unit of each frame")}

    def given_by(self, record: Utterance) -> Values:
        """Its sound."""
        return {"audio": record.sound(SAMPLE_RATE_HZ)}

    def answer(self, model: RobustModel, given: Values) -> Iterator[Values]:
        """The units of a sound."""
        sound = given["audio"].at(SAMPLE_RATE_HZ)
        frames_t, (rate, seconds) = self.units.encode(sound).ids, self.units.rate_hz
        assert frames_t is not None
        told = {"frames_a_second": rate / seconds, "units": frames_t.tolist()}
        yield {"units": " ".join(map(str, self.units.string(sound).tolist())), "frames": told}

    def predict(self, model: RobustModel, records: Sequence[Utterance]) -> list[Steady]:
        """Units of each record, clean and changed by each augmentation alone."""
        return [self._steady(record, "", model) for record in records]

    def _steady(self, record: Utterance, by: str, model: RobustModel | None) -> Steady:
        """by: k-means, or nothing for the model's present round. How a record is changed depends on its id alone."""
        clean = record.sound(SAMPLE_RATE_HZ)
        sounds = [clean]
        for name, augment in self.singles.items():
            sounds.append(augment(clean, np.random.default_rng(derived("robust units", record.id, str(record.start_seconds), name)))[0])
        model = model or RobustModel(self.units, [])
        frames = self.units.encoder.frames(sounds, batch_size=len(sounds))
        found = [model.units(each.to(model.device), 0 if by else None).cpu().numpy() for each in frames]
        return Steady(found[0], dict(zip(self.singles, found[1:], strict=True)))

    def score(self, outputs: Sequence[Steady], records: Sequence[Utterance]) -> dict[str, float]:
        """unit_edit_distance: edits in 100 units, mean over the augmentations; each by its name too.   perplexity: of the units of the
        clean sounds.   guarded_distance: the first, and 100 more where the perplexity is below min_perplexity times that of k-means:
        units that collapse are steady and say nothing."""
        found = _distances(outputs)
        clean = np.concatenate([one.clean_t for one in outputs])
        found["perplexity"] = unit_perplexity(clean)
        least = self.config.min_perplexity * unit_perplexity(self._kmeans(records))
        return {**found, "guarded_distance": found["unit_edit_distance"] + COLLAPSED * (found["perplexity"] < least)}

    def _kmeans(self, records: Sequence[Utterance]) -> np.ndarray:
        """Units [t] by k-means of the clean sounds."""
        model = RobustModel(self.units, [])
        frames = self.units.encoder.frames(record.sound(SAMPLE_RATE_HZ) for record in records)
        return torch.cat([model.units(each, 0) for each in frames]).numpy()

    def baselines(self, records: Sequence[Utterance]) -> dict[str, dict[str, float]]:
        """k-means on the same frames."""
        outputs = [self._steady(record, KMEANS, None) for record in records]
        return {KMEANS: {**_distances(outputs), "perplexity": unit_perplexity(np.concatenate([one.clean_t for one in outputs]))}}

    def write_samples(self, model: RobustModel, records: Sequence[Utterance], folder: Path) -> None:
        """units.txt: units of each record by k-means and by the model."""
        parts = []
        for record in records:
            parts += [self.title(record), "by k-means", *_lines(self._steady(record, KMEANS, model))]
            parts += ["by the model", *_lines(self._steady(record, "", model)), ""]
        write_text_whole(folder / "units.txt", "\n".join(parts))


def _lines(steady: Steady) -> list[str]:
    width = max(map(len, ["clean", *steady.changed]))
    named = {"clean": steady.clean_t, **steady.changed}
    return [f"  {name:<{width}}  {' '.join(map(str, without_repetitions(units_t)))}" for name, units_t in named.items()]


def _distances(outputs: Sequence[Steady]) -> dict[str, float]:
    """Unit edit distance under each augmentation, and the mean of all."""
    clean = [one.clean_t for one in outputs]
    found = {name: unit_edit_distance(clean, [one.changed[name] for one in outputs]) for name in outputs[0].changed}
    return {"unit_edit_distance": float(np.mean(list(found.values()))), **found}
