"""Vectors of all processes at hand in each, with gradient: contrastive losses then have the negatives of the whole batch.

Axes: b samples of this process   n samples of all processes
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def num_processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gathered(x_b: Tensor) -> tuple[Tensor, int]:
    """(the tensors [b, ...] of all processes one after the other [n, ...], where this one's begin).

    All processes must call it together with tensors of one shape. What any of them does with the result flows back: the gradient of x_b is
    the sum of all processes' gradients for it, as the trainer, which adds gradients up over the processes, wants it.
    """
    if num_processes() == 1:
        return alone(x_b)
    found: Tensor = _Gathered.apply(x_b)
    return found, dist.get_rank() * len(x_b)


def alone(x_b: Tensor) -> tuple[Tensor, int]:
    """As `gathered`, of this process alone, as where the others do something else: the main one validates by itself."""
    return x_b, 0


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x_b: Tensor) -> Tensor:
        """All processes' tensors."""
        parts = [torch.empty_like(x_b, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x_b.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, gradient_n: Tensor) -> Tensor:  # type: ignore[override]
        """The rows of this process of the sum over the processes."""
        total_n = gradient_n.clone(memory_format=torch.contiguous_format)  # which others may read
        dist.all_reduce(total_n)
        size = len(total_n) // dist.get_world_size()
        return total_n[dist.get_rank() * size :][:size]
