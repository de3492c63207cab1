"""What the tests of recurrences share: rows of documents, and tensors in other forms."""

from __future__ import annotations

import torch

LAYOUTS = {  # documents of a row of t tokens
    "plain": lambda t: [1] * t,
    "packed": lambda t: [1 + 3 * i // t for i in range(t)],
    "padded": lambda t: [2] * (t - t // 3) + [0] * (t // 3),
    "padding between": lambda t: [(0, 1, 1, 1, 0, 2, 2)[i % 7] if i < 14 else 5 for i in range(t)],
}


def layouts(length):
    """Documents of one row each: plain, packed, padded at the end, padding between, nothing."""
    return torch.tensor([*(layout(length) for layout in LAYOUTS.values()), [0] * length])


def as_double(tensors):
    """Leaves in float64, for an exact result; None stays."""
    return {name: None if x is None else x.detach().double().requires_grad_() for name, x in tensors.items()}


def fixed(tensors):
    """Without gradients; None stays."""
    return {name: None if x is None else x.detach() for name, x in tensors.items()}
