"""Mask-predict: all cells of a stage at once, in a few passes, of which each keeps what it is most certain of.

After pass k of K the ceil(n (1 - cos(pi/2 (k + 1) / K))) most certain of n cells are known. One pass is plain parallel prediction.
Sources: Mask-Predict, arXiv:1904.09324; the schedule of MaskGIT, arXiv:2202.04200, section 3.2.

Axes: n cells of all sequences   t frames   u codebooks   v choices
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmlm.base.errors import RecipeError
from mmlm.decoding import Decodable, book_head, guided
from mmlm.generation import require_finite, sample
from mmlm.stages import Choice, SoFar, Stage, choices
from mmlm.stream import Segment, Stream, pack, unpack
from mmlm.tokenizers.patterns import EMPTY


def mask_predict(model: Decodable, stage: Stage, sequences: Sequence[SoFar], draws: Sequence[torch.Generator]) -> None:
    """Write a stage into `sequences`, whose streams are its prompts."""
    (choice,) = choices(stage, model.vocabulary)
    targets = [_target(stage, so_far) for so_far in sequences]
    sizes = [len(target) for target in targets]
    found = [torch.zeros(size, dtype=torch.long) for size in sizes]
    hidden = [torch.ones(size, dtype=torch.bool) for size in sizes]
    logs = [torch.zeros(size) for size in sizes]
    for step in range(stage.passes or 1):
        shown = [_shown(stage, *each) for each in zip(targets, found, hidden, strict=True)]
        scores = _scores(model, stage, choice, sequences, shown)
        for number, scores_tv in enumerate(scores):
            if not sizes[number]:
                continue
            columns = _chosen(scores_tv, stage, draws[number])
            log_t = scores_tv.log_softmax(-1).gather(1, columns[:, None])[:, 0].cpu()
            require_finite(log_t)
            known = math.ceil(sizes[number] * (1 - math.cos(math.pi / 2 * (step + 1) / (stage.passes or 1))))
            more = max(min(known, sizes[number]) - int((~hidden[number]).sum()), 0)
            place = log_t.masked_fill(~hidden[number], -torch.inf).topk(more).indices
            found[number][place] = choice.columns[columns.cpu()][place]
            logs[number][place] = log_t[place].float()
            hidden[number][place] = False
    for so_far, target, ids, log in zip(sequences, targets, found, logs, strict=True):
        segment = _shown(stage, target, ids, torch.zeros(len(ids), dtype=torch.bool))
        assert segment.ids is not None
        written = dataclasses.replace(segment, hidden=None)
        so_far.written[stage.name] = segment.ids
        if stage.part is not None:
            so_far.codes[stage.modality] = segment.ids
        so_far.stream = dataclasses.replace(so_far.stream, segments=[*so_far.stream.segments, written])
        so_far.scores[stage.name], so_far.finished[stage.name] = float(log.sum()), True


def _target(stage: Stage, so_far: SoFar) -> Segment:
    """The segment to be written, with the codebooks that are known."""
    least, frames = stage.length.of(so_far)
    if least != frames:
        raise RecipeError(f"stage {stage.name!r}: what is written at once has an exact length.")
    given = stage.given(so_far, frames)
    if stage.part is None:
        return Segment(stage.modality, torch.zeros(frames, dtype=torch.long), **given)
    known = so_far.codes.get(stage.modality, torch.full((frames, stage.part.num_books), EMPTY))
    if len(known) != frames:
        raise RecipeError(f"stage {stage.name!r}: is to write {frames} frames, but the codebooks before it have {len(known)}.")
    return Segment(stage.modality, known, **given)


def _shown(stage: Stage, target: Segment, ids_t: Tensor, hidden_t: Tensor) -> Segment:
    if stage.part is None:
        return dataclasses.replace(target, ids=ids_t, hidden=hidden_t)
    assert target.ids is not None
    book = stage.part.books.start
    codes, hidden = target.ids.clone(), torch.zeros_like(target.ids, dtype=torch.bool)
    codes[:, book] = torch.where(hidden_t, 0, ids_t)
    codes[:, book + 1 :] = EMPTY
    hidden[:, book] = hidden_t
    return dataclasses.replace(target, ids=codes, hidden=hidden)


def _scores(model: Decodable, stage: Stage, choice: Choice, sequences: Sequence[SoFar], targets: Sequence[Segment]) -> list[Tensor]:
    """Guided scores [t, v] of the target of each sequence."""

    def of(prompts: Sequence[Stream]) -> Tensor:
        streams = []
        for prompt, target in zip(prompts, targets, strict=True):
            segments = [*prompt.segments, target]
            if stage.book_channel is not None and stage.part is not None:
                name, book = stage.book_channel, stage.part.books.start
                segments = [
                    dataclasses.replace(each, channels={**each.channels, name: torch.full((len(each),), book)}) for each in segments
                ]
            streams.append(dataclasses.replace(prompt, segments=segments))
        batch = pack(streams, model.vocabulary, shift=False).to(model.device)
        batch.layout.causal = False
        h_btd, _ = model.hidden(batch)
        parts = [h_td[len(h_td) - len(target) :] for h_td, target in zip(unpack(h_btd, batch.layout), targets, strict=True)]
        h_nd = torch.cat(parts)
        if stage.part is None:
            return model.heads["language_model"].predict(h_nd, choice.rows.to(h_nd.device))
        return book_head(model, choice.span).predict(h_nd, choice.span)[:, choice.columns.to(h_nd.device)]

    prompts = [so_far.stream for so_far in sequences]
    without = [(of([branch.change(prompt) for prompt in prompts]), branch.weight) for branch in stage.branches if branch.weight != 1]
    return list(guided(of(prompts), without).split([len(target) for target in targets]))


def _chosen(scores_tv: Tensor, stage: Stage, draw: torch.Generator) -> Tensor:
    (sampling,) = stage.samplings
    if sampling.temperature == 0:
        return scores_tv.argmax(-1)
    return torch.tensor([sample(scores_v, [], sampling, draw) for scores_v in scores_tv], device=scores_tv.device)
