"""Rotary positions and their scalings.

Channel j of a head turns with channel j + half by the angle position * f_j, f_j = base^(-j / half). The scalings change only f_j, and
YaRN the length of queries and keys too. Parity with transformers' modeling_rope_utils is a test.
Sources: RoFormer arXiv:2104.09864; arXiv:2306.15595; YaRN arXiv:2309.00071 (eqs. 21 to 25); Llama 3.1 reference code.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmlm.backbone.config import LinearScaling, Llama3Scaling, NtkScaling, RopeConfig, YarnScaling
from mmlm.base.errors import RecipeError


def frequencies(config: RopeConfig, head_size: int) -> tuple[Tensor, float]:
    """float64 [pairs] radians per position, and the factor on queries and keys."""
    turning = int(head_size * config.fraction)
    turning -= turning % 2
    if turning < 2:
        raise RecipeError(f"rope: a head of {head_size} channels leaves none to turn at fraction {config.fraction}.")
    base, scaling = config.base, config.scaling
    if isinstance(scaling, NtkScaling):
        base *= scaling.factor ** (turning / (turning - 2)) if turning > 2 else scaling.factor
    f = base ** (-torch.arange(0, turning, 2, dtype=torch.float64, device="cpu") / turning)
    if isinstance(scaling, LinearScaling):
        return f / scaling.factor, 1.0
    if isinstance(scaling, YarnScaling):
        return _yarn(f, scaling, base, turning)
    if isinstance(scaling, Llama3Scaling):
        waves = 2 * math.pi / f
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        blend = ((scaling.original_length / waves - low) / (high - low)).clamp(0, 1)
        return (1 - blend) * f / scaling.factor + blend * f, 1.0
    return f, 1.0


def _yarn(f: Tensor, scaling: YarnScaling, base: float, turning: int) -> tuple[Tensor, float]:
    def channel(turns: float) -> float:
        return turning * math.log(scaling.original_length / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = channel(scaling.fast_turns), channel(scaling.slow_turns)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, turning - 1)
    ramp = ((torch.arange(turning // 2, dtype=torch.float64, device="cpu") - low) / max(high - low, 1e-3)).clamp(0, 1)
    factor = scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1
    return f / scaling.factor * ramp + f * (1 - ramp), factor


class Rope(nn.Module):
    """Angles for a layout's positions, and their use on queries and keys."""

    frequencies: Tensor

    def __init__(self, config: RopeConfig, head_size: int) -> None:
        super().__init__()
        self.key = f"{head_size} {config.model_dump_json()}"
        self.config, self.head_size = config, head_size
        f, self.scale = frequencies(config, head_size)
        self.sections = config.sections or [len(f)]
        if sum(self.sections) != len(f):
            raise RecipeError(f"rope.sections {self.sections} must sum to {len(f)}, the pairs of turning channels.")
        self.register_buffer("frequencies", f.float(), persistent=False)

    def reset_buffers(self) -> None:
        """Compute the frequencies anew, for a module made without memory."""
        self.frequencies = frequencies(self.config, self.head_size)[0].float().to(self.frequencies.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rope:
        """Frequencies stay in float32 where weights become less: an angle is a multiple of one, and of its error."""
        super()._apply(fn, recurse)
        if self.frequencies.element_size() < 4:
            self.reset_buffers()
        return self

    def angles(self, position_p: Tensor) -> tuple[Tensor, Tensor]:
        """cos, sin float32 [..., pairs] of positions [..., p]."""
        if position_p.shape[-1] < len(self.sections):
            raise RecipeError(f"rope has sections for {len(self.sections)} axes, but the data has {position_p.shape[-1]}.")
        axes = position_p[..., : len(self.sections)].float().split(1, dim=-1)
        angle = torch.cat([axis * turns for axis, turns in zip(axes, self.frequencies.split(self.sections), strict=True)], dim=-1)
        return angle.cos() * self.scale, angle.sin() * self.scale
