"""What all codecs of ours share: sound in, codes out and back, in pieces, in batches, into files.

A codec is a network with an encoder, a quantizer and a decoder. A sound of n samples gives ceil(n / hop) tokens; how many samples stand
behind each is kept with them (tag `samples`), so that decoding gives n samples again. Long sounds are coded in pieces with as much context
as the network sees, which changes nothing but the memory.

Axes: b sounds   n samples   t frames   u books   d channels
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmlm.base.errors import DataError
from mmlm.sound import Sound
from mmlm.stream import Segment
from mmlm.tokenizers.trained import Trained, codes_of

SAMPLES = "samples"
PIECE = 1000  # frames that are coded at once, without their context
BATCH = 4 * PIECE  # frames that are coded at once of several sounds


class CodecModel(nn.Module):
    """Encoder, quantizer and decoder.

    encoder(wave [b, n], mask) -> vectors [b, t, d]; decoder(vectors, mask) -> wave [b, n]; n is t hops. Both say by `reach` how many frames
    before and after a frame they see. mask [b, t, 1] is 0 at frames of padding.
    """

    def __init__(self, encoder: nn.Module, quantizer: Any, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(self, wave_bn: Tensor) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """(decoded [b, n], codes [b, t, u], losses of the quantizer): the way of training. n: whole hops."""
        z_btd = self.encoder(wave_bn)
        with torch.autocast(z_btd.device.type, enabled=False):
            quantized_btd, codes_btu, parts = self.quantizer(z_btd.float())
        return self.decoder(quantized_btd), codes_btu, parts


class Codec(Trained[CodecModel]):
    """A tokenizer of sound: ids [t, u] of the ranges codec.0, codec.1, ... and back."""

    @property
    def rate_hz(self) -> int:
        """Samples a second of what is read and written; other sounds are brought to it."""
        return int(self._known().sample_rate_hz)

    @property
    def hop(self) -> int:
        """Samples of a token."""
        return int(self._known().hop)

    @property
    def token_rate(self) -> Fraction:
        """Tokens a second."""
        return Fraction(self.rate_hz, self.hop)

    @property
    def sizes(self) -> dict[str, int]:
        """A range for each book that encode uses."""
        return {f"codec.{number}": size for number, size in enumerate(self.book_sizes)}

    def encode(self, raw: Sound, num_books: int | None = None) -> Segment:
        """Codes of a sound, of all books or of the first ones. Raises DataError for a sound without samples, or that is not finite."""
        return self.encode_many([raw], num_books)[0]

    @torch.no_grad()
    def encode_many(self, raws: Sequence[Sound], num_books: int | None = None) -> list[Segment]:
        """Codes of several sounds; the same as one by one."""
        model, books = self.model.eval(), self._books(num_books)
        waves = [self._wave(raw) for raw in raws]
        counts = [-(-len(wave) // self.hop) for wave in waves]
        found: dict[int, Tensor] = {}
        for places in _batches(counts):
            if len(places) == 1:
                found[places[0]] = self._in_pieces(model, waves[places[0]], counts[places[0]], books)
                continue
            longest = max(counts[place] for place in places)
            padded = torch.stack([_padded(waves[place], 0, longest * self.hop) for place in places]).to(model.device)
            mask_bt1 = _mask([counts[place] for place in places], longest, model.device)
            codes_btu = model.quantizer.encode(model.encoder(padded, mask_bt1), books)
            found |= {place: codes_btu[row, : counts[place]].cpu() for row, place in enumerate(places)}
        rate = (self.token_rate.numerator, self.token_rate.denominator)
        return [
            Segment("codec", found[place], weight=1.0, rate_hz=rate, tags={SAMPLES: samples_behind(len(wave), self.hop)})
            for place, wave in enumerate(waves)
        ]

    def _in_pieces(self, model: CodecModel, wave_n: Tensor, count: int, books: int) -> Tensor:
        past, ahead = model.encoder.reach
        parts = []
        for start in range(0, count, PIECE):
            end = min(count, start + PIECE)
            first, last = max(0, start - past), min(count, end + ahead)
            piece = _padded(wave_n, first * self.hop, last * self.hop)[None].to(model.device)
            z_btd = model.encoder(piece, None)[:, start - first : end - first]
            parts.append(model.quantizer.encode(z_btd, books)[0].cpu())
        return torch.cat(parts)

    def decode(self, segment: Segment | Tensor) -> Sound:
        """The sound of codes [t, u] of any first books. It has the samples that stand behind the tokens, or t hops where that is not known.

        Raises DataError for codes that are not of these books.
        """
        return self.decode_many([segment])[0]

    @torch.no_grad()
    def decode_many(self, segments: Sequence[Segment | Tensor]) -> list[Sound]:
        """The sounds of several segments; the same as one by one."""
        model = self.model.eval()
        codes = [self.codes(segment) for segment in segments]
        found: dict[int, Tensor] = {}
        for places in _batches([len(each) for each in codes]):
            if len(places) == 1 or len({codes[place].shape[1] for place in places}) > 1:
                found |= {place: torch.cat([torch.zeros(0), *self.pieces(model, codes[place])]) for place in places}
                continue
            counts = [len(codes[place]) for place in places]
            padded = nn.utils.rnn.pad_sequence([codes[place] for place in places], batch_first=True).to(model.device)
            mask_bt1 = _mask(counts, max(counts), model.device)
            wave_bn = model.decoder(model.quantizer.decode(padded), mask_bt1).cpu()
            found |= {place: wave_bn[row, : counts[row] * self.hop] for row, place in enumerate(places)}
        sounds = []
        for place, segment in enumerate(segments):
            size = num_samples(segment, self.hop) if isinstance(segment, Segment) else len(found[place])
            sounds.append(Sound(found[place][:size].float().numpy(), self.rate_hz))
        return sounds

    def pieces(self, model: CodecModel, codes_tu: Tensor) -> list[Tensor]:
        """The waveform of codes in pieces [n], each computed with as much context as the decoder sees."""
        past, ahead = model.decoder.reach
        parts = []
        for start in range(0, len(codes_tu), PIECE):
            end = min(len(codes_tu), start + PIECE)
            first, last = max(0, start - past), min(len(codes_tu), end + ahead)
            wave_bn = model.decoder(model.quantizer.decode(codes_tu[None, first:last].to(model.device)), None)
            parts.append(wave_bn[0, (start - first) * self.hop : (end - first) * self.hop].cpu())
        return parts

    def codes(self, segment: Segment | Tensor) -> Tensor:
        """long [t, u] of a segment or of ids. Raises DataError where they are not codes of this codec."""
        return codes_of(segment.ids if isinstance(segment, Segment) else segment, self._sizes())

    def _books(self, num_books: int | None) -> int:
        most = len(self._sizes())
        if num_books is not None and not 1 <= num_books <= most:
            raise DataError(f"num_books must be from 1 to {most}, but is {num_books}.")
        return num_books or self.num_books

    def _wave(self, raw: Sound) -> Tensor:
        return wave_of(raw, self.rate_hz)


def wave_of(raw: Sound, rate_hz: int) -> Tensor:
    """float32 [n] of a sound at another rate. Raises DataError where there is no sample, or one that is not finite."""
    if not isinstance(raw, Sound):
        raise DataError(f"a codec reads a Sound, but this is {type(raw).__name__}.")
    if len(raw.wave_n) == 0:
        raise DataError("a sound without samples has no codes.")
    if not np.isfinite(raw.wave_n).all():
        raise DataError("the sound holds samples that are not finite.")
    return torch.from_numpy(np.ascontiguousarray(raw.at(rate_hz).wave_n))


def samples_behind(count: int, hop: int) -> Tensor:
    """float [t]: how many samples stand behind each token of a sound of `count` samples."""
    samples_t = torch.full((-(-count // hop),), float(hop))
    samples_t[-1] = count - (len(samples_t) - 1) * hop
    return samples_t


def num_samples(segment: Segment, hop: int) -> int:
    """Samples that stand behind a segment's tokens: as told by its tag, else `hop` for each."""
    samples_t = segment.tags.get(SAMPLES)
    return len(segment) * hop if samples_t is None else round(float(samples_t.double().sum()))


def _padded(wave_n: Tensor, start: int, end: int) -> Tensor:
    part = wave_n[start:end]
    return nn.functional.pad(part, (0, end - start - len(part)))


def _mask(counts: Sequence[int], longest: int, device: torch.device) -> Tensor:
    return (torch.arange(longest)[None] < torch.tensor(counts)[:, None])[..., None].float().to(device)


def _batches(counts: Sequence[int]) -> list[list[int]]:
    """Places of sounds that are coded together: alike in length, at most BATCH frames with their padding. Long ones are alone."""
    found: list[list[int]] = []
    for place in sorted(range(len(counts)), key=lambda place: counts[place]):
        fits = found and counts[place] <= PIECE and counts[place] * (len(found[-1]) + 1) <= BATCH
        if fits:
            found[-1].append(place)
        else:
            found.append([place])
    return found
