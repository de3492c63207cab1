"""What Triton programs of several operations share.

Triton reads TRITON_INTERPRET when it is imported: with 1 the programs run on tensors of the CPU, one after the other, to check their
numbers. No GPU was at hand: speeds are not known. That the programs compile for one is tested (tests/kernels/test_triton.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_OPERANDS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def operands(dtype: torch.dtype) -> Any:
    """In which type matrix products take their operands; the interpreter's products of bfloat16 are wrong."""
    return tl.float32 if INTERPRETED else _OPERANDS[dtype]


@triton.jit
def product(a, b, DOT: tl.constexpr):
    """a @ b in float32 from operands of type DOT; those of float32 are not shortened."""
    return tl.dot(a.to(DOT), b.to(DOT), input_precision="ieee")


@triton.jit
def rows(pointer, row, inside, column, columns, stride):
    """Rows [r, c] of a matrix whose rows are `stride` apart, zero outside, in its dtype: a product takes them from memory as they are."""
    place = pointer + row[:, None] * stride + column[None, :]
    return tl.load(place, mask=inside[:, None] & (column < columns)[None, :], other=0.0)


@triton.jit
def put_rows(pointer, x, row, inside, column, columns, stride):
    """Store such rows."""
    place = pointer + row[:, None] * stride + column[None, :]
    tl.store(place, x.to(pointer.dtype.element_ty), mask=inside[:, None] & (column < columns)[None, :])


@triton.jit
def softplus(x):
    """log(1 + exp(x)) with all digits of small ones."""
    u = tl.exp(-tl.abs(x))
    w = 1.0 + u  # log(1 + u) with all digits of a small u: the rounding of w is the same above and below the line
    return tl.maximum(x, 0.0) + tl.where(w == 1.0, u, tl.log(w) * (u / tl.where(w == 1.0, 1.0, w - 1.0)))


class _Fixed:
    """Programs launched with one choice of constants."""

    def __init__(self, programs: Any, constants: dict[str, Any]) -> None:
        self.programs, self.constants = programs, constants

    def __getitem__(self, grid: Callable[[dict[str, Any]], tuple[int, ...]]) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            self.programs[grid](*arguments, **options, **self.constants)

        return launch


def tuned(*choices: dict[str, Any], key: Sequence[str]) -> Callable[[Any], Any]:
    """Decorates programs that overwrite none of their inputs. Where a GPU is there, the choice of constants (num_warps and num_stages among
    them) that is the quickest there, tried anew for each set of the arguments named in `key`; else the first. Sums of another choice round
    otherwise."""

    def decorate(programs: Any) -> Any:
        if INTERPRETED or not torch.cuda.is_available():
            return _Fixed(programs, choices[0])
        launch = ("num_warps", "num_stages")
        configs = [
            triton.Config({k: v for k, v in choice.items() if k not in launch}, **{k: choice[k] for k in launch if k in choice})
            for choice in choices
        ]
        return triton.autotune(configs, key=list(key))(programs)

    return decorate
