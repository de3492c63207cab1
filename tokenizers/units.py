"""Speech as discrete units: each frame of an encoder becomes a number.

The number is that of the nearest centroid (k-means), or what a small classifier says, which may have been trained to say the same
of a sound however it was spoken or recorded (see `mmlm.tasks.robust_units`). There is a unit for every frame; runs of one
unit are shortened by `dedup` alone, never on the way.

Sources: HuBERT, arXiv:2106.07447; generative spoken language modeling, arXiv:2102.01192; augmentation-invariant units, arXiv:2209.15483.

Axes: t frames   f channels   k units
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmlm.base.errors import CheckpointError, DataError
from mmlm.base.files import parse_json
from mmlm.encoders.speech import Progress, SpeechEncoder, with_context
from mmlm.sound import Sound
from mmlm.stream import Segment
from mmlm.tokenizers.clustering import fit_centroids, nearest
from mmlm.tokenizers.config import UnitsConfig
from mmlm.weights import read_tensors, write_tensors

ABOUT, TENSORS = "units.json", "units.safetensors"


class UnitTokenizer:
    """Sounds to ids of the range `unit`. A unit cannot be turned back into sound by itself: that is a vocoder's work.

    classifier: what decides in place of the nearest centroid, or None.
    """

    modality = "unit"
    is_fitted_on_sounds = True

    def __init__(self, config: UnitsConfig) -> None:
        self.config = config
        self._encoder: SpeechEncoder | None = None
        self.mean_f = self.scale_f = self.centroids_kf = torch.zeros(0)
        self.classifier: UnitClassifier | None = None
        self._fingerprint = ""
        if config.path is not None:
            self.load(_find(config.path))

    @property
    def encoder(self) -> SpeechEncoder:
        """What makes frames of sound; built at first use."""
        if self._encoder is None:
            self._encoder = self.config.encoder.build()
        return self._encoder

    @property
    def is_fitted(self) -> bool:
        """Whether there are units."""
        return len(self.centroids_kf) > 0

    @property
    def sizes(self) -> dict[str, int]:
        """The vocabulary range and its size."""
        return {self.modality: self.config.num_units}

    @property
    def rate_hz(self) -> tuple[int, int]:
        """Units a second, as a fraction."""
        return self.encoder.rate_hz.as_integer_ratio()

    @property
    def fingerprint(self) -> str:
        """Says which encoder, weights and units these are: equal ones give equal ids."""
        self._ready()
        if not self._fingerprint:
            known = hashlib.sha256(json.dumps(self.config.encoder.model_dump(mode="json"), sort_keys=True).encode())
            for part in [self.encoder.state_dict(), self._tensors()]:
                for name, tensor in sorted(part.items()):
                    known.update(f"{name}{list(tensor.shape)}".encode())
                    known.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
            self._fingerprint = known.hexdigest()[:16]
        return self._fingerprint

    def fit(self, sounds: Iterable[Sound], progress: Progress | None = None) -> UnitTokenizer:
        """Find the units of sounds; the same sounds give the same units. Raises DataError where they hold too few frames."""
        generator = torch.Generator().manual_seed(self.config.seed)
        frames_tf = torch.cat([torch.zeros(0, self.encoder.size), *self._sampled(sounds, generator, progress)])
        if len(frames_tf) < self.config.num_units:
            raise DataError(f"{self.config.num_units} units need at least as many frames, but these sounds hold {len(frames_tf)}.")
        self.mean_f, self.scale_f = torch.zeros(self.encoder.size), torch.ones(self.encoder.size)
        if self.config.standardize:
            self.mean_f, self.scale_f = frames_tf.mean(0), frames_tf.std(0).clamp(min=1e-6).reciprocal()
        iterations, count = self.config.iterations, self.config.num_units
        self.centroids_kf = fit_centroids(self.normalized(frames_tf), count, iterations=iterations, generator=generator)
        self.classifier, self._fingerprint = None, ""
        return self

    def set_classifier(self, classifier: UnitClassifier) -> None:
        """Let a classifier of normalized frames decide from now on."""
        self.classifier, self._fingerprint = classifier.eval(), ""

    def _sampled(self, sounds: Iterable[Sound], generator: torch.Generator, progress: Progress | None) -> Iterator[Tensor]:
        """At most fit_frames frames of all, each with the same chance, while no more than twice as many are held."""
        held: list[Tensor] = []
        chances: list[Tensor] = []
        most, count = self.config.fit_frames, 0
        for frames_tf in self.encoder.frames(sounds, progress=progress):
            held.append(frames_tf)
            chances.append(torch.rand(len(frames_tf), generator=generator))
            count += len(frames_tf)
            if count > 2 * most:
                held, chances = _kept(held, chances, most)
                count = most
        yield from _kept(held, chances, most)[0]

    def normalized(self, frames_tf: Tensor) -> Tensor:
        """Frames as distances are taken and as a classifier reads them."""
        return (frames_tf - self.mean_f) * self.scale_f

    @torch.no_grad()
    def units(self, frames_tf: Tensor) -> Tensor:
        """The unit [t] of each frame."""
        x_tf = self.normalized(frames_tf)
        return nearest(x_tf, self.centroids_kf)[0] if self.classifier is None else self.classifier.units(x_tf)

    def encode(self, sound: Sound) -> Segment:
        """One sound as a segment, each unit with loss weight 1."""
        return next(self.encode_many([sound]))

    def encode_many(
        self, sounds: Iterable[Sound], *, batch_size: int = 8, precision: str = "auto", progress: Progress | None = None
    ) -> Iterator[Segment]:
        """A segment of each sound, in their order. batch_size: sounds that the encoder reads together; it changes no unit."""
        self._ready()
        for frames_tf in self.encoder.frames(sounds, batch_size=batch_size, precision=precision, progress=progress):
            yield Segment(self.modality, self.units(frames_tf), weight=1.0, rate_hz=self.rate_hz)

    def string(self, sound: Sound) -> Tensor:
        """Units of a sound without repetitions: those that CTC reads where there is a classifier, else those of `encode`."""
        if self.classifier is None:
            return dedup(self.encode(sound).ids)[0]
        with torch.no_grad():
            return self.classifier.string(self.normalized(next(iter(self.encoder.frames([sound])))))

    def stream(self) -> UnitStream:
        """Units of a sound that arrives in parts. Raises DataError where the encoder wants the whole sound."""
        self._ready()
        if not self.encoder.can_stream:
            raise DataError(f"the encoder {self.config.encoder.type!r} reads whole sounds, not parts as they arrive.")
        return UnitStream(self)

    def save(self, folder: Path | str) -> None:
        """Write units.json and units.safetensors. The encoder's weights stay where they are; its config tells where."""
        self._ready()
        Path(folder).mkdir(parents=True, exist_ok=True)
        tensors = self._tensors()
        about = {
            "config": self.config.model_dump(mode="json"),
            "classifier": None if self.classifier is None else self.classifier.sizes,
            "fingerprint": self.fingerprint,
        }
        write_tensors(Path(folder) / TENSORS, tensors)
        (Path(folder) / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    def load(self, folder: Path | str) -> UnitTokenizer:
        """Take the units that save wrote, and the encoder they belong to. Raises CheckpointError where the folder holds none."""
        path = Path(folder) / ABOUT
        try:
            about = parse_json(path.read_text(encoding="utf-8"))
            config, sizes, fingerprint = UnitsConfig.model_validate(about["config"]), about["classifier"], about["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: missing or damaged: {str(error)[:200]}") from None
        tensors = read_tensors(Path(folder) / TENSORS)
        try:
            self.mean_f, self.scale_f, self.centroids_kf = (tensors.pop(name) for name in ("mean", "scale", "centroids"))
        except KeyError as error:
            raise CheckpointError(f"{Path(folder) / TENSORS}: holds no {error}.") from None
        self.config, self._encoder, self.classifier, self._fingerprint = config, None, None, ""
        if sizes is not None:
            try:
                self.classifier = UnitClassifier(self.centroids_kf.shape[1], config.num_units, **sizes)
                self.classifier.load_state_dict({name.removeprefix("classifier."): tensor for name, tensor in tensors.items()})
            except (RuntimeError, TypeError) as error:
                raise CheckpointError(f"{Path(folder) / TENSORS}: {str(error)[:300]}") from None
            self.classifier.eval()
        if self.fingerprint != fingerprint:
            raise CheckpointError(
                f"{folder}: these units were fitted on other weights of the encoder {config.encoder.type!r} than those that are there "
                f"now, or a file was changed: the fingerprint is {self.fingerprint}, but was {fingerprint}."
            )
        return self

    def _tensors(self) -> dict[str, Tensor]:
        own = {"mean": self.mean_f, "scale": self.scale_f, "centroids": self.centroids_kf}
        more = {} if self.classifier is None else self.classifier.state_dict()
        return own | {f"classifier.{name}": tensor for name, tensor in more.items()}

    def _ready(self) -> None:
        if not self.is_fitted:
            raise DataError("there are no units yet: give tokenizers.<name>.path, or fit them on sounds.")


class UnitStream:
    """Units as soon as the frames that decide them are there; together they are those of the whole sound."""

    def __init__(self, tokenizer: UnitTokenizer) -> None:
        self.tokenizer = tokenizer
        self.frames: Any = tokenizer.encoder.stream()  # type: ignore[operator]
        self.reach = 0 if tokenizer.classifier is None else tokenizer.classifier.reach
        self.held_tf = torch.zeros(0, tokenizer.encoder.size)  # frames that decide units to come
        self.given = 0  # units of held frames that are out already

    def push(self, wave_n: np.ndarray) -> Tensor:
        """The units [t] that further samples at 16 kHz complete; maybe none."""
        self.held_tf = torch.cat([self.held_tf, self.frames.push(wave_n)])
        return self._units(len(self.held_tf) - self.reach)

    def flush(self) -> Tensor:
        """The units that are left when the sound has ended."""
        self.held_tf = torch.cat([self.held_tf, self.frames.flush()])
        return self._units(len(self.held_tf))

    def _units(self, stop: int) -> Tensor:
        """Units of the held frames from `given` to `stop`."""
        if stop <= self.given:
            return torch.zeros(0, dtype=torch.long)
        found = self.tokenizer.units(self.held_tf)[self.given : stop]
        first = max(0, stop - self.reach)
        self.held_tf, self.given = self.held_tf[first:], stop - first
        return found


class UnitClassifier(nn.Module):
    """Three linear layers from a normalized frame, with `context` frames on each side, to units and a blank, which is the last."""

    def __init__(self, size: int, num_units: int, hidden: int, context: int) -> None:
        super().__init__()
        self.num_units, self.sizes = num_units, {"hidden": hidden, "context": context}
        self.context, self.reach = context, context + 1
        self.layers = nn.Sequential(
            nn.Linear(size * (2 * context + 1), hidden),
            nn.LeakyReLU(),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(),
            nn.Linear(hidden, num_units + 1),
        )

    def forward(self, sounds: Sequence[Tensor]) -> Tensor:
        """Logits [t, k + 1] of the frames [t, f] of some sounds, one after the other."""
        return self.layers(torch.cat([with_context(x_tf, self.context) for x_tf in sounds]))

    def units(self, x_tf: Tensor) -> Tensor:
        """The likeliest unit [t] of each frame of one sound, by log-probabilities smoothed over three frames; the blank is none."""
        log_p_tk = self([x_tf]).log_softmax(-1)
        around_tk = with_context(log_p_tk, 1).unflatten(1, (3, -1))
        smooth_tk = (around_tk * around_tk.new_tensor([0.25, 0.5, 0.25])[:, None]).sum(1)
        return smooth_tk[:, : self.num_units].argmax(1)

    def string(self, x_tf: Tensor) -> Tensor:
        """The units that CTC reads: runs of one are one, and blanks are left out."""
        told = torch.unique_consecutive(self([x_tf]).argmax(1))
        return told[told != self.num_units]


def dedup(units: Tensor) -> tuple[Tensor, Tensor]:
    """Units without repetitions, and how often each stood there in a row."""
    return torch.unique_consecutive(units, return_counts=True)


def expand(units: Tensor, run_lengths: Tensor | Sequence[int]) -> Tensor:
    """What `dedup` was given."""
    return units.repeat_interleave(torch.as_tensor(run_lengths))


def _kept(held: list[Tensor], chances: list[Tensor], most: int) -> tuple[list[Tensor], list[Tensor]]:
    """The frames with the highest of the numbers that were drawn for them, in their order."""
    if not held:
        return [], []
    frames_tf, chance_t = torch.cat(held), torch.cat(chances)
    if len(frames_tf) <= most:
        return [frames_tf], [chance_t]
    keep = chance_t.topk(most).indices.sort().values
    return [frames_tf[keep]], [chance_t[keep]]


def _find(name: str) -> Path:
    """The folder itself, or the one folder of units in a run."""
    path = Path(name)
    in_run = sorted(each.parent for each in path.glob(f"tokenizers/*/{ABOUT}"))
    return in_run[0] if len(in_run) == 1 and not (path / ABOUT).is_file() else path
