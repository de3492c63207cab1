"""What stands around Fourier transforms, in plain PyTorch and in C++: signals laid between zeros, and products of spectra.

Axes: n sequences   c channels   m signals that share a kernel   l tokens   f frequencies
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from mmlm.kernels import native
from mmlm.kernels.dispatch import pointers
from mmlm.kernels.native import address


class Passes(Protocol):
    """The two passes; neither is differentiated."""

    def padded(self, x_ncml: Tensor, lead: int, size: int) -> Tensor:
        """[n, c, m, size] with x from place `lead` on, zeros elsewhere, in memory of its own without gaps."""

    def times(self, a_ncmf: Tensor, b_ncmf: Tensor, *, conjugate: bool = False, inplace: bool = False) -> Tensor:
        """a b, or a conj(b), [n, c, m, f]; n and m of b may be 1. inplace: a may be written over."""


class TorchPasses:
    """Any dtype and device."""

    def padded(self, x_ncml: Tensor, lead: int, size: int) -> Tensor:
        """torch.fft's own padding keeps the order of a transposed x, which is twice as slow.

        A transposed x is first laid in order, by torch's copy for whole matrices; its copy into a part of one is slower than both.
        """
        whole = x_ncml.new_zeros(*x_ncml.shape[:-1], size)
        whole[..., lead : lead + x_ncml.shape[-1]] = x_ncml.contiguous()
        return whole

    def times(self, a_ncmf: Tensor, b_ncmf: Tensor, *, conjugate: bool = False, inplace: bool = False) -> Tensor:
        """A product of torch."""
        b_ncmf = b_ncmf.conj() if conjugate else b_ncmf
        return a_ncmf.mul_(b_ncmf) if inplace else a_ncmf * b_ncmf


_library = native.Library(
    Path(__file__).parent / "fast.cpp",
    {
        "lay": [*[native.ADDRESS] * 4, *[native.SIZE] * 2, ctypes.c_int],
        "times": [*[native.ADDRESS] * 3, *[native.SIZE] * 4, ctypes.c_int, ctypes.c_int],
    },
)
_Four = ctypes.c_int64 * 4


def serves(*tensors: Tensor | None) -> str | None:
    """Why the passes in C++ cannot serve, or None."""
    return pointers(*tensors) or _library.missing()


class NativePasses:
    """float32 on the CPU, one pass each."""

    def padded(self, x_ncml: Tensor, lead: int, size: int) -> Tensor:
        """Reads any strides."""
        whole = torch.empty(*x_ncml.shape[:-1], size)
        sizes, strides = _Four(*x_ncml.shape), _Four(*x_ncml.stride())
        pointers = address(x_ncml), address(whole), ctypes.addressof(sizes), ctypes.addressof(strides)
        _library().lay(*pointers, lead, size, native.threads(whole.numel() * 4e-10))
        return whole

    def times(self, a_ncmf: Tensor, b_ncmf: Tensor, *, conjugate: bool = False, inplace: bool = False) -> Tensor:
        """No conjugate is written down."""
        y = a_ncmf if inplace else torch.empty_like(a_ncmf)
        n, c, m, f = a_ncmf.shape
        shares = b_ncmf.shape[0] == 1 and b_ncmf.shape[2] == 1
        rows = (n * c * m, f, m, c) if shares else (n * c * m, f, 1, n * c * m)
        threads = native.threads(a_ncmf.numel() * 4e-10)
        _library().times(address(a_ncmf), address(b_ncmf), address(y), *rows, int(conjugate), threads)
        return y
