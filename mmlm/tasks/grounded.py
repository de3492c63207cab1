"""Pictures in words that point: grounded captions, expressions, phrases, plain captions and questions, all by one model.

    [picture] [question] kind -> answer end

The picture and the question see one another in both directions, unless the mask is causal. Where a sample answers several requests, its
picture is read once, sees none of the questions, and each request goes on from it by itself. `kind` is a mark of what is asked for:

    grounded_caption     nothing           a caption whose phrases carry boxes
    expression           an expression     one group: the expression again and its box
    phrases              a caption         the same caption, its phrases with boxes; when asked, the words are given and the boxes free
    caption              nothing           a caption
    question             a question        its answer
    detection            nothing           every thing as a group: its class and its box, from the top down; nothing where there is none
    name                 nothing           what the only thing in the picture is called; not asked of several

There is no head for boxes: they are tokens, see mmlm.tokenizers.boxes. A picture is read as patches of pixels, or whole by an encoder that
makes its patches. Source: UniTAB, arXiv:2111.12085, on the shared decoder in place of an encoder and a decoder; whole pictures, LLaVA,
arXiv:2304.08485.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mmlm.analysis.captions import bleu, cider, rouge_l
from mmlm.analysis.detection import Found, average_precision
from mmlm.analysis.drawing import drawn, write_png
from mmlm.analysis.grounding import accuracy_at, grounded_f1, recall_at
from mmlm.base.errors import DataError
from mmlm.base.files import write_text_whole
from mmlm.data.mirror import mirrored
from mmlm.data.pictures import Picture, Thing, every_thing, random_part, seen_in
from mmlm.model import MultimodalLM
from mmlm.stream import Segment, Stream
from mmlm.tasks.asking import (
    COMMONEST,
    DRAWN,
    WORDED,
    AskingTask,
    Bounded,
    Request,
    Said,
    Words,
    asked_by,
    by_kind,
    captions_of,
    drawn_by,
    first_box,
    plain,
)
from mmlm.tasks.base import TRUTH, tokenizer_of
from mmlm.tasks.config import KINDS, GroundedConfig
from mmlm.tasks.forms import Field, Image, Part, Spans, Text, Values
from mmlm.tokenizers.box_codecs import ResidualBoxes
from mmlm.tokenizers.boxes import (
    TEXT,
    Box,
    BoxTokenizer,
    Grounded,
    Phrase,
    PhrasesGrammar,
    without_overlaps,
)
from mmlm.tokenizers.image_patches import VISION, ImagePatches
from mmlm.tokenizers.whole_images import WholeImages

TWIN = "the same model, shown another picture"
RANDOM_BOX = "a random box"
EXACT = {"answers": "question", "names": "name"}  # metrics that count answers which are the true one
WORDS = ("caption", "question", "name")  # answered in words alone


class GroundedTask(AskingTask[Picture]):
    """Streams of pictures and words, and what a model says of pictures."""

    over = "things in the picture"
    kinds = KINDS
    measures = {
        "grounded_caption": ("f1_all", "f1_loc", "cider"), "caption": ("cider", "bleu_4", "rouge_l"), "expression": ("acc_50",),
        "phrases": ("r_1",), "question": ("answers",), "detection": ("ap_50", "ap_50_95"), "name": ("names",),
    }  # fmt: skip
    pointing = ("grounded_caption", "expression", "phrases", "detection")
    counted = ("f1_all", "acc_50", "r_1", "answers", "names", "ap_50")
    twin = TWIN
    config: GroundedConfig
    boxes: BoxTokenizer | ResidualBoxes

    def __init__(self, config: GroundedConfig, tokenizers: Mapping[str, Any]) -> None:
        super().__init__(config, tokenizers)
        kinds = (ImagePatches, WholeImages)
        self.patches: ImagePatches | WholeImages = tokenizer_of(
            tokenizers, config.patches, "task.patches", kinds, "image_patches or whole_images"
        )
        codecs = (BoxTokenizer, ResidualBoxes)
        self.boxes = tokenizer_of(tokenizers, config.boxes, "task.boxes", codecs, "boxes, absolute_boxes or residual_boxes")

    def meet_model(self, model: MultimodalLM) -> None:
        """Raises RecipeError where an encoder of whole pictures reads others than these."""
        if isinstance(self.patches, WholeImages):
            self.patches.check(model.encoders[VISION], VISION)

    @property
    def features(self) -> Mapping[str, int]:
        """Numbers that a patch carries, or a pixel of a whole picture."""
        return {VISION: self.patches.num_features}

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Words, marks, patches, and groups with their bins."""
        return {**self._written_ranges, **self.patches.sizes}

    @property
    def inputs(self) -> Mapping[str, Field]:
        """A picture, and what is asked of it or of a part."""
        part = Part("Part", "if not all is meant: tap two corners in the picture, or write left,top,right,bottom in pixels", True)
        return {"image": Image("Picture"), **self.questions, "part": part, **DRAWN}

    outputs: Mapping[str, Field] = {"image": Image("What it points at"), "text": Text("Answer"), "boxes": Spans("Boxes in pixels")}

    def given_by(self, record: Picture) -> Values:
        """The picture, with an expression for a thing in it where there is one."""
        worded = next((each for each in self.requests(record) if each.kind in WORDED), None)
        return {"image": record.read(), **({} if worded is None else {"kind": worded.kind, "words": worded.question})}

    def answer(self, model: MultimodalLM, given: Values) -> Iterator[Values]:
        """An answer with its boxes. Raises DataError where it needs words and has none."""
        pixels, request = given["image"], asked_by(given)
        part = _within(pixels, given["part"])
        (answer,) = self.answers(model, [pixels[part[1] : part[3], part[0] : part[2]]], [request], **drawn_by(given))
        answer = _of_whole(answer, part, pixels.shape[1], pixels.shape[0])
        record = Picture("picture", "the picture", pixels.shape[1], pixels.shape[0], lambda: pixels)
        yield {"image": drawn(pixels, answer), "text": answer.text, "boxes": as_json(record, Said(request, answer))["phrases"]}

    def look(self, record: Picture, said: Grounded, true: Grounded) -> np.ndarray:
        """The picture with its boxes."""
        return drawn(record.read(), said, true)

    def requests(self, record: Picture) -> list[Request]:
        """All that may be asked of a picture, of the kinds of the recipe."""
        found: list[Request] = []
        for said in record.captions:
            phrases, _ = without_overlaps([self._shares(record, each) for each in said.phrases])
            grounded = Grounded(said.text, tuple(phrases))
            found += [Request("caption", "", Grounded(said.text))]
            if phrases:
                found += [Request("grounded_caption", "", grounded), Request("phrases", said.text, grounded)]
        for each in record.expressions:
            truth = Grounded(each.text, (Phrase(0, len(each.text), (record.share(each.box),)),))
            found.append(Request("expression", each.text, truth))
        found += [Request("question", each.text, Grounded(each.answer)) for each in record.questions]
        if record.things or record.is_listed:
            things = [Thing(each.label, record.share(each.box)) for each in record.things]
            found.append(Request("detection", "", every_thing(things)))
        if len(record.things) == 1:
            found.append(Request("name", "", Grounded(record.things[0].label)))
        return self._wanted(found)

    @staticmethod
    def _shares(record: Picture, phrase: Phrase) -> Phrase:
        return Phrase(phrase.start, phrase.end, tuple(record.share(box) for box in phrase.boxes))

    def _read(self, seen: np.ndarray, request: Request) -> Segment:
        return self.patches.encode(seen)

    def example(self, record: Picture, rng: np.random.Generator) -> Stream | None:
        """A picture with the answers to some requests, each in a branch of its own where there are several; None where none is short
        enough, or nothing can be asked."""
        requests, part = self._cut(record, self._drawn(self.requests(record), rng), rng)
        is_flipped = False
        if self.config.flip and rng.random() < self.config.flip:
            mirrored_ones = [_flipped(request) for request in requests]
            is_flipped = all(could for _, could in mirrored_ones)
            requests = [request for request, _ in mirrored_ones] if is_flipped else requests
        answered = self._answered(requests)
        if not answered:
            return None
        pixels_yxc = record.read()
        if part is not None:
            pixels_yxc = _seen_of(pixels_yxc, part)
        picture = self._seen(np.ascontiguousarray(pixels_yxc[:, ::-1]) if is_flipped else pixels_yxc, answered[0][0])
        return Stream(self._joined(picture, answered), name=record.id, source=record.where)

    def _cut(self, record: Picture, requests: list[Request], rng: np.random.Generator) -> tuple[list[Request], Box | None]:
        """Requests of a random part of the picture, and the part in shares of its sides; None for all of it, where other than lists of
        things are asked for."""
        if self.config.least_area == 1 or any(each.kind != "detection" for each in requests):
            return requests, None
        wide, high = record.width, record.height
        left, top, right, bottom = random_part(high, wide, self.config.least_area, rng)
        share = (left / wide, top / high, right / wide, bottom / high)
        cut = [replace(each, truth=every_thing(seen_in(_listed(each.truth), share))) for each in requests]
        return cut, share

    def title(self, record: Picture) -> str:
        """Its caption, or what else is known of it."""
        requests = self.requests(record)
        return f"{record.id}: {requests[0].question or requests[0].truth.text if requests else 'nothing is asked'}"

    def shown(self, record: Picture) -> str:
        """What can be asked and what is to be answered, as tokens say it."""
        lines = [f"{record.width} x {record.height} pixels, {' x '.join(map(str, self.patches.grid(record.height, record.width)))} patches"]
        for request in self.requests(record):
            lines.append(f"{request.kind}: {request.question}".rstrip(": ") + f" -> {self.written(request.truth)}")
        return "\n".join(lines)

    def _grammar(self, request: Request, spans: dict[str, range], end: int, room: int) -> Bounded | None:
        if request.kind == "phrases":
            pieces = self.pieces(request.truth)  # of a text that is given any length is answered
            return PhrasesGrammar(pieces, spans, end, max(room, PhrasesGrammar.least(pieces, self.boxes)), self.boxes)
        if not self.config.constrained:
            return None
        if request.kind in WORDS:
            return Words(spans[TEXT], end, room)
        only = request.kind
        return self._pointing(spans, end, room, is_one_group=only == "expression", has_groups_alone=only == "detection")

    def score(self, outputs: Sequence[list[Said]], records: Sequence[Picture]) -> dict[str, float]:
        """f1_all, f1_loc: of grounded captions.   cider, bleu_4, rouge_l: of captions.   acc_50: share of expressions with IoU above 0.5.
        r_1: share of phrases.   answers, names: share that are the true ones.   ap_50, ap_50_95: average precision of lists of things, at
        an IoU of 0.5 and over 0.5 to 0.95.   malformed: share of what points with a fault in its marks. 0 of what nothing is asked for."""
        found = self._measured(outputs)
        return {name: found.get(name, 0.0) for name in self.metrics}

    def _measured(self, outputs: Sequence[list[Said]]) -> dict[str, float]:
        """See `score`; only of what is asked for."""
        said = by_kind([one for each in outputs for one in each])
        found: dict[str, float] = {}
        if grounded := said.get("grounded_caption"):
            scores = grounded_f1([one.answer for one in grounded], [one.request.truth for one in grounded])
            found |= {"f1_all": scores.f1_all, "f1_loc": scores.f1_loc}
        texts, truths = captions_of(outputs)
        if texts:
            found["cider"] = cider(texts, truths)
            if "caption" in said:
                found |= {"bleu_4": bleu(texts, truths), "rouge_l": rouge_l(texts, truths)}
        if expressions := said.get("expression"):
            found["acc_50"] = accuracy_at([first_box(one.answer) for one in expressions], [_only(one) for one in expressions])
        if phrases := said.get("phrases"):
            pairs = [pair for one in phrases for pair in zip(one.answer.phrases, one.request.truth.phrases, strict=True)]
            found["r_1"] = recall_at([mine.boxes for mine, _ in pairs], [true.boxes for _, true in pairs])
        for name, kind in EXACT.items():
            if answers := said.get(kind):
                found[name] = float(np.mean([plain(one.answer.text) == plain(one.request.truth.text) for one in answers]))
        if lists := said.get("detection"):
            precision = average_precision([_things(one.answer) for one in lists], [_things(one.request.truth) for one in lists])
            found |= {"ap_50": precision.ap_50, "ap_50_95": precision.ap_50_95}
        if self._points:
            found["malformed"] = self._malformed(said)
        return found

    def baselines(self, records: Sequence[Picture]) -> dict[str, dict[str, float]]:
        """A box drawn at random, what is answered without looking, and the true answers: F1 counts of two things of a class only the first,
        so its best is not always 1."""
        asked = [self.requests(record) for record in records]
        requests = [request for each in asked for request in each]
        rng, found = np.random.default_rng(0), {TRUTH: self.score([[Said(each, each.truth) for each in some] for some in asked], records)}
        if true := [each.truth.phrases[0].boxes[0] for each in requests if each.kind == "expression"]:
            drawn_4n = np.sort(rng.random((len(true), 2, 2)), axis=1).reshape(-1, 4)
            found[RANDOM_BOX] = {"acc_50": accuracy_at([(box[0], box[1], box[2], box[3]) for box in drawn_4n.tolist()], true)}
        found |= self.without_looking(requests)
        if names := [each.truth.text for each in requests if each.kind == "name"]:
            found.setdefault(COMMONEST, {})["names"] = Counter(names).most_common(1)[0][1] / len(names)
        return found

    def write_samples(self, model: MultimodalLM, records: Sequence[Picture], folder: Path) -> None:
        """Of each picture its answers: NUMBER.txt, NUMBER.json, and of those that point a picture with boxes, the true ones gray."""
        for number, (said, record) in enumerate(zip(self.predict(model, records), records, strict=True), 1):
            lines = [self.title(record)]
            for place, one in enumerate(said, 1):
                asked = f"{one.request.kind}: {one.request.question}".rstrip(": ")
                lines += [f"{asked}\n  true {self.written(one.request.truth)}\n  said {one.answer.text}"]
                if one.answer.phrases or one.request.truth.phrases:
                    write_png(folder / f"{number}_{place}_{one.request.kind}.png", drawn(record.read(), one.answer, one.request.truth))
            write_text_whole(folder / f"{number}.txt", "\n".join(lines) + "\n")
            write_text_whole(folder / f"{number}.json", json.dumps([as_json(record, one) for one in said], indent=1) + "\n")


def as_json(record: Picture, one: Said) -> dict[str, Any]:
    """An answer with its boxes in pixels and how sure each is."""
    phrases = [
        {
            "span": [each.start, each.end],
            "boxes": [[round(v, 2) for v in record.pixels(box)] for box in each.boxes],
            "scores": [round(score, 4) for score in each.scores],
        }
        for each in one.answer.phrases
    ]
    return {"kind": one.request.kind, "question": one.request.question, "text": one.answer.text, "phrases": phrases}


def _within(pixels: np.ndarray, part: Sequence[float] | None) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a part of a picture, of all of it where none is meant. Raises DataError for one outside of it."""
    height, width = pixels.shape[:2]
    if part is None:
        return 0, 0, width, height
    left, top, right, bottom = math.floor(part[0]), math.floor(part[1]), min(math.ceil(part[2]), width), min(math.ceil(part[3]), height)
    if left >= right or top >= bottom:
        raise DataError(f"part: {[round(each) for each in part]} lies outside of the picture of {width} x {height} pixels.")
    return left, top, right, bottom


def _seen_of(pixels_yxc: np.ndarray, part: Box) -> np.ndarray:
    """A part, in shares of the sides, of a picture, which may have been read smaller than it is stored; one pixel at least."""
    high, wide = pixels_yxc.shape[:2]
    left, top = (min(round(share * size), size - 1) for share, size in zip(part[:2], (wide, high), strict=True))
    right, bottom = (round(share * size) for share, size in zip(part[2:], (wide, high), strict=True))
    return pixels_yxc[top : max(bottom, top + 1), left : max(right, left + 1)]


def _of_whole(said: Grounded, part: tuple[int, int, int, int], width: int, height: int) -> Grounded:
    """An answer about a part of a picture, with boxes as shares of the whole."""
    left, top, right, bottom = part

    def moved(box: Box) -> Box:
        x, y = (right - left) / width, (bottom - top) / height
        return left / width + box[0] * x, top / height + box[1] * y, left / width + box[2] * x, top / height + box[3] * y

    return replace(said, phrases=tuple(replace(each, boxes=tuple(map(moved, each.boxes))) for each in said.phrases))


def _things(said: Grounded) -> list[Found]:
    """What a list names, as things with their boxes; those of one group share its words."""
    return [
        Found(plain(said.words(phrase)), box, phrase.scores[place] if phrase.scores else 1.0)
        for phrase in said.phrases
        for place, box in enumerate(phrase.boxes)
    ]


def _flipped(request: Request) -> tuple[Request, bool]:
    """(a request of the mirrored picture, true), or as it is where its words cannot be mirrored."""
    question, truth = mirrored(Grounded(request.question)), mirrored(request.truth)
    if question is None or truth is None:
        return request, False
    if request.kind == "detection":
        truth = every_thing(_listed(truth))
    return Request(request.kind, question.text, truth), True


def _listed(said: Grounded) -> list[Thing]:
    """The things of a list, their boxes as they are in it."""
    return [Thing(said.words(phrase), box) for phrase in said.phrases for box in phrase.boxes]


def _only(one: Said) -> Box:
    return one.request.truth.phrases[0].boxes[0]
