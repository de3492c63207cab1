"""Two towers that bring pictures and texts into one space, trained from pairs, and how well either then finds the other.

What finds matches of words and patches, and what reads hidden words beside a picture, are parts of the losses: the finished run holds the
two towers alone, as open_clip writes a model.

Axes: b samples   t tokens of a text   c, y, x channels and pixels   d shared space   n pictures   m texts
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmlm.analysis.drawing import figure, write_png
from mmlm.analysis.retrieval import class_vectors, retrieval, sentences, zero_shot
from mmlm.base.errors import DataError, require
from mmlm.base.files import write_text_whole
from mmlm.data.base import Drawn, Draws
from mmlm.data.pictures import Picture, random_part
from mmlm.encoders.image_models import OpenClipEncoder, model_config
from mmlm.encoders.towers import Towers
from mmlm.objectives.base import Losses
from mmlm.objectives.caption_mlm import CaptionMlm
from mmlm.objectives.contrastive import soft_clip
from mmlm.objectives.gathering import alone, gathered, num_processes
from mmlm.objectives.token_matching import TokenMatching
from mmlm.tasks.base import UsualTask
from mmlm.tasks.config import ImageTextConfig
from mmlm.tasks.forms import Chances, Field, Pictures, Table, Text, Values
from mmlm.weights import write_tensors

PICTURED, NEAREST = 6, 3  # test pictures that a report shows, and texts near each
WEIGHTS, ABOUT = "open_clip_model.safetensors", "open_clip_config.json"
MOST_SCALE = math.log(100.0)  # of CLIP, section 2.5
CHANCE = "chance"
CLASS = "class"
ZERO_SHOT = ("zero_shot_1", "zero_shot_5", "zero_shot_class")
MOST_TEXTS = 32  # that are asked at once


@dataclass
class Pairs:
    """Pictures [b, c, y, x], as the towers read them, and their texts [b, t]."""

    pictures_bcyx: Tensor
    ids_bt: Tensor

    @property
    def num_tokens(self) -> int:
        """Tokens of the texts, with begin and end."""
        return int((self.ids_bt != 0).sum())

    def to(self, device: torch.device | str) -> Pairs:
        """The same on another device."""
        return Pairs(self.pictures_bcyx.to(device), self.ids_bt.to(device))


class PairSamples(Drawn):
    """A picture, or a random part of it, with one of its captions."""

    def __init__(self, records: Draws, encoder: OpenClipEncoder, least_area: float) -> None:
        self.records, self.encoder, self.least_area = records, encoder, least_area
        self.fingerprint = records.fingerprint

    def draw(self, rng: np.random.Generator) -> tuple[Picture, tuple[Tensor, Tensor]]:
        """A record, its picture [c, y, x] and its text [t]."""
        record: Picture = self.records.draw(rng)
        captions = texts_of(record)
        caption = captions[int(rng.integers(len(captions)))]
        pixels_yxc = record.read()
        if self.least_area < 1:
            left, top, right, bottom = random_part(pixels_yxc.shape[0], pixels_yxc.shape[1], self.least_area, rng)
            pixels_yxc = pixels_yxc[top:bottom, left:right]
        return record, (self.encoder.prepare(pixels_yxc), self.encoder.tokenizer([caption])[0])

    def collate(self, items: list[tuple[Tensor, Tensor]]) -> Pairs:
        """Pairs of a batch."""
        pictures, texts = zip(*items, strict=True)
        return Pairs(torch.stack(pictures), torch.stack(texts))


def texts_of(record: Picture) -> list[str]:
    """Captions of a picture. Raises DataError where it has none."""
    if not record.captions:
        raise DataError(f"{record.where}: has no caption, so there is no text to find it by.")
    return [caption.text for caption in record.captions]


class ImageTextLearner(nn.Module):
    """The towers under their losses; `begin_step` softens the targets."""

    def __init__(self, towers: Towers, config: ImageTextConfig, side: int) -> None:
        super().__init__()
        self.model, self.config = towers, config
        self.register_buffer("alpha", torch.tensor(0.0))
        self.matching = None if config.token_matching is None else TokenMatching(config.token_matching)
        self.mlm = None
        if config.caption_mlm is not None:
            with torch.no_grad():
                widths = [stage.shape[-1] for stage in towers.see(torch.zeros(1, 3, side, side, device=towers.device)).stages]
            self.mlm = CaptionMlm(config.caption_mlm, towers.text_width, towers.num_layers, widths)

    @torch.no_grad()
    def begin_step(self, step: int, steps: int) -> None:
        """Called before the step that follows `step` taken ones."""
        self.alpha.fill_(self.config.soft_clip.alpha * step / max(1, steps - 1))
        self.model.model.logit_scale.clamp_(max=MOST_SCALE)

    def forward(self, batch: Pairs) -> Losses:
        """Loss sums and weights by name; weights count pairs, but that of a loss's own weight is in its sum.

        In training the pairs of all processes are compared, which must call this together; else those of the batch alone."""
        towers, config, count = self.model, self.config, len(batch.ids_bt)
        together = gathered if self.training and num_processes() > 1 else alone
        ids_bt = batch.ids_bt if together is gathered else towers.cut(batch.ids_bt)
        seen, read = towers.see(batch.pictures_bcyx), towers.read(ids_bt)
        all_pictures_nd, first = together(seen.pooled_bd)
        all_texts_nd, _ = together(read.pooled_bd)
        scale = towers.model.logit_scale.exp()
        with torch.autocast(towers.device.type, enabled=False):  # a scale of 100 makes errors of rounded cosines large
            found = soft_clip(
                seen.pooled_bd, read.pooled_bd, all_pictures_nd, all_texts_nd, scale, first, float(self.alpha), config.soft_clip
            )
            sums = {"soft_clip": config.soft_clip.weight * found}
            if self.matching is not None:
                (patches_ngd, _), (tokens_ntd, _), (ids_nt, _) = map(together, (seen.patches_bgd, read.tokens_btd, ids_bt))
                found = self.matching(seen.patches_bgd, read.tokens_btd, patches_ngd, tokens_ntd, towers.is_word(ids_nt), first)
                sums["token_matching"] = self.matching.config.weight * found
        if self.mlm is not None:
            hidden_bt = hidden_words(towers.is_word(ids_bt), self.mlm.config.rate)
            found = self.mlm(towers, ids_bt, hidden_bt, seen.stages)
            sums["caption_mlm"] = self.mlm.config.weight * found * (count / hidden_bt.sum())
        return {name: (value, torch.tensor(float(count))) for name, value in sums.items()}

    def loss_weights(self, batch: Pairs) -> dict[str, float]:
        """Pairs."""
        names = ("soft_clip", *["token_matching"] * (self.matching is not None), *["caption_mlm"] * (self.mlm is not None))
        return dict.fromkeys(names, float(len(batch.ids_bt)))


def hidden_words(is_word_bt: Tensor, rate: float) -> Tensor:
    """bool [b, t]: a share of the words of each text, one at least."""
    drawn_bt = torch.rand(is_word_bt.shape, device=is_word_bt.device).masked_fill(~is_word_bt, 2.0)
    least_b1 = drawn_bt.min(1, keepdim=True).values
    return ((drawn_bt < rate) | (drawn_bt == least_b1)) & is_word_bt


@dataclass(frozen=True)
class Placed:
    """Vectors of length 1 of a picture [d], of its texts [m, d] and of the sentences [s, d] that name its class; None if it is unknown."""

    picture_d: np.ndarray
    texts: list[str]
    texts_md: np.ndarray
    label: str
    label_sd: np.ndarray | None


class ImageTextTask(UsualTask):
    """Trains two towers."""

    features: Mapping[str, int] = {}
    vocabulary: Mapping[str, int] = {}
    trains: Collection[str] = ()
    asks = None

    def __init__(self, config: ImageTextConfig, tokenizers: Mapping[str, Any]) -> None:
        self.config, self.tokenizers = config, tokenizers
        self.encoder: OpenClipEncoder | None = None

    @property
    def metrics(self) -> Sequence[str]:
        """What `score` gives of all pictures."""
        return ("mean_r1", *(f"{way}_{what}" for way in ("i2t", "t2i") for what in ("r1", "r5", "r10", "median")))

    def further_metrics(self, records: Sequence[Picture]) -> Sequence[str]:
        """Zero-shot figures, where pictures are of two classes at least."""
        return ZERO_SHOT if len(self._classes(records)) > 1 else ()

    def _classes(self, records: Sequence[Picture]) -> list[str]:
        """The classes that sentences are made of, sorted; none without templates."""
        return sorted({record.labels[CLASS] for record in records if CLASS in record.labels}) if self.config.templates else []

    def _opened(self, encoder: OpenClipEncoder) -> Towers:
        self.encoder = encoder
        begin, end = encoder.tokenizer([""])[0][:2].tolist()
        return Towers(encoder.model, begin, end)

    def learner(self, seed: int) -> ImageTextLearner:
        """Towers with first weights, or those that the recipe names, and their losses."""
        torch.manual_seed(seed)
        towers = self._opened(self.config.towers.build())
        assert self.encoder is not None
        return ImageTextLearner(towers, self.config, self.encoder.needed)

    def samples(self, records: Draws) -> PairSamples:
        """Pairs of a picture and a text."""
        encoder = self.encoder or self.config.towers.build()
        return PairSamples(records, encoder, self.config.least_area)

    def save(self, folder: Path) -> None:
        """The two towers as open_clip reads them: `open_clip.create_model_and_transforms("local-dir:FOLDER")`."""
        assert self.encoder is not None
        write_tensors(folder / WEIGHTS, self.encoder.model.state_dict())
        size, mean, deviation = self.encoder.input.size, self.encoder.input.mean, self.encoder.input.deviation
        config = self.config.towers
        model = model_config(config.sizes) if config.sizes is not None else require("open_clip", "vision").get_model_config(config.model)
        about = {"model_cfg": model, "preprocess_cfg": {"size": list(size), "mean": list(mean), "std": list(deviation)}}
        write_text_whole(folder / ABOUT, json.dumps(about, indent=2) + "\n")

    def load(self, folder: Path) -> Towers:
        """The towers of a finished run."""
        return self._opened(finished_towers(self.config, folder))

    def texts(self, record: Picture, rng: np.random.Generator) -> list[str]:
        """Its captions."""
        return texts_of(record)

    def title(self, record: Picture) -> str:
        """Its name and first caption."""
        return f"{record.id}: {texts_of(record)[0]}"

    def shown(self, record: Picture) -> str:
        """Size and texts of a picture."""
        label = f", class {record.labels[CLASS]}" if CLASS in record.labels else ""
        return "\n".join([f"{record.id}: {record.width} x {record.height} pixels{label}", *texts_of(record)])

    def predict(self, model: Towers, records: Sequence[Picture]) -> list[Placed]:
        """Vectors of pictures, texts and classes."""
        assert self.encoder is not None
        model.eval()
        pictures_nd = self.encoder.encode([record.read() for record in records], normalize=True)
        named_by = {label: sentences(label, self.config.templates) for label in self._classes(records)}
        named = [each for some in named_by.values() for each in some]
        vectors = self._vectors([text for record in records for text in texts_of(record)] + named)
        found = []
        for record, picture_d in zip(records, pictures_nd, strict=True):
            label = record.labels.get(CLASS, "")
            named_sd = np.stack([vectors[each] for each in named_by[label]]) if label in named_by else None
            texts = texts_of(record)
            found.append(Placed(picture_d, texts, np.stack([vectors[text] for text in texts]), label, named_sd))
        return found

    def _vectors(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        assert self.encoder is not None
        different = list(dict.fromkeys(texts))
        return dict(zip(different, self.encoder.encode_texts(different, normalize=True), strict=True))

    inputs: Mapping[str, Field] = {
        "pictures": Pictures("Pictures", "one or several"),
        "texts": Text("Texts", "one a line; the pictures are sorted by how near they lie to the first", num_lines=4),
    }
    outputs: Mapping[str, Field] = {
        "pictures": Pictures("Nearest to the first text first"),
        "chances": Chances("Which of the texts it is, of each picture in this order"),
        "nearness": Table("Cosines of texts and pictures, these in the order that they were given in"),
    }

    def given_by_several(self, records: Sequence[Picture]) -> Sequence[Values]:
        """A search for one of the pictures among all, one picture beside the texts of all, and all beside all."""
        pictures, texts = [record.read() for record in records], list(dict.fromkeys(texts_of(record)[0] for record in records))
        searched, beside = {"pictures": pictures, "texts": texts[-1]}, {"pictures": pictures[:1], "texts": "\n".join(texts)}
        return [searched, beside, {"pictures": pictures, "texts": "\n".join(texts)}]

    def answer(self, model: Towers, given: Values) -> Iterator[Values]:
        """Pictures by their nearness to the first of some texts, and how near each is to each. Raises DataError for too many texts."""
        assert self.encoder is not None
        texts = list(dict.fromkeys(line.strip() for line in given["texts"].splitlines() if line.strip()))
        if len(texts) > MOST_TEXTS:
            raise DataError(f"texts: there are {len(texts)}; {MOST_TEXTS} are allowed.")
        pictures_nd = self.encoder.encode(given["pictures"], normalize=True)
        cosines_nm = pictures_nd @ np.stack(list(self._vectors(texts).values())).T
        chances_nm = torch.from_numpy(cosines_nm * float(model.model.logit_scale.detach().exp())).softmax(-1).tolist()
        order = np.argsort(-cosines_nm[:, 0], kind="stable").tolist()
        near = [
            {"text": text, **{f"picture {number}": round(cosine, 3) for number, cosine in enumerate(column, 1)}}
            for text, column in zip(texts, cosines_nm.T.tolist(), strict=True)
        ]
        chances = [dict(zip(texts, chances_nm[place], strict=True)) for place in order]
        yield {"pictures": [given["pictures"][place] for place in order], "chances": chances, "nearness": near}

    def score(self, outputs: Sequence[Placed], records: Sequence[Picture]) -> dict[str, float]:
        """i2t_r1, ..., t2i_r10: percent found among the first. i2t_median, t2i_median: rank. mean_r1: mean of both ways. zero_shot_1,
        zero_shot_5, zero_shot_class: percent of the pictures that are named, over all and as a mean over classes."""
        pictures_nd = np.stack([one.picture_d for one in outputs])
        vectors = {text: vector for one in outputs for text, vector in zip(one.texts, one.texts_md, strict=True)}
        scores_nm = pictures_nd @ np.stack(list(vectors.values())).T
        found = retrieval(scores_nm, [one.texts for one in outputs], list(vectors))
        labels = {one.label: one.label_sd for one in outputs if one.label_sd is not None}
        if len(labels) > 1:
            names = sorted(labels)
            classes_kd = class_vectors(np.stack([labels[name] for name in names], axis=1))
            known = [place for place, one in enumerate(outputs) if one.label in labels]
            found |= zero_shot(pictures_nd[known] @ classes_kd.T, [names.index(outputs[place].label) for place in known])
        return found

    def baselines(self, records: Sequence[Picture]) -> dict[str, dict[str, float]]:
        """What is found where all scores are equal."""
        held = [texts_of(record) for record in records]
        texts = list(dict.fromkeys(text for some in held for text in some))
        return {CHANCE: retrieval(np.zeros((len(held), len(texts))), held, texts)}

    def pictures(self, outputs: Sequence[Placed], records: Sequence[Picture]) -> list[str]:
        """The first pictures with their nearest texts among those of all records."""
        found = []
        for (near, true), record in islice(zip(_nearest(outputs), records, strict=True), PICTURED):  # of each, all texts are sorted
            told = "<br>".join(f"{likeness:.2f} {escape(text)}" for likeness, text in near)
            found.append(figure(record.read(), f"{told}<br><small>true: {escape(true)}</small>", alt=true))
        return found

    def write_samples(self, model: Towers, records: Sequence[Picture], folder: Path) -> None:
        """Each picture, and its nearest texts among those of all that are shown."""
        lines = []
        for number, ((near, _), record) in enumerate(zip(_nearest(self.predict(model, records)), records, strict=True), 1):
            write_png(folder / f"{number}.png", record.read())
            lines += [f"{number}.png  {self.title(record)}", *(f"    {likeness:.3f}  {text}" for likeness, text in near)]
        write_text_whole(folder / "nearest.txt", "\n".join(lines) + "\n")


def _nearest(outputs: Sequence[Placed]) -> Iterator[tuple[list[tuple[float, str]], str]]:
    """Of each picture the nearest texts of all, with their likeness, and a text of its own."""
    texts = {text: vector for one in outputs for text, vector in zip(one.texts, one.texts_md, strict=True)}
    for one in outputs:
        near = sorted(((float(one.picture_d @ vector), text) for text, vector in texts.items()), key=lambda each: -each[0])
        yield near[:NEAREST], one.texts[0]


def finished_towers(config: ImageTextConfig, folder: Path) -> OpenClipEncoder:
    """The towers of a finished run as an encoder. Raises CheckpointError where they are missing."""
    towers: OpenClipEncoder = config.towers.model_copy(update={"path": str(folder / WEIGHTS)}).build()
    return towers
