"""Sweeps of LiDAR in words that point: captions, boxes of expressions, classes of boxes and questions, all by one model.

    [sweep, of a view or whole] [question] [place] kind -> answer end

    grounded_caption     nothing           a caption of the view or of the whole scene, whose phrases carry boxes
    caption              nothing           the same without boxes
    expression           an expression     one group: the expression again and its box
    class                a place           what stands there
    question             a question        its answer

A place is the middle of a box seen from above, x and y: its size and its height would tell the class without a look at the sweep.
What is asked of one view does not name it: that is known by the vector that the encoder adds, see mmlm.encoders.view_aware. Boxes of
the answers are in metres. Where a sample answers several requests, all are of one view, as its sweep is read once.

Source: LiDAR-LLM, arXiv:2312.14074; that boxes are bins and not digits is chosen here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mmlm.analysis.birds_eye import seen_from_above
from mmlm.analysis.captions import bleu, cider
from mmlm.analysis.drawing import write_png
from mmlm.analysis.footprints import mean_bev_iou
from mmlm.base.files import write_text_whole
from mmlm.data.sweeps import Cuboid, Sweep
from mmlm.encoders.views import VIEWS
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
from mmlm.tasks.config import SWEEP_KINDS, SweepsConfig
from mmlm.tasks.forms import Choice, Field, Image, Points, Spans, Text, Values
from mmlm.tokenizers.boxes import TEXT, Box, Grounded, Phrase
from mmlm.tokenizers.boxes3d import Box3dTokenizer
from mmlm.tokenizers.sweeps import LIDAR, SweepTokens

TWIN = "the same model, shown another sweep"
EVERYWHERE = "everywhere"
PLACE = 2  # numbers of a box that say where its middle is, seen from above


class SweepsTask(AskingTask[Sweep]):
    """Streams of sweeps and words, and what a model says of sweeps."""

    over = "things in the sweep"
    kinds = SWEEP_KINDS
    measures = {
        "grounded_caption": ("cider", "bleu_4"), "caption": ("cider", "bleu_4"), "expression": ("bev_iou",), "class": ("class_accuracy",),
        "question": ("answers",),
    }  # fmt: skip
    pointing = ("grounded_caption", "expression")
    counted = ("bev_iou", "class_accuracy", "answers")
    twin = TWIN
    config: SweepsConfig
    boxes: Box3dTokenizer

    def __init__(self, config: SweepsConfig, tokenizers: Mapping[str, Any]) -> None:
        super().__init__(config, tokenizers)
        self.points: SweepTokens = tokenizer_of(tokenizers, config.sweep, "task.sweep", SweepTokens, "sweep")
        self.boxes = tokenizer_of(tokenizers, config.boxes, "task.boxes", Box3dTokenizer, "boxes3d")

    @property
    def features(self) -> Mapping[str, int]:
        """Numbers of a point."""
        return {LIDAR: self.points.num_features}

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Words, marks, the token of sweeps, and groups with their bins."""
        return {**self._written_ranges, **self.points.sizes}

    @property
    def reach(self) -> float:
        """Metres to each side that boxes can lie within."""
        return max(map(abs, (*self.boxes.config.low[:2], *self.boxes.config.high[:2])))

    @property
    def inputs(self) -> Mapping[str, Field]:
        """A sweep, and what is asked of it."""
        view = Choice("View", "the part that is meant, but by an expression", True, EVERYWHERE, (EVERYWHERE, *VIEWS))
        return {"points": Points("Sweep", "points of LiDAR, x ahead, in metres"), **self.questions, "view": view, **DRAWN}

    outputs: Mapping[str, Field] = {"image": Image("Seen from above"), "text": Text("Answer"), "boxes": Spans("Boxes in metres")}

    def given_by(self, record: Sweep) -> Values:
        """The sweep, with an expression for a thing in it where there is one."""
        worded = next((each for each in self.requests(record) if each.kind in WORDED and each.view is None), None)
        return {"points": record.read(), **({} if worded is None else {"kind": worded.kind, "words": worded.question})}

    def answer(self, model: MultimodalLM, given: Values) -> Iterator[Values]:
        """An answer with its boxes. Raises DataError where it needs words and has none."""
        request = asked_by(given)
        if given["view"] != EVERYWHERE and request.kind != "expression":
            request = replace(request, view=VIEWS.index(given["view"]))
        (answer,) = self.answers(model, [given["points"]], [request], **drawn_by(given))
        boxes = [{"span": [each.start, each.end], "boxes": [list(map(float, box)) for box in each.boxes]} for each in answer.phrases]
        yield {"image": seen_from_above(given["points"], answer, reach=self.reach), "text": answer.text, "boxes": boxes}

    def look(self, record: Sweep, said: Grounded, true: Grounded) -> np.ndarray:
        """The sweep from above with its boxes."""
        return seen_from_above(record.read(), said, true, reach=self.reach)

    def requests(self, record: Sweep) -> list[Request]:
        """All that may be asked of a sweep, of the kinds of the recipe. Boxes that the tokenizer does not reach are neither asked about
        nor asked for."""
        found: list[Request] = []
        for each in record.captions:
            found.append(Request("caption", "", Grounded(each.said.text), view=each.view))
            if phrases := tuple(phrase for phrase in each.said.phrases if all(map(self.boxes.reaches, phrase.boxes))):
                found.append(Request("grounded_caption", "", Grounded(each.said.text, phrases), view=each.view))
        for one in record.expressions:
            if self.boxes.reaches(one.box):
                truth = Grounded(one.text, (Phrase(0, len(one.text), (one.box,)),))
                found.append(Request("expression", one.text, truth))
        found += [Request("class", "", Grounded(thing.label), box=thing.box) for thing in record.things if self.boxes.reaches(thing.box)]
        found += [Request("question", each.said.text, Grounded(each.said.answer), view=each.view) for each in record.questions]
        return self._wanted(found)

    def _read(self, seen: np.ndarray, request: Request) -> Segment:
        return self.points.encode(seen, request.view)

    def _about(self, box: Box) -> list[int]:
        return self.boxes.bins(box)[:PLACE]

    def _fits(self, one: Request, other: Request) -> bool:
        return one.view == other.view

    def example(self, record: Sweep, rng: np.random.Generator) -> Stream | None:
        """A sweep with the answers to some requests of one view, each in a branch of its own where there are several; None where none
        is short enough, or nothing can be asked."""
        answered = self._answered(self._drawn(self.requests(record), rng))
        if not answered:
            return None
        sweep = self._seen(record.read(), answered[0][0])
        return Stream(self._joined(sweep, answered), name=record.id, source=record.where)

    def title(self, record: Sweep) -> str:
        """What stands there."""
        counts = Counter(thing.label for thing in record.things)
        return f"{record.id}: {', '.join(f'{count} {label}' for label, count in counts.items()) or 'nothing'}"

    def shown(self, record: Sweep) -> str:
        """What can be asked and what is to be answered, as tokens say it."""
        lines = [f"{len(record.read())} points, {self.points.config.num_tokens} tokens"]
        lines += [f"{self.asked(request)} -> {self.written(request.truth)}" for request in self.requests(record)]
        return "\n".join(lines)

    def asked(self, request: Request) -> str:
        """What is asked, for people."""
        box = "" if request.box is None else "".join(f"<{index}>" for index in self._about(request.box))
        where = "" if request.view is None else f" [{VIEWS[request.view]}]"
        return f"{request.kind}{where}: {request.question}{box}".rstrip(": ")

    def _grammar(self, request: Request, spans: dict[str, range], end: int, room: int) -> Bounded | None:
        if not self.config.constrained:
            return None
        if request.kind in self.pointing:
            return self._pointing(spans, end, room, is_one_group=request.kind == "expression")
        return Words(spans[TEXT], end, room)

    def score(self, outputs: Sequence[list[Said]], records: Sequence[Sweep]) -> dict[str, float]:
        """cider, bleu_4: of captions.   bev_iou: mean share of the footprints of expressions' boxes, no box counts as 0.   class_accuracy:
        at given places.   answers: share that are the true ones.   malformed: share of what points with a fault in its marks. 0 of what
        nothing is asked for."""
        found = self._measured(outputs)
        return {name: found.get(name, 0.0) for name in self.metrics}

    def _measured(self, outputs: Sequence[list[Said]]) -> dict[str, float]:
        """See `score`; only of what is asked for."""
        said = by_kind([one for each in outputs for one in each])
        found: dict[str, float] = {}
        texts, truths = captions_of(outputs)
        if texts:
            found |= {"cider": cider(texts, truths), "bleu_4": bleu(texts, truths)}
        if expressions := said.get("expression"):
            true = [one.request.truth.phrases[0].boxes[0] for one in expressions]
            found["bev_iou"] = mean_bev_iou([first_box(one.answer) for one in expressions], true)
        for kind, name in (("class", "class_accuracy"), ("question", "answers")):
            if asked := said.get(kind):
                found[name] = float(np.mean([plain(one.answer.text) == plain(one.request.truth.text) for one in asked]))
        found["malformed"] = self._malformed(said)
        return found

    def baselines(self, records: Sequence[Sweep]) -> dict[str, dict[str, float]]:
        """The commonest class, what is answered without looking, and the true answers."""
        asked = [self.requests(record) for record in records]
        found = {TRUTH: self.score([[Said(each, each.truth) for each in some] for some in asked], records)}
        found |= self.without_looking([each for some in asked for each in some])
        if classes := [each.truth.text for some in asked for each in some if each.kind == "class"]:
            found.setdefault(COMMONEST, {})["class_accuracy"] = Counter(classes).most_common(1)[0][1] / len(classes)
        return found

    def write_samples(self, model: MultimodalLM, records: Sequence[Sweep], folder: Path) -> None:
        """Of each sweep what was asked, the truth and the answers: NUMBER.txt; of those that point a picture from above, the true
        boxes gray."""
        for number, (said, record) in enumerate(zip(self.predict(model, records), records, strict=True), 1):
            lines = [self.title(record), *(_told(thing) for thing in record.things)]
            for place, one in enumerate(said, 1):
                lines.append(f"{self.asked(one.request)}\n  true {self.written(one.request.truth)}\n  said {one.answer.text}")
                lines += [f"    {one.answer.words(each)} at {_metres(box)}" for each in one.answer.phrases for box in each.boxes]
                if one.answer.phrases or one.request.truth.phrases:
                    picture = seen_from_above(record.read(), one.answer, one.request.truth, reach=self.reach)
                    write_png(folder / f"{number}_{place}_{one.request.kind}.png", picture)
            write_text_whole(folder / f"{number}.txt", "\n".join(lines) + "\n")


def _told(thing: Cuboid) -> str:
    return f"  {thing.label}, {VIEWS[thing.view]}, {thing.distance:.1f} m, at {_metres(thing.box)}"


def _metres(box: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:.2f}" for value in box) + "]"
