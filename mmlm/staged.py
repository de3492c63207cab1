"""Generation in stages, over the same decodings as everything else that is written.

What a stage and its branches of guidance have read is kept from stage to stage: a stream that begins as one that was read is gone on from,
any other is read anew. Sequences of a batch may differ in length and end at different steps; each has its own random numbers, keyed by the
seed and its place, so that batch size changes no result.

Axes: b sequences   s steps   u codebooks   n choices   p position axes
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmlm.base.errors import RecipeError
from mmlm.decoding import Decodable, Precision, guided
from mmlm.generation import require_finite, sample
from mmlm.layout import Layout
from mmlm.mask_predict import mask_predict
from mmlm.reader import Reader
from mmlm.stages import Choice, SoFar, Stage, choices
from mmlm.stream import Batch, Segment, Stream, next_position
from mmlm.tokenizers.patterns import EMPTY, Part


@dataclass(frozen=True)
class Chunk:
    """Frames that are ready while a stage is being written. number: of the prompt.   start: frames told before.   ids: local, [t] or
    [t, u], EMPTY in codebooks that the stage does not write.   is_last: none follow."""

    number: int
    stage: str
    start: int
    ids: Tensor
    is_last: bool


@torch.no_grad()
def generate_staged(
    model: Decodable,
    prompts: Sequence[Stream],
    stages: Sequence[Stage],
    *,
    seed: int = 0,
    precision: Precision = "auto",
    listen: Callable[[Chunk], None] | None = None,
) -> list[SoFar]:
    """Write the stages one after the other behind each prompt. listen: told what is ready as it comes.

    Raises RecipeError for stages that exclude each other or do not fit the model.
    """
    names = [stage.name for stage in stages]
    if len(set(names)) < len(names):
        raise RecipeError(f"stages must have different names, but are {', '.join(names)}.")
    sequences = [SoFar(number, prompt) for number, prompt in enumerate(prompts)]
    draws = [torch.Generator().manual_seed(seed * 1_000_003 + number) for number in range(len(prompts))]
    readers: list[Reader] = []
    try:
        for place, stage in enumerate(stages if sequences else []):
            used = stage.model or model
            for so_far in sequences:
                so_far.stream = stage.begin(so_far)
            if stage.passes is not None:
                mask_predict(used, stage, sequences, draws)
                if listen is not None:
                    for so_far in sequences:
                        listen(Chunk(so_far.number, stage.name, 0, so_far.written[stage.name], True))
                continue
            rows = [_Row(stage, so_far, draw) for so_far, draw in zip(sequences, draws, strict=True)]
            old, readers = readers, []
            guides = [branch for branch in stage.branches if branch.weight != 1]
            for change in (None, *(branch.change for branch in guides)):
                streams = [so_far.stream if change is None else change(so_far.stream) for so_far in sequences]
                reader = next((each for each in old if each.model is used and each.holds(streams)), None) or Reader(used)
                old = [each for each in old if each is not reader]
                readers.append(reader)
                reader.catch_up(streams, max(row.steps for row in rows), precision)
            for reader in old:
                reader.close()
            weights = [branch.weight for branch in guides]
            _write_steps(stage, rows, readers, weights, listen, is_last=place + 1 == len(stages))
    finally:
        for reader in readers:
            reader.close()
    return sequences


@dataclass
class _Step:
    """One step of all sequences: its number in the stage, and what is drawn in it."""

    step: int
    options: list[Choice]
    stage: Stage
    readers: list[Reader]
    weights: list[float]
    scored: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def draw(self, place: int, at: int, row: _Row, *, must_go_on: bool) -> tuple[int, float]:
        """(column, log-probability) of a codebook for one sequence; must_go_on: stop ids have no chance."""
        if place not in self.scored:
            main, *free = [reader.scores(self.options[place], self.stage.part) for reader in self.readers]
            scores_bn = guided(main, list(zip(free, self.weights, strict=True))).cpu()
            self.scored[place] = scores_bn, scores_bn.log_softmax(-1)
        scores_n, log_n = (both[at] for both in self.scored[place])
        if must_go_on:
            scores_n = scores_n.masked_fill(self.options[place].stops, -torch.inf)
        column = sample(scores_n, row.drawn[place], self.stage.samplings[place], row.draw)
        require_finite(log_n[column])
        return column, float(log_n[column])


@dataclass
class _Row:
    """One sequence while a stage is being written. frames: how many there will be, once that is known.   cells: [u] ids of each step.
    codes: [u] ids of each frame, those first that were known; the steps before what is written are not counted.   drawn: columns drawn in
    each codebook.   fed: steps that have been read.   told: frames told of, the known ones included."""

    stage: Stage
    so_far: SoFar
    draw: torch.Generator
    frames: int | None = None
    cells: list[list[int]] = field(default_factory=list)
    codes: list[list[int]] = field(default_factory=list)
    score: float = 0.0
    fed: int = 0
    told: int = 0
    stopped: bool = False
    done: bool = False

    def __post_init__(self) -> None:
        stage = self.stage
        self.part = stage.part or Part(range(1), 1, "parallel")
        self.says_end = stage.part is not None and bool(stage.stop)  # with codebooks the end is a cell
        known = [] if stage.known is None else stage.known(self.so_far).tolist()
        self.before, self.start = stage.steps_before(self.so_far), len(known)
        self.codes, self.told = [list(frame) for frame in known], self.start
        self.least, self.most = (self.start + count for count in stage.length.of(self.so_far))
        self.steps = self.part.num_steps(self.most, end=self.says_end) - self.before
        self.given = stage.given(self.so_far, self.steps)
        self.drawn: list[list[int]] = [[] for _ in self.part.books]
        if self.most == self.start:
            self.frames = self.start
        self._finish(self.before)

    def _finish(self, steps: int) -> None:
        self.done = self.frames is not None and steps >= self.part.num_steps(self.frames, end=self.says_end)

    def take(self, at: int, now: _Step) -> None:
        """Write the cells of a step. at: the sequence's place in the decodings."""
        step, options = self.before + now.step, now.options
        frame_u = self.part.frames(torch.tensor(step)).tolist()
        cells, wrote = [EMPTY] * self.part.num_books, False
        for place, book in enumerate(self.part.books):
            frame, first = frame_u[book], place == 0
            if frame < self.start:
                if frame >= 0:
                    cells[book], wrote = self.codes[frame][book], True
                continue
            if self.frames is not None and frame >= self.frames:
                if first and self.says_end and frame == self.frames:
                    cells[book], wrote = int(options[0].columns[options[0].stops][0]), True
                continue
            column, log = now.draw(place, at, self, must_go_on=first and frame < self.least)
            self.score += log
            if bool(options[place].stops[column]):
                self.frames, self.stopped = frame, True
                if self.says_end:
                    cells[book], wrote = int(options[place].columns[column]), True
                continue
            self.drawn[place].append(column)
            cells[book], wrote = int(options[place].columns[column]), True
            if frame == len(self.codes):
                self.codes.append([EMPTY] * self.part.num_books)
            self.codes[frame][book] = cells[book]
            if first and frame + 1 == self.most:
                self.frames = self.most
        if wrote:
            self.cells.append(cells)
        self._finish(step + 1)

    def ready(self, step: int) -> int:
        """Frames all of whose codebooks are written."""
        last, step = self.part.books.stop - 1, self.before + step
        full = next((frame + 1 for frame in range(len(self.codes) - 1, -1, -1) if self.part.step(frame, last) <= step), 0)
        return min(full, self.frames) if self.frames is not None else full

    def ids(self, start: int, stop: int | None = None) -> Tensor:
        """Frames as local ids: [t], or [t, u] with codebooks."""
        codes = torch.tensor(self.codes[start:stop], dtype=torch.long).view(-1, self.part.num_books)
        return codes if self.stage.part is not None else codes[:, 0]

    def segment(self) -> Segment:
        """What was written, as it was read."""
        count = len(self.cells)
        steps = torch.tensor(self.cells, dtype=torch.long).view(count, self.part.num_books)
        given = {name: value[:count] for name, value in self.given.items() if isinstance(value, Tensor)}
        channels = {name: value[:count] for name, value in self.given["channels"].items()}
        return Segment(self.stage.modality, steps if self.stage.part is not None else steps[:, 0], **given, channels=channels)


def _write_steps(
    stage: Stage,
    rows: list[_Row],
    readers: list[Reader],
    weights: list[float],
    listen: Callable[[Chunk], None] | None,
    *,
    is_last: bool,
) -> None:
    """Write one stage, step by step; at its end `readers` know what was written and the sequences hold it."""
    model = readers[0].model
    options = choices(stage, model.vocabulary)
    feed = _Feed(stage, rows, options, model)
    starts = [torch.tensor([next_position(stream) for stream in reader.streams]) for reader in readers]
    order = list(range(len(rows)))  # the row of each sequence that is still decoded
    for step in itertools.count():
        if all(row.done for row in rows):
            break
        if step:
            if is_last and len(alive := [at for at, number in enumerate(order) if not rows[number].done]) < len(order):
                order = [order[at] for at in alive]
                for reader in readers:
                    assert reader.decoding is not None
                    reader.decoding.select(torch.tensor(alive))
            batch = feed.batch(step - 1, order)
            for reader, starts_b in zip(readers, starts, strict=True):
                assert reader.decoding is not None
                reader.decoding.read(feed.at(batch, step - 1, order, starts_b))
        now = _Step(step, options, stage, readers, weights)
        for at, number in enumerate(order):
            if not rows[number].done:
                rows[number].take(at, now)
                _tell(stage, rows[number], step, listen)
    for row in rows:
        _keep(stage, row, listen)
    for reader in readers:
        reader.wrote([row.segment() for row in rows], [row.fed for row in rows])


def _tell(stage: Stage, row: _Row, step: int, listen: Callable[[Chunk], None] | None) -> None:
    """Tell of whole chunks while the stage goes on."""
    if listen is None or not stage.chunk or row.done or (ready := row.ready(step)) - row.told < stage.chunk:
        return
    listen(Chunk(row.so_far.number, stage.name, row.told - row.start, row.ids(row.told, ready), False))
    row.told = ready


def _keep(stage: Stage, row: _Row, listen: Callable[[Chunk], None] | None) -> None:
    """Let the sequence hold what was written."""
    so_far, ids = row.so_far, row.ids(row.start)
    so_far.written[stage.name] = ids
    if stage.part is not None:
        old = so_far.codes.get(stage.modality)
        if old is not None and len(old) != len(ids):
            raise RecipeError(f"stage {stage.name!r}: wrote {len(ids)} frames, but the codebooks before it have {len(old)}.")
        so_far.codes[stage.modality] = ids if old is None else torch.where(ids == EMPTY, old, ids)
        so_far.written[stage.name] = so_far.codes[stage.modality]
    so_far.stream = dataclasses.replace(so_far.stream, segments=[*so_far.stream.segments, row.segment()])
    so_far.scores[stage.name] = row.score
    so_far.finished[stage.name] = row.stopped or row.least == row.most
    if listen is not None:
        listen(Chunk(so_far.number, stage.name, row.told - row.start, row.ids(row.told), True))


class _Feed:
    """The batches that feed the steps of a stage: what its tokens carry is laid out once."""

    def __init__(self, stage: Stage, rows: list[_Row], options: list[Choice], model: Decodable) -> None:
        self.stage, self.rows, self.axes = stage, rows, rows[0].so_far.stream.axes
        self.offsets = torch.zeros(rows[0].part.num_books, dtype=torch.long)
        for book, choice in zip(rows[0].part.books, options, strict=True):
            self.offsets[book] = model.vocabulary.span(choice.span).start
        steps = max(row.steps for row in rows)
        names = [name for name in ("position", "mark", "reach") if name in rows[0].given]
        self.fields = {name: self._stacked([row.given[name] for row in rows], steps) for name in names}
        names = rows[0].given["channels"]
        self.channels = {name: self._stacked([row.given["channels"][name] for row in rows], steps) for name in names}

    @staticmethod
    def _stacked(values: list[Tensor], steps: int) -> Tensor:
        """[b, s, ...], zeros beyond what a sequence can reach."""
        out = values[0].new_zeros(len(values), steps, *values[0].shape[1:])
        for row, value in zip(out, values, strict=True):
            row[: len(value)] = value
        return out

    def batch(self, step: int, order: list[int]) -> Batch:
        """The tokens [b, 1] of a step of some rows; those that are done take nothing."""
        rows = [self.rows[number] for number in order]
        cells_bu = torch.tensor([[EMPTY] * len(self.offsets) if row.done else row.cells[step] for row in rows])
        cells_bu = torch.where(cells_bu < 0, EMPTY, cells_bu + self.offsets)
        going = torch.tensor([[not row.done] for row in rows])
        for row in rows:
            row.fed += not row.done
        at = (torch.tensor(order), slice(step, step + 1))
        fields = {"position": torch.zeros(len(order), 1, len(self.axes), dtype=torch.long)}
        layout = Layout(going.int(), axes=self.axes, **fields | {name: value[at] for name, value in self.fields.items()})
        codes = cells_bu[:, None] if self.stage.part is not None else None
        ids = cells_bu[:, :1] if codes is not None else cells_bu[:, :1].clamp_min(0)
        return Batch(
            ids=ids, layout=layout, labels=ids, weight=torch.zeros(ids.shape), codes=codes,
            channels={name: value[at] for name, value in self.channels.items()},
        )  # fmt: skip

    def at(self, batch: Batch, step: int, order: list[int], starts_b: Tensor) -> Batch:
        """The tokens of a step behind streams that end at given positions, which those of branches may differ in."""
        if "position" in self.fields:
            return batch
        position = (starts_b[order] + step)[:, None, None].expand(-1, 1, len(self.axes))
        return dataclasses.replace(batch, layout=dataclasses.replace(batch.layout, position=position))
