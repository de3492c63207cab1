"""Copies of a network in other dtypes, for encoders that compute in one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class Copies:
    """What was made of a network, by dtype; made anew once its weights are others, as while it is trained."""

    def __init__(self) -> None:
        self._made: dict[torch.dtype, tuple[list[tuple[int, int]], nn.Module]] = {}

    def of(self, network: nn.Module, dtype: torch.dtype, make: Callable[[], nn.Module]) -> nn.Module:
        """The copy in a dtype."""
        now = [(each.data_ptr(), 0 if each.is_inference() else each._version) for each in (*network.parameters(), *network.buffers())]
        known, made = self._made.get(dtype, (None, None))
        if made is None or known != now:
            made = make()
            self._made[dtype] = now, made
        return made
