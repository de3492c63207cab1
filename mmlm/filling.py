"""Filling hidden tokens one after the other, as models of a permutation objective do: what is shown is read once, in both directions;
then each step reads the token found last and a query, which shows the id of `mask` at the place that is asked for and is forgotten again.

Axes: b sequences   n hidden tokens   v vocabulary rows
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmlm.base.errors import RecipeError
from mmlm.decoding import Decodable, Decoding
from mmlm.generation import Sampling, require_finite, sample
from mmlm.stream import Segment, Stream, pad, positions

SEEDS = 1 << 64  # of a generator

Encode = Callable[[str, Tensor], dict[str, Tensor]]  # channels of local ids of a range


@torch.no_grad()
def fill(
    model: Decodable, streams: Sequence[Stream], hide: Sequence[Sequence[Tensor]], sampling: Sampling, encode: Encode, seed: int = 0
) -> list[list[Tensor]]:
    """The ids [t] of each segment of each stream, those that are hidden found from left to right, each within the range of its segment.

    hide: bool [t] of each segment of each stream. encode: channels of found ids, which those of a segment would not know.
    Raises RecipeError for beams, or streams that show nothing.
    """
    if sampling.num_beams > 1:
        raise RecipeError("num_beams above 1 cannot fill hidden tokens; use a temperature.")
    if not streams:
        return []
    asked = [_asked(stream, masks) for stream, masks in zip(streams, hide, strict=True)]
    prompts = [_shown(stream, masks) for stream, masks in zip(streams, hide, strict=True)]
    steps = max(map(len, asked))
    decoding = Decoding(model, prompts, 2 * steps + 1)
    cache, length_b = decoding.cache, torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    draws = [torch.Generator().manual_seed((seed * 1_000_003 + number) % SEEDS) for number in range(len(streams))]
    found = [[segment.ids.clone() for segment in stream.segments if segment.ids is not None] for stream in streams]
    for step in range(steps):
        rows, sizes = list[Stream](), list[int]()
        for number, stream in enumerate(streams):
            segments: list[Segment] = []
            if step < len(asked[number]):
                segments += [_token(stream, *asked[number][step - 1], found[number], encode)] if step else []
                segments.append(_query(stream, *asked[number][step]))
            rows.append(dataclasses.replace(stream, segments=segments))
            sizes.append(len(segments))
        batch = pad(rows, model.vocabulary, shift=False, starts=[0] * len(rows)).to(model.device)
        h_btd, _ = model.hidden(batch, cache)
        size_b = torch.tensor(sizes, device=model.device)
        length_b = length_b + (size_b - 1).clamp_min(0)
        cache = cache.crop(length_b)
        for number, size in enumerate(sizes):
            if size:
                place, at = asked[number][step]
                segment = streams[number].segments[place]
                scores_v = model.heads["language_model"].predict(h_btd[number, size - 1], model.vocabulary.span(segment.modality))
                written = _written(streams[number], segment.modality, asked[number][:step], found[number])
                index = sample(scores_v, written, sampling, draws[number])
                require_finite(scores_v[index])
                found[number][place][at] = index
    return found


def _asked(stream: Stream, masks: Sequence[Tensor]) -> list[tuple[int, int]]:
    """(segment, place in it) of the hidden tokens."""
    return [(number, int(place)) for number, mask in enumerate(masks) for place in mask.nonzero()[:, 0]]


def _written(stream: Stream, modality: str, places: Sequence[tuple[int, int]], found: Sequence[Tensor]) -> list[int]:
    """The ids of a range that were found."""
    return [int(found[place][at]) for place, at in places if stream.segments[place].modality == modality]


def _shown(stream: Stream, masks: Sequence[Tensor]) -> Stream:
    segments = [
        _part(segment, position, (~mask).nonzero()[:, 0]) for segment, position, mask in zip(stream.segments, positions(stream), masks)
    ]
    segments = [dataclasses.replace(each, mutual=1) for each in segments if len(each)]
    if not segments:
        raise RecipeError(f"{stream.source or stream.name or 'a sample'}: all tokens are hidden; show at least one.")
    return dataclasses.replace(stream, segments=segments)


def _part(segment: Segment, position: Tensor, index: Tensor) -> Segment:
    assert segment.ids is not None
    channels = {name: value[index] for name, value in segment.channels.items()}
    return Segment(segment.modality, segment.ids[index], position=position[index], channels=channels)


def _token(stream: Stream, place: int, at: int, found: Sequence[Tensor], encode: Encode) -> Segment:
    """A token that was found."""
    segment, ids = stream.segments[place], found[place][at : at + 1]
    return Segment(segment.modality, ids, position=positions(stream)[place][at : at + 1], channels=encode(segment.modality, ids))


def _query(stream: Stream, place: int, at: int) -> Segment:
    segment, position = stream.segments[place], positions(stream)[place][at : at + 1]
    return Segment(segment.modality, torch.zeros(1, dtype=torch.long), hidden=torch.ones(1, dtype=torch.bool), position=position)
