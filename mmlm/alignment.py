"""Windows that follow an alignment: which entries (phones, words) a frame of speech may look at.

Source: the duration-guided mask of RALL-E, arXiv:2404.03204, section 3.3. The query that predicts frame t sees the entries i with
|i - a(t)| <= reach, a(t) being the entry whose time holds frame t, all tokens without a mark and everything else before it.
The query stands at the token *before* frame t, so rows here belong to the frame that is predicted: the token that precedes the first frame
takes row 0, frame t takes row t + 1.

Axes: n entries   t frames
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmlm.base.errors import DataError
from mmlm.layout import EVERYTHING


def entry_of_frame(duration_n: Tensor) -> Tensor:
    """The entry of each frame, long [t], for durations in frames. Raises DataError for a negative duration."""
    if len(duration_n) and int(duration_n.min()) < 0:
        raise DataError(f"durations must be at least 0 frames, but one is {int(duration_n.min())}.")
    return torch.arange(len(duration_n)).repeat_interleave(duration_n.long())


def window_by_alignment(duration_n: Tensor, reach: int | None = 1) -> Tensor:
    """First and last mark, long [t + 1, 2], that the queries of frames 0 to t see; entry i carries the mark i.

    The last row is of the query behind all frames, which sees what the last frame does. reach: entries to each side; None: all of them.
    """
    entry = entry_of_frame(duration_n)
    entry = torch.cat([entry, entry[-1:] if len(entry) else torch.zeros(1, dtype=torch.long)])
    if reach is None:
        return torch.tensor(EVERYTHING).expand(len(entry), 2)
    return torch.stack([entry - reach, entry + reach], dim=1)
