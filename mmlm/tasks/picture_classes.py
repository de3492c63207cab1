"""What pictures show: an encoder of whole pictures and a linear layer, measured beside the commonest classes.

The class of a picture is the label of the only thing in it, or else its caption, which may be the name of its folder.

Axes: b pictures   c colours   y, x pixels   k classes
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.analysis.drawing import figure, write_png
from mmlm.base.errors import CheckpointError, DataError
from mmlm.base.files import parse_json, write_text_whole
from mmlm.data.base import Drawn, Draws, HoldsOut, KeepsBack, Listed
from mmlm.data.pictures import Picture
from mmlm.encoders.images import ImageEncoder
from mmlm.objectives.base import Losses
from mmlm.parameters import linear
from mmlm.tasks.base import UsualTask
from mmlm.tasks.config import PictureClassesConfig
from mmlm.tasks.forms import Field, Image, Shares, Values
from mmlm.weights import copy_tensors, read_tensors, write_tensors

PICTURED = 6  # test pictures that a report shows
WEIGHTS, CLASSES = "model.safetensors", "classes.json"
LOOKED_AT = 4000  # drawn pictures of a source without end whose classes are known
GUESSES = (1, 2, 3, 4, 5, 10)
COMMONEST = "the commonest classes"
AT_ONCE = 32


class PictureClassifier(nn.Module):
    """Pictures, as the encoder wants them, to scores of classes. learns: all, or the head alone."""

    def __init__(self, encoder: ImageEncoder, count: int, learns: str = "all") -> None:
        super().__init__()
        encoder.is_whole = True
        self.encoder = encoder.requires_grad_(False) if learns == "head" else encoder
        self.head = linear(encoder.size, count, "features", "classes", bias=True)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    def forward(self, x_bcyx: Tensor) -> Tensor:
        """[b, k]."""
        network = self.encoder.network
        return self.head(self.encoder.pooled(network, x_bcyx.to(next(network.parameters()).dtype)).float())


@dataclass
class ClassBatch:
    """Prepared pictures and the numbers of their classes."""

    x_bcyx: Tensor
    labels_b: Tensor

    @property
    def num_tokens(self) -> int:
        """Pictures."""
        return len(self.labels_b)

    def to(self, device: torch.device | str) -> ClassBatch:
        """The same on another device."""
        return ClassBatch(self.x_bcyx.to(device), self.labels_b.to(device))


class ClassLearner(nn.Module):
    """A classifier under cross-entropy."""

    def __init__(self, model: PictureClassifier, smoothing: float = 0.0) -> None:
        super().__init__()
        self.model, self.smoothing = model, smoothing

    def forward(self, batch: ClassBatch) -> Losses:
        """class: a picture."""
        smoothing = self.smoothing if self.training else 0.0
        loss = F.cross_entropy(self.model(batch.x_bcyx), batch.labels_b, reduction="sum", label_smoothing=smoothing)
        return {"class": (loss, torch.tensor(float(len(batch.labels_b))))}

    def loss_weights(self, batch: ClassBatch) -> dict[str, float]:
        """Pictures."""
        return {"class": float(len(batch.labels_b))}


class ClassSamples(Drawn):
    """Pictures with the numbers of their classes."""

    def __init__(self, records: Draws, task: PictureClassesTask) -> None:
        self.records, self.task, self.fingerprint = records, task, records.fingerprint

    def draw(self, rng: np.random.Generator) -> tuple[Picture, tuple[Tensor, int]]:
        """A picture, as the encoder reads it, and the number of its class."""
        record = self.records.draw(rng)
        pixels_yxc = record.read()
        if self.task.config.mirror and rng.random() < 0.5:
            pixels_yxc = np.ascontiguousarray(pixels_yxc[:, ::-1])
        return record, (self.task.encoder.prepare(pixels_yxc), self.task.number(record))

    def collate(self, items: list[tuple[Tensor, int]]) -> ClassBatch:
        """Pictures as one batch."""
        return ClassBatch(torch.stack([x_cyx for x_cyx, _ in items]), torch.tensor([label for _, label in items]))


class PictureClassesTask(UsualTask):
    """Trains an encoder of pictures and a linear layer to name what a picture shows."""

    vocabulary: Mapping[str, int] = {}
    features: Mapping[str, int] = {}
    tokenizers: Mapping[str, Any] = {}
    trains: Collection[str] = ()
    asks = None
    over = "guesses"
    metrics = ("top1", "top5", "per_class")

    def __init__(self, config: PictureClassesConfig, tokenizers: Mapping[str, Any]) -> None:
        self.config = config
        self.sources: Sequence[Any] = ()
        self.model: PictureClassifier | None = None
        self._classes = config.classes
        self._encoder: ImageEncoder | None = None

    def meet(self, sources: Sequence[Any]) -> None:
        """Keep the sources, whose classes are looked for when they are asked for."""
        self.sources = sources

    @property
    def classes(self) -> list[str]:
        """Names of the classes. Raises DataError where sources show fewer than two."""
        if self._classes is None:
            found = sorted({class_of(record) for source in self.sources for record in _looked_at(source.build())})
            if len(found) < 2:
                raise DataError(f"the sources show {len(found)} class{'' if found else 'es'}{''.join(f' ({one!r})' for one in found)}.")
            self._classes = found
        return self._classes

    @property
    def encoder(self) -> ImageEncoder:
        """The encoder, which also prepares the pictures."""
        if self._encoder is None:
            self._encoder = self.config.encoder.build()
            self._encoder.is_whole = True
        return self._encoder

    def number(self, record: Picture) -> int:
        """The number of a picture's class. Raises DataError for one that is not among the classes."""
        name = class_of(record)
        if name not in self.classes:
            raise DataError(f"{record.where}: shows {name!r}, which is none of the {len(self.classes)} classes; name all in task.classes.")
        return self.classes.index(name)

    def learner(self, seed: int) -> ClassLearner:
        """The classifier under its loss."""
        torch.manual_seed(seed)
        self._encoder = None  # its first weights are the seed's
        self.model = PictureClassifier(self.encoder, len(self.classes), self.config.learns)
        return ClassLearner(self.model, self.config.smoothing)

    def samples(self, records: Draws) -> ClassSamples:
        """Pictures with classes."""
        return ClassSamples(records, self)

    def save(self, folder: Path) -> None:
        """model.safetensors, and classes.json with the classes and what the encoder is without the files it began from."""
        assert self.model is not None
        write_tensors(folder / WEIGHTS, self.model.state_dict())
        encoder = self.model.encoder.without_weights().model_dump(mode="json")
        write_text_whole(folder / CLASSES, json.dumps({"classes": self.classes, "encoder": encoder}, indent=1, ensure_ascii=False) + "\n")

    def load(self, folder: Path) -> PictureClassifier:
        """The network of a finished run, from its folder alone. Raises CheckpointError."""
        path = folder / CLASSES
        try:
            told = parse_json(path.read_text(encoding="utf-8"))
            self._classes = [str(name) for name in told["classes"]]
            config = PictureClassesConfig.model_validate({"encoder": told["encoder"]}).encoder
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}.") from None
        self._encoder = config.build()
        self.model = PictureClassifier(self.encoder, len(self._classes), self.config.learns)
        copy_tensors(self.model.state_dict(), read_tensors(folder / WEIGHTS), str(folder / WEIGHTS))
        return self.model.eval()

    def texts(self, record: Picture, rng: np.random.Generator) -> list[str]:
        """The class."""
        return [class_of(record)]

    def title(self, record: Picture) -> str:
        """Which picture."""
        return f"{record.id}: what does it show?"

    def shown(self, record: Picture) -> str:
        """Its size and its class."""
        return f"{record.id}: {record.width} x {record.height} pixels, {class_of(record)}, one of {len(self.classes)} classes"

    @torch.no_grad()
    def probabilities(self, model: PictureClassifier, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """[pictures, k] of pictures, uint8 [y, x, 3]."""
        was, found = model.training, []
        model.eval()
        for start in range(0, len(pictures), AT_ONCE):
            x_bcyx = torch.stack([model.encoder.prepare(pixels) for pixels in pictures[start : start + AT_ONCE]])
            found.append(model(x_bcyx.to(model.device)).float().softmax(-1).cpu().numpy())
        model.train(was)
        return np.concatenate(found)

    def predict(self, model: PictureClassifier, records: Sequence[Picture]) -> list[np.ndarray]:
        """Probabilities [k] of each picture."""
        return list(self.probabilities(model, [record.read() for record in records]))

    def score(self, outputs: Sequence[np.ndarray], records: Sequence[Picture]) -> dict[str, float]:
        """top1, top5: share of the pictures whose class is the likeliest, or among the five likeliest.   per_class: top1 of each class,
        mean over the classes that occur. A class that is none of the known ones is a miss."""
        orders = [[self.classes[int(place)] for place in np.argsort(-one, kind="stable")] for one in outputs]
        return _scores(orders, [class_of(record) for record in records])

    def baselines(self, records: Sequence[Picture]) -> dict[str, dict[str, float]]:
        """The commonest classes of these records, whatever the picture."""
        true = [class_of(record) for record in records]
        order = [name for name, _ in sorted(Counter(true).items(), key=lambda item: (-item[1], item[0]))]
        return {COMMONEST: _scores([order] * len(true), true)}

    def curves(self, outputs: Sequence[np.ndarray], records: Sequence[Picture]) -> dict[str, list[tuple[float, float]]]:
        """Share of the pictures whose class is among the likeliest."""
        true = np.array([self.classes.index(name) if (name := class_of(record)) in self.classes else -1 for record in records])
        order = np.argsort(-np.stack(outputs), axis=1, kind="stable")
        places = [count for count in GUESSES if count <= len(self.classes)]
        return {"share right": [(float(count), float((order[:, :count] == true[:, None]).any(1).mean())) for count in places]}

    def pictures(self, outputs: Sequence[np.ndarray], records: Sequence[Picture]) -> list[str]:
        """The first pictures, what is said of them and what they are."""
        found = []
        for one, record in list(zip(outputs, records, strict=True))[:PICTURED]:
            told = "<br>".join(f"{escape(name)} {chance:.2f}" for name, chance in self.named(one)[:3])
            found.append(figure(record.read(), f"{told}<br><small>true: {escape(class_of(record))}</small>", alt=class_of(record)))
        return found

    def write_samples(self, model: PictureClassifier, records: Sequence[Picture], folder: Path) -> None:
        """Each picture, and classes.txt with what is said of them."""
        lines = []
        for number, (record, found) in enumerate(zip(records, self.predict(model, records), strict=True), 1):
            write_png(folder / f"{number}.png", record.read())
            told = ", ".join(f"{name} {chance:.2f}" for name, chance in self.named(found)[:3])
            lines.append(f"{number}.png: {told}; true: {class_of(record)}")
        write_text_whole(folder / "classes.txt", "\n".join(lines) + "\n")

    inputs: Mapping[str, Field] = {"image": Image("Picture")}
    outputs: Mapping[str, Field] = {"classes": Shares("What it shows")}

    def given_by(self, record: Picture) -> Values:
        """The picture."""
        return {"image": record.read()}

    def answer(self, model: PictureClassifier, given: Values) -> Iterator[Values]:
        """The classes with their probabilities, the likeliest first."""
        yield {"classes": dict(self.named(self.probabilities(model, [given["image"]])[0]))}

    def named(self, probabilities_k: np.ndarray) -> list[tuple[str, float]]:
        """Classes with their probabilities, the likeliest first."""
        return [(self.classes[int(place)], float(probabilities_k[place])) for place in np.argsort(-probabilities_k, kind="stable")]


def class_of(record: Picture) -> str:
    """What a picture shows. Raises DataError where that is not one thing, or is not known."""
    if len(record.things) == 1:
        return record.things[0].label
    if not record.things and record.captions:
        return record.captions[0].text
    what = f"{len(record.things)} things" if record.things else "no thing and no caption"
    raise DataError(f"{record.where}: has {what}; a class needs pictures of a single thing, or folders named by what theirs show.")


def _looked_at(source: Any) -> list[Picture]:
    """All pictures of a source of files, or of one that draws, what it lists and some more."""
    rng = np.random.default_rng(0)
    listed = list(source.everything()) if isinstance(source, Listed) else []
    parts: list[Any] = [source.kept_back()] if isinstance(source, KeepsBack) else []
    parts += [source.held_out_records()] if isinstance(source, HoldsOut) else []
    listed += [record for part in parts if isinstance(part, Listed) for record in part.everything()]
    return listed if isinstance(source, HoldsOut) else [*listed, *(source.draw(rng, None) for _ in range(LOOKED_AT))]


def _scores(orders: Sequence[Sequence[str]], true: Sequence[str]) -> dict[str, float]:
    """orders: classes of each picture, the likeliest first."""
    right = [order[0] == name for order, name in zip(orders, true, strict=True)]
    among = [name in order[:5] for order, name in zip(orders, true, strict=True)]
    each = [np.mean([hit for hit, other in zip(right, true, strict=True) if other == name]) for name in set(true)]
    return {"top1": float(np.mean(right)), "top5": float(np.mean(among)), "per_class": float(np.mean(each))}
