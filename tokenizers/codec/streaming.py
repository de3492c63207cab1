"""Sound from codes as they come.

What later tokens may still change is held back: of a causal codec half a window, of another one as much as its decoder looks ahead. Each
push decodes the new tokens with as many of those before them as the decoder sees, so that the pieces together are what decoding all codes
at once gives, to the rounding of float32.

Axes: t tokens   u books   n samples
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mmlm.base.errors import DataError
from mmlm.tokenizers.codec.base import Codec


class StreamingDecoder:
    """Decodes codes of one sound piece by piece."""

    def __init__(self, codec: Codec) -> None:
        self.codec, self.model = codec, codec.model.eval()
        self.past, _ = self.model.decoder.reach
        self.ahead: int = self.model.decoder.ahead_samples
        self._kept = torch.zeros(0, 0, dtype=torch.long)
        self._first = 0  # token that _kept begins with
        self._given = 0  # samples that have been given

    @property
    def tokens_to_first_sample(self) -> int:
        """Tokens that have to be pushed before the first sample comes."""
        return self.ahead // self.codec.hop + 1

    @torch.no_grad()
    def push(self, codes_tu: Tensor) -> np.ndarray:
        """The samples float32 [n] that become final with these tokens [t, u]; there may be none.

        Raises DataError for codes that are not of this codec, or of another number of books than those before.
        """
        codes = self.codec.codes(codes_tu).cpu()
        if len(self._kept) and codes.shape[1] != self._kept.shape[1]:
            raise DataError(f"codes of {codes.shape[1]} books cannot follow codes of {self._kept.shape[1]}.")
        self._kept = torch.cat([self._kept, codes]) if len(self._kept) else codes
        return self._give((self._first + len(self._kept)) * self.codec.hop - self.ahead)

    @torch.no_grad()
    def flush(self, num_samples: int | None = None) -> np.ndarray:
        """The rest; then the decoder is as new. num_samples: length of the whole sound, default all that its tokens stand for."""
        end = (self._first + len(self._kept)) * self.codec.hop
        found = self._give(end if num_samples is None else min(num_samples, end))
        self._kept, self._first, self._given = self._kept[:0], 0, 0
        return found

    def _give(self, end: int) -> np.ndarray:
        if end <= self._given:
            return np.zeros(0, dtype=np.float32)
        model, hop = self.model, self.codec.hop
        wave_bn = model.decoder(model.quantizer.decode(self._kept[None].to(model.device)), None)
        found = wave_bn[0, self._given - self._first * hop : end - self._first * hop].float().cpu().numpy()
        self._given = end
        keep_from = max(self._first, end // hop - self.past)
        self._kept, self._first = self._kept[keep_from - self._first :], keep_from
        return found
