"""One book of many entries that are all in use: grouped first, then reorganized.

A large book that is learned at once uses few of its entries. In stage one two small books each take half of the channels; then the most
used entries of both are joined, every one of the first with every one of the second, into one book of full width, with which training goes
on. What is quantized at that moment is not changed: an entry (i, j) is the vector that the pair was before.

Source: SimCodec in GenSE, arXiv:2502.02942, section 3.2, with its published weights of the losses (codebook 1, commitment 0.25, diversity
0.1), which recipes give. How many entries each book contributes is a choice of the recipe; the network is that of the small codec, or
convolutions on samples as published.
Axes: b sounds   t frames   d channels   u books   s entries
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmlm.tokenizers.codec.base import Codec, CodecModel
from mmlm.tokenizers.codec.small import SpectralDecoder, SpectralEncoder
from mmlm.tokenizers.codec.waveform import WaveformDecoder, WaveformEncoder
from mmlm.tokenizers.config import SingleCodecConfig
from mmlm.tokenizers.quantizers import Book, GroupedVQ, Parts, ResidualVQ


class ReorganizedVQ(nn.Module):
    """Two grouped books in stage one, one book of their pairs in stage two.

    kept: how many entries of each group are joined. has_groups: without them it is a book learned at once.
    """

    def __init__(self, group_size: int, kept: tuple[int, int], dim: int, *, has_groups: bool) -> None:
        super().__init__()
        self.kept = kept
        self.groups = GroupedVQ(2, group_size, dim) if has_groups else None
        self.single = ResidualVQ(1, kept[0] * kept[1], dim, learned="gradient", decay=0.99, dropout=0.0)
        self.register_buffer("is_single", torch.tensor(0.0 if has_groups else 1.0))

    @property
    def now(self) -> GroupedVQ | ResidualVQ:
        """The quantizer of the present stage."""
        return self.single if self.groups is None or bool(self.is_single) else self.groups

    @property
    def sizes(self) -> list[int]:
        """Entries of each book of the present stage."""
        return self.now.sizes

    @property
    def names(self) -> list[str]:
        """Losses that `forward` gives; that of diversity has no weight in stage two."""
        return ["commitment", "codebook", *(["diversity"] if self.groups is not None else [])]

    @torch.no_grad()
    def reorganize(self) -> None:
        """Begin stage two: entry i * kept[1] + j is the i-th most used of the first group beside the j-th most used of the second."""
        if self.groups is None or bool(self.is_single):
            return
        first, second = (
            book.vectors_sd[book.count_s.argsort(descending=True, stable=True)[:count]] for book, count in zip(self.groups.books, self.kept)
        )
        book: Book = self.single.books[0]
        pairs = torch.cat([first[:, None].expand(-1, len(second), -1), second[None].expand(len(first), -1, -1)], dim=-1)
        book.vectors_sd.copy_(pairs.flatten(0, 1))
        self.is_single.fill_(1.0)

    def forward(self, z_btd: Tensor) -> tuple[Tensor, Tensor, Parts]:
        """(quantized [b, t, d], codes [b, t, u], losses)."""
        quantized, codes, parts = self.now(z_btd)
        nothing = {"diversity": (z_btd.new_zeros(()), torch.tensor(0.0))}
        return quantized, codes, {name: ({**nothing, **parts})[name] for name in self.names}

    def encode(self, z_btd: Tensor, num_books: int) -> Tensor:
        """Codes [b, t, num_books]."""
        return self.now.encode(z_btd, num_books)

    def decode(self, codes_btu: Tensor) -> Tensor:
        """Vectors [b, t, d]."""
        return self.now.decode(codes_btu)


class SingleCodec(Codec):
    """The codec with one reorganized book."""

    config: SingleCodecConfig

    def build(self) -> CodecModel:
        """Encoder, quantizer of both stages and decoder."""
        config = self.config
        quantizer = ReorganizedVQ(config.group_size, (config.kept[0], config.kept[1]), config.latent_size, has_groups=config.stage_one > 0)
        if config.network == "waveform":
            return CodecModel(WaveformEncoder(config), quantizer, WaveformDecoder(config))
        return CodecModel(SpectralEncoder(config), quantizer, SpectralDecoder(config))

    def _sizes(self) -> list[int]:
        """One book; while stage one lasts, those of the groups."""
        config = self._known()
        if self._model is not None and self._model.quantizer.sizes != [config.kept[0] * config.kept[1]]:
            return list(self._model.quantizer.sizes)
        return [config.kept[0] * config.kept[1]]
