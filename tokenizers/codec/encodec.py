"""EnCodec as a tokenizer: a wrapper of the package `encodec` for weights of your own.

The 24 kHz model is run piece by piece, faster than the package runs it and with the same codes; see `seanet.py`. The 48 kHz model works on
seconds that overlap by a hundredth, each made equally loud; how loud it was is kept with the tokens (tag `scale`). A sound of one channel
is given to both of its channels, and their mean is what is decoded.

Weights are read from safetensors: a folder that `save` wrote, or that of an EncodecModel of transformers. Nothing is downloaded. A new
model has empty books, by which every code would be 0, so it is refused until `begin` has filled them from sounds.

Source: arXiv:2210.13438. Axes: n samples   t tokens   u books   b sounds   d channels
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmlm.base.errors import CheckpointError, DataError, RecipeError, require
from mmlm.base.files import read_json
from mmlm.sound import Sound
from mmlm.stream import Segment
from mmlm.tokenizers.codec.base import SAMPLES, num_samples, samples_behind, wave_of
from mmlm.tokenizers.codec.seanet import Causal, State
from mmlm.tokenizers.config import EnCodecConfig
from mmlm.tokenizers.trained import CONFIG, WEIGHTS, find
from mmlm.weights import copy_tensors, read_tensors, safetensors_bytes, write_tensors

SCALE = "scale"
PIECE = 600  # tokens that are coded at once: 8 s of the 24 kHz model
SPREAD = 0.5  # of random entries, beside that of the vectors that they stand for


class EnCodec:
    """Ids [t, u] of the ranges codec.0, codec.1, ..., 1024 each, and back. Raises MissingExtra without the package."""

    hop = 320

    def __init__(self, config: EnCodecConfig) -> None:
        self.config = config
        self._model: Any = None
        self._has_books = False
        self._fast: dict[str, Causal] = {}
        self.rate_hz = 24_000 if config.model == "24khz" else 48_000
        rates = [1.5, 3.0, 6.0, 12.0, 24.0] if config.model == "24khz" else [3.0, 6.0, 12.0, 24.0]
        if config.bandwidth not in rates:
            told = ", ".join(f"{rate:g}" for rate in rates)
            raise RecipeError(f"tokenizers: bandwidth must be one of {told} for the model {config.model}, but is {config.bandwidth:g}.")

    @property
    def token_rate(self) -> Fraction:
        """Tokens a second of what is not overlapped."""
        return Fraction(self.rate_hz, self.hop)

    @property
    def num_books(self) -> int:
        """Books that encode uses where it is not told. Raises RecipeError where the bandwidth has fewer than asked for."""
        most = self._books_at(self.config.bandwidth)
        if (asked := self.config.encode_books) is not None and asked > most:
            raise RecipeError(f"tokenizers: encode_books is {asked}, but {self.config.bandwidth:g} kbit/s have {most} books.")
        return asked or most

    def _books_at(self, bandwidth: float) -> int:
        return int(1000 * bandwidth // (10 * self.token_rate))

    @property
    def book_sizes(self) -> list[int]:
        """Entries of each book that encode uses."""
        return [1024] * self.num_books

    @property
    def sizes(self) -> dict[str, int]:
        """A range for each book that encode uses."""
        return {f"codec.{number}": size for number, size in enumerate(self.book_sizes)}

    @property
    def is_fitted(self) -> bool:
        """Whether there are weights, or a path to them."""
        return self._has_books or self.config.path is not None

    @property
    def model(self) -> Any:
        """The package's model. Raises DataError where its books are empty."""
        if self._model is None and self.config.path is not None:
            self.load(self.config.path)
        if not self._has_books:
            raise DataError("this EnCodec has no weights: give `path`, or fill the empty books of a new model by begin(sounds).")
        return self._model

    def _new(self) -> Any:
        package = require("encodec", "speech")
        return getattr(package.EncodecModel, f"encodec_model_{self.config.model}")(pretrained=False)

    @torch.no_grad()
    def begin(self, sounds: Sequence[Sound], seed: int = 0) -> EnCodec:
        """A new model with random weights, whose entries lie around the vectors that it makes of sounds; for trials: its sound is noise."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self._new().eval()
            latents = [model.encoder(self._channels(wave_of(sound, self.rate_hz)))[0].T for sound in sounds]
            left_nd = torch.cat(latents)
            for layer in model.quantizer.vq.layers:
                book = layer._codebook
                around = left_nd.mean(0) + SPREAD * left_nd.std(0, correction=0) * torch.randn(book.codebook_size, left_nd.shape[1])
                book.embed.copy_(around)
                book.embed_avg.copy_(around)
                book.cluster_size.fill_(1.0)
                book.inited.fill_(1.0)
                left_nd = left_nd - book.decode(book.encode(left_nd))
        self._take(model)
        return self

    def encode(self, raw: Sound, num_books: int | None = None) -> Segment:
        """Codes of a sound, of as many books as the bandwidth has or as told. Raises DataError for an empty or unusable one."""
        model = self.model
        books, most = num_books or self.num_books, self._books_at(24.0)
        if not 1 <= books <= most:
            raise DataError(f"num_books must be from 1 to {most}, but is {books}.")
        wave_n = wave_of(raw, self.rate_hz)
        with torch.no_grad():
            codes_tu, scale_t, samples_t = (self._encode_24 if self.config.model == "24khz" else self._encode_48)(model, wave_n, books)
        tags = {SAMPLES: samples_t, **({} if scale_t is None else {SCALE: scale_t})}
        return Segment("codec", codes_tu, weight=1.0, rate_hz=(self.token_rate.numerator, self.token_rate.denominator), tags=tags)

    def encode_many(self, raws: Sequence[Sound], num_books: int | None = None) -> list[Segment]:
        """Codes of several sounds, one by one."""
        return [self.encode(raw, num_books) for raw in raws]

    def _channels(self, wave_n: Tensor) -> Tensor:
        return wave_n.expand(1, 1 if self.config.model == "24khz" else 2, -1)

    def _encode_24(self, model: Any, wave_n: Tensor, books: int) -> tuple[Tensor, None, Tensor]:
        states: State = {}
        found = []
        for start, end, is_last in _pieces(len(wave_n), PIECE * self.hop):
            z_bdt = self._fast["encoder"](wave_n[None, None, start:end], states, is_last=is_last)
            found.append(model.quantizer.vq.encode(z_bdt, n_q=books)[:, 0].T)
        return torch.cat(found), None, samples_behind(len(wave_n), self.hop)

    def _encode_48(self, model: Any, wave_n: Tensor, books: int) -> tuple[Tensor, Tensor, Tensor]:
        size, stride = model.segment_length, model.segment_stride
        found, scales, samples = [], [], []
        for start in range(0, len(wave_n), stride):
            part = wave_n[start : start + size]
            scale = part.square().mean().sqrt() + 1e-8
            z_bdt = model.encoder(self._channels(part / scale))
            found.append(model.quantizer.vq.encode(z_bdt, n_q=books)[:, 0].T)
            scales.append(scale.expand(len(found[-1])))
            own = samples_behind(len(part), self.hop)
            if start + stride < len(wave_n):  # what the next second begins with again stands behind its tokens
                own = (torch.full_like(own, self.hop).cumsum(0).clamp_max(stride)).diff(prepend=torch.zeros(1))
            samples.append(own)
        return torch.cat(found), torch.cat(scales), torch.cat(samples)

    def decode(self, segment: Segment | Tensor) -> Sound:
        """The sound of codes [t, u]. Raises DataError for codes that are none of this model's."""
        model = self.model
        ids = segment.ids if isinstance(segment, Segment) else segment
        most = self._books_at(24.0)
        if ids is None or ids.ndim != 2 or not 1 <= ids.shape[1] <= most:
            raise DataError(f"codes must be [tokens, 1 to {most} books], but are {'no ids' if ids is None else list(ids.shape)}.")
        if bool(((ids < 0) | (ids >= 1024)).any()):
            raise DataError(f"codes must lie from 0 to 1023, but reach from {int(ids.min())} to {int(ids.max())}.")
        own = segment if isinstance(segment, Segment) else None
        with torch.no_grad():
            wave_n = self._decode_24(model, ids) if self.config.model == "24khz" else self._decode_48(model, ids, own)
        size = len(wave_n) if own is None or (SAMPLES not in own.tags and self.config.model == "48khz") else num_samples(own, self.hop)
        return Sound(wave_n[:size].float().numpy(), self.rate_hz)

    def decode_many(self, segments: Sequence[Segment | Tensor]) -> list[Sound]:
        """The sounds of several segments, one by one."""
        return [self.decode(segment) for segment in segments]

    def _decode_24(self, model: Any, ids: Tensor) -> Tensor:
        states: State = {}
        found = [torch.zeros(0)]
        for start, end, is_last in _pieces(len(ids), PIECE):
            z_bdt = model.quantizer.vq.decode(ids[start:end].T[:, None])
            found.append(self._fast["decoder"](z_bdt, states, is_last=is_last)[0, 0])
        return torch.cat(found)

    def _decode_48(self, model: Any, ids: Tensor, segment: Segment | None) -> Tensor:
        if not len(ids):
            return torch.zeros(0)
        size, stride = model.segment_length, model.segment_stride
        tags = {} if segment is None else segment.tags
        counts = [size // self.hop] * -(-len(ids) // (size // self.hop))
        counts[-1] = len(ids) - sum(counts[:-1])
        if segment is not None and SAMPLES in tags:
            whole = num_samples(segment, self.hop)
            counts = [-(-min(size, whole - start) // self.hop) for start in range(0, whole, stride)]
        if sum(counts) != len(ids):
            raise DataError(f"{len(ids)} tokens do not fit the {num_samples(segment, self.hop) if segment else 0} samples they stand for.")
        frames, start = [], 0
        for count in counts:
            z_bdt = model.quantizer.vq.decode(ids[start : start + count].T[:, None])
            scale = tags[SCALE][start] if SCALE in tags else torch.tensor(0.1)  # the loudness of ordinary speech, where none is known
            frames.append(model.decoder(z_bdt) * scale)
            start += count
        return require("encodec.utils", "speech")._linear_overlap_add(frames, stride)[0].mean(0)

    @property
    def fingerprint(self) -> str:
        """A digest of weights, model and number of books."""
        digest = hashlib.blake2b(json.dumps([self.config.model, self.num_books]).encode(), digest_size=16)
        for part in safetensors_bytes(self.model.state_dict()):
            digest.update(part)
        return digest.hexdigest()

    def save(self, folder: Path | str) -> None:
        """Write codec.json and codec.safetensors."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / CONFIG).write_text(json.dumps({"type": "encodec", "model": self.config.model}) + "\n")
        write_tensors(Path(folder) / WEIGHTS, self.model.state_dict())

    def load(self, folder: Path | str) -> EnCodec:
        """Take what save wrote, or an EncodecModel of transformers. Raises CheckpointError where there is neither, or another model."""
        path = Path(folder)
        model = self._new()
        if (path / "model.safetensors").is_file() and (path / "config.json").is_file() and not (path / CONFIG).is_file():
            where, tensors = path / "model.safetensors", of_transformers(read_tensors(path / "model.safetensors"))
        else:
            where = find(str(folder)) / WEIGHTS
            about = read_json(where.parent / CONFIG)
            if (about.get("type"), about.get("model")) != ("encodec", self.config.model):
                raise CheckpointError(
                    f"{where.parent / CONFIG}: is of {about}, but the recipe asks for encodec, model {self.config.model}."
                )
            tensors = read_tensors(where)
        copy_tensors(model.state_dict(), tensors, str(where))
        if not all(bool(layer._codebook.embed.any()) for layer in model.quantizer.vq.layers[: self.num_books]):
            raise CheckpointError(f"{where}: its books are empty, so every code would be 0; these are no trained weights.")
        self._take(model)
        return self

    def _take(self, model: Any) -> None:
        self._model, self._has_books = model.eval(), True
        if self.config.model == "24khz":
            self._fast = {"encoder": Causal(model.encoder), "decoder": Causal(model.decoder)}


def of_transformers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of the package."""
    found = {}
    for name, tensor in tensors.items():
        name = re.sub(r"^quantizer\.layers\.(\d+)\.codebook\.", r"quantizer.vq.layers.\1._codebook.", name)
        name = re.sub(r"^(encoder|decoder)\.layers\.", r"\1.model.", name)
        name = name.replace("parametrizations.weight.original0", "weight_g").replace("parametrizations.weight.original1", "weight_v")
        number = re.match(r"decoder\.model\.(\d+)\.conv\.", name)
        is_transposed = number is not None and int(number[1]) in (3, 6, 9, 12)
        outer = "convtr.convtr" if is_transposed else "conv.conv"
        name = re.sub(r"\.conv\.(?=weight|bias)", f".{outer}.", name)
        name = re.sub(r"^(.*)\.norm\.(weight|bias)$", rf"\1.{outer.split('.')[0]}.norm.\2", name)
        found[name] = tensor
    return found


def _pieces(count: int, size: int) -> Iterator[tuple[int, int, bool]]:
    """(start, end, whether it is the last) of pieces of at least `size`; all but the last are exactly so long."""
    start = 0
    while start < count:
        end = count if count - start < 2 * size else start + size
        yield start, end, end == count
        start = end
