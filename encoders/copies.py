"""Copies of a network in other dtypes, for encoders that compute in one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from mmlm.base.errors import RecipeError
from mmlm.kernels.dispatch import multiplies_bf16_faster

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def dtype_of(precision: str, usual: str, device: torch.device) -> torch.dtype:
    """What a network on a device computes in. precision: fp32, bf16, or auto: the usual one of its config, which may leave it to the
    device by auto again. Raises RecipeError for another."""
    if precision not in ("auto", *PRECISIONS):
        raise RecipeError(f"precision must be one of auto, {', '.join(PRECISIONS)}, but is {precision!r}.")
    name = usual if precision == "auto" else precision
    return PRECISIONS[("bf16" if multiplies_bf16_faster(device) else "fp32") if name == "auto" else name]


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
