"""Discretised state-space systems: their convolution kernels and what a carried state needs, for any length, without a loop over tokens.

    h_t = A h_{t-1} + B u_t;   y_t = C h_t = sum_j K_j u_{t-j},   K_l = C A^l B
    Diagonal             A = diag(pole), B = 1: S4D, H3
    DiagonalPlusLowRank  A = (I - step/2 M)^-1 (I + step/2 M), M = diag(rate) - p p^*: S4 (arXiv:2111.00396)
The n complex modes stand for themselves and their conjugates; a state is their real and imaginary parts, z = 2 n real numbers. A power l is
taken apart as l = r + R q, so tables of about sqrt(length) powers and one matrix product give all of them. Everything about a system is in
float64: phases of thousands of radians lose their digits in less.

Axes: c channels   n modes   y, z real state channels   l tokens   r tokens of a block   q blocks   s sequences
m signals that share a system
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

BLOCK = 64  # tokens of a block of the dense form


class System(Protocol):
    """What a convolution asks of a system."""

    def kernel(self, length: int) -> Tensor:
        """K [c, l], float64."""

    def matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """A [c, z, z], B [c, z], C [c, z], float64."""

    def step(self, state_scmz: Tensor, u_scm: Tensor) -> tuple[Tensor, Tensor]:
        """y [s, c, m] and the next state after one input."""

    def carried(self, state_scmz: Tensor, length: int) -> Tensor:
        """What a state adds to the next outputs [s, c, m, l]."""

    def absorbed(self, u_scml: Tensor, state_scmz: Tensor, length_s: Tensor) -> Tensor:
        """The state after the last length [s] inputs (zeros stand in front of fewer than l), from a state before them."""


def powers(base: Tensor, count: int) -> Tensor:
    """base^0 ... base^(count - 1) in a new last axis, by doubling."""
    found, top = torch.ones_like(base)[..., None], base[..., None]
    while found.shape[-1] < count:
        found, top = torch.cat([found, found * top], dim=-1), top * top
    return found[..., :count]


class Diagonal:
    """pole, gain [c, n] complex128, gain = C B: K_l = 2 Re sum_n gain_n pole_n^l. The state is that of unit inputs."""

    def __init__(self, pole_cn: Tensor, gain_cn: Tensor) -> None:
        self.pole, self.gain = pole_cn.to(torch.complex128), gain_cn.to(torch.complex128)

    def kernel(self, length: int) -> Tensor:
        """K [c, l], float64."""
        return self._series(self.gain[None, :, None], length)[0, :, 0]

    def matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """A, B, C in real numbers."""
        eye = torch.eye(self.pole.shape[1], dtype=torch.float64, device=self.pole.device)
        turn = torch.stack([self.pole.real, -self.pole.imag, self.pole.imag, self.pole.real], dim=-1).unflatten(-1, (2, 2))
        a = torch.einsum("cnij,nk->cnikj", turn, eye).flatten(3).flatten(1, 2)
        b = torch.stack([torch.ones_like(self.pole.real), torch.zeros_like(self.pole.real)], dim=-1).flatten(1)
        return a, b, torch.view_as_real(2 * self.gain.conj().resolve_conj()).flatten(1)

    def step(self, state_scmz: Tensor, u_scm: Tensor) -> tuple[Tensor, Tensor]:
        """One multiplication a mode."""
        kind = torch.promote_types(state_scmz.dtype, torch.complex64)
        h = _modes(state_scmz) * self.pole[:, None].to(kind) + u_scm[..., None]
        return 2 * (h * self.gain[:, None].to(kind)).real.sum(-1), _parts(h)

    def carried(self, state_scmz: Tensor, length: int) -> Tensor:
        """2 Re sum_n gain_n pole_n^{l+1} h_n."""
        return self._series(_modes(state_scmz) * (self.gain * self.pole)[:, None], length).to(state_scmz.dtype)

    def absorbed(self, u_scml: Tensor, state_scmz: Tensor, length_s: Tensor) -> Tensor:
        """pole^length h + sum_l pole^{length-1-l} u_l."""
        length = u_scml.shape[-1]
        size = max(math.isqrt(max(length - 1, 0)) + 1, 1)
        count = -(-length // size)
        real, low = u_scml.dtype, powers(self.pole, size).flip(-1)  # [c, n, r]
        table = torch.cat([low.real, low.imag], dim=1).to(real).transpose(1, 2)  # [c, r, n twice]
        blocks = torch.nn.functional.pad(u_scml, (count * size - length, 0)).unflatten(-1, (count, size))
        sums = (blocks @ table[:, None]).unflatten(-1, (2, -1))  # [s, c, m, q, 2, n]
        high = powers(self.pole**size, count).flip(-1).transpose(1, 2)[:, None].to(torch.promote_types(real, torch.complex64))
        added = (torch.complex(sums[..., 0, :], sums[..., 1, :]) * high).sum(3)
        through = self.pole[None] ** length_s[:, None, None]
        return _parts((_modes(state_scmz) * through[:, :, None].to(added.dtype)) + added)

    def _series(self, start: Tensor, length: int) -> Tensor:
        """2 Re sum_n start_n pole_n^l for start [s, c, m, n]: [s, c, m, l]."""
        size = max(math.isqrt(max(length - 1, 0)) + 1, 1)
        count = -(-length // size)
        low = powers(self.pole, size)  # [c, n, r]
        high = start[..., None, :] * powers(self.pole**size, count).transpose(1, 2)[:, None]  # [s, c, m, q, n]
        left = torch.cat([high.real, -high.imag], dim=-1)
        right = torch.cat([low.real, low.imag], dim=1)[:, None]
        return 2 * (left @ right).flatten(-2)[..., :length]


class DiagonalPlusLowRank:
    """rate, p, b, c [c, n] complex128 and step [c]: the bilinear discretisation of h' = (diag(rate) - p p^*) h + b u, y = c h."""

    def __init__(self, rate_cn: Tensor, p_cn: Tensor, b_cn: Tensor, c_cn: Tensor, step_c: Tensor) -> None:
        self.rate, self.p, self.b, self.c = (x.to(torch.complex128) for x in (rate_cn, p_cn, b_cn, c_cn))
        self.speed = 2 / step_c.double()[:, None]
        self._found: tuple[Tensor, Tensor, Tensor] | None = None
        self._rows: tuple[Tensor, Tensor] | None = None  # of a block of tokens, found once as well
        self._columns: tuple[Tensor, list[Tensor]] | None = None

    def kernel(self, length: int) -> Tensor:
        """C A^l B with l = r + R q as the product of rows C A^{R q} and columns A^r B.

        The Cauchy sums of the paper (`cauchy_kernel` in reference.py) need A^L too, where c and not c (I - A^L) is the parameter, so that a
        system has a kernel of any length; they take four times as long.
        """
        a, b, c = self.matrices()
        columns, squares = _columns(a, b, 1 << (max(length - 1, 0).bit_length() + 1) // 2)
        rows, _ = _rows(squares[-1], c, -(-length // columns.shape[2]))
        return (rows @ columns).flatten(1)[:, :length]

    def matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """A, B, C in real numbers, found once."""
        if self._found is None:
            n = self.rate.shape[1]
            eye = torch.eye(n, dtype=torch.complex128, device=self.rate.device)
            basis = torch.stack([eye, 1j * eye], dim=1).flatten(0, 1)[:, None, None]  # [z, 1, 1, n]
            a = torch.view_as_real(self._advance(basis.expand(-1, len(self.rate), 1, -1))[:, :, 0]).flatten(2)  # [z, c, y]
            b = torch.view_as_real(self._enter()).flatten(1)
            self._found = a.permute(1, 2, 0), b, torch.view_as_real(2 * self.c.conj().resolve_conj()).flatten(1)
        return self._found

    def step(self, state_scmz: Tensor, u_scm: Tensor) -> tuple[Tensor, Tensor]:
        """Two products with a diagonal and a rank of one: O(n)."""
        h = self._advance(_modes(state_scmz).to(torch.complex128)) + self._enter()[:, None] * u_scm[..., None]
        return 2 * (h * self.c[:, None]).real.sum(-1).to(u_scm.dtype), _parts(h).to(state_scmz.dtype)

    def carried(self, state_scmz: Tensor, length: int) -> Tensor:
        """C A^{l+1} h, a block of tokens at a time."""
        a, _, c = self.matrices()
        if self._rows is None:
            self._rows = _rows(a, (c[:, None] @ a)[:, 0], BLOCK)
        rows, through = self._rows
        h, found = state_scmz.to(a.dtype), []
        for _ in range(-(-length // BLOCK)):
            found.append(_by_channel(h, rows.transpose(1, 2)))
            h = _by_channel(h, through.transpose(1, 2))
        y = torch.cat(found, dim=-1) if found else h[..., :0]
        return y[..., :length].to(state_scmz.dtype)

    def absorbed(self, u_scml: Tensor, state_scmz: Tensor, length_s: Tensor) -> Tensor:
        """A^length h + sum_l A^{length-1-l} B u_l, a block of tokens at a time; the state enters where the inputs begin."""
        a, b, _ = self.matrices()
        if self._columns is None:
            self._columns = _columns(a, b, BLOCK)
        columns, squares = self._columns
        through = squares[-1]
        length = u_scml.shape[-1]
        table = columns.flip(2).transpose(1, 2)  # [c, r, z]
        blocks = torch.nn.functional.pad(u_scml.to(a.dtype), (-length % BLOCK, 0)).unflatten(-1, (-1, BLOCK))
        state, h = state_scmz.to(a.dtype), torch.zeros_like(state_scmz, dtype=a.dtype)
        left = length_s[:, None, None, None]
        for index in range(blocks.shape[3]):
            ahead = (blocks.shape[3] - index) * BLOCK  # tokens from the beginning of this block to the end
            h = _by_channel(h, through.transpose(1, 2)) + _by_channel(blocks[..., index, :], table)
            enters = (left <= ahead) & (left > ahead - BLOCK)
            if bool(enters.any()):
                rest, moved = (length_s - (ahead - BLOCK)).clamp(0, BLOCK), state
                for bit, power in enumerate(squares):
                    moved = torch.where((rest >> bit & 1).bool()[:, None, None, None], _by_channel(moved, power.transpose(1, 2)), moved)
                h = h + torch.where(enters, moved, 0)
        return (h + torch.where(left == 0, state, 0)).to(state_scmz.dtype)

    def _advance(self, h_scmn: Tensor) -> Tensor:
        """A h = A1 A0 h."""
        p, rate, speed = self.p[:, None], self.rate[:, None], self.speed[:, None]
        moved = (speed + rate) * h_scmn - p * 2 * (p.conj() * h_scmn).real.sum(-1, keepdim=True)
        return self._solve(moved)

    def _enter(self) -> Tensor:
        """B = 2 A1 b [c, n]."""
        return self._solve(2 * self.b[None, :, None])[0, :, 0]

    def _solve(self, h_scmn: Tensor) -> Tensor:
        """A1 h = (speed I - diag(rate) + p p^*)^-1 h by Woodbury's identity."""
        p, inverse = self.p[:, None], 1 / (self.speed - self.rate)[:, None]
        h = inverse * h_scmn
        bend = 1 + 2 * (p.conj() * p * inverse).real.sum(-1, keepdim=True)
        return h - inverse * p * (2 * (p.conj() * h).real.sum(-1, keepdim=True) / bend)


def _by_channel(x_scmi: Tensor, matrix_cio: Tensor) -> Tensor:
    """x [s, c, m, i] times the matrix of its channel: [s, c, m, o]. As a product with s as batch, each s would copy all matrices."""
    s, c, m, _ = x_scmi.shape
    return (x_scmi.transpose(0, 1).reshape(c, s * m, -1) @ matrix_cio).view(c, s, m, -1).transpose(0, 1)


def _columns(a: Tensor, b: Tensor, count: int) -> tuple[Tensor, list[Tensor]]:
    """A^r B [c, z, r] for r below count, a power of two, and A^1, A^2, A^4, ... A^count."""
    columns, squares = b[..., None], [a]
    while columns.shape[2] < count:
        columns = torch.cat([columns, squares[-1] @ columns], dim=2)
        squares.append(squares[-1] @ squares[-1])
    return columns, squares


def _rows(a: Tensor, c: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """C A^q [c, q, z] for q below a power of two not less than count, and A to that power."""
    rows, through = c[:, None], a
    while rows.shape[1] < count:
        rows = torch.cat([rows, rows @ through], dim=1)
        through = through @ through
    return rows, through


def _modes(state: Tensor) -> Tensor:
    return torch.view_as_complex(state.unflatten(-1, (-1, 2)).contiguous())


def _parts(modes: Tensor) -> Tensor:
    return torch.view_as_real(modes).flatten(-2)
