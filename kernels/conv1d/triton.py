"""The causal depthwise convolution on a GPU: one program a block of tokens and channels of a row.

`age` says how many inputs precede a token in its document, the carried ones among them, -1 at padding: tap i counts up to an age of i. The
backward pass writes the slope of the sums before the activation once, then gathers from it, so that nothing is added into place.

Axes: b rows   t tokens   c channels   k taps, the last one for the current token
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmlm.kernels.conv1d.fast import ages, last_of_rows, padding_last

_TOKENS, _CHANNELS = 32, 64


@triton.jit
def _place(T, C, extra, BT: tl.constexpr, BC: tl.constexpr):
    """Row, tokens and channels of a program, `extra` inputs before the row among the tokens, and its number among blocks of tokens."""
    channel_blocks = tl.cdiv(C, BC)
    pid = tl.program_id(0).to(tl.int64)
    block = pid // channel_blocks
    token_blocks = tl.cdiv(T + extra, BT)
    b = block // token_blocks
    t = block % token_blocks * BT - extra + tl.arange(0, BT)
    c = pid % channel_blocks * BC + tl.arange(0, BC)
    return b, t, c, c < C, block


@triton.jit
def _input(x_ptr, state_ptr, b, t, c, inside, x_b, x_t, C, i: tl.constexpr, TAPS: tl.constexpr):
    """Float32 inputs i tokens before tokens t, from the carried ones where that is before the row; zero outside."""
    at = (t - i)[:, None]
    x = tl.load(x_ptr + b * x_b + at * x_t + c[None, :], mask=inside & (at >= 0), other=0.0).to(tl.float32)
    if state_ptr is not None:
        held = state_ptr + (b * C + c[None, :]) * (TAPS - 1) + TAPS - 1 + at
        x += tl.load(held, mask=inside & (at < 0), other=0.0).to(tl.float32)
    return x


@triton.jit
def _sums(x_ptr, weight_ptr, bias_ptr, age, state_ptr, b, t, c, is_channel, x_b, x_t, C, TAPS: tl.constexpr):
    """bias + sum_i weight[k - 1 - i] x[t - i]."""
    z = tl.zeros((t.shape[0], c.shape[0]), tl.float32)
    if bias_ptr is not None:
        z += tl.load(bias_ptr + c, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    for i in tl.static_range(TAPS):
        weight = tl.load(weight_ptr + c * TAPS + TAPS - 1 - i, mask=is_channel, other=0.0).to(tl.float32)
        z += weight[None, :] * _input(x_ptr, state_ptr, b, t, c, (age >= i)[:, None] & is_channel[None, :], x_b, x_t, C, i, TAPS)
    return z


@triton.jit
def _forward(
    x_ptr, weight_ptr, bias_ptr, age_ptr, state_ptr, y_ptr, x_b, x_t, T, C,
    TAPS: tl.constexpr, SILU: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    b, t, c, is_channel, _ = _place(T, C, 0, BT, BC)
    age = tl.load(age_ptr + b * T + t, mask=t < T, other=-1)
    z = _sums(x_ptr, weight_ptr, bias_ptr, age, state_ptr, b, t, c, is_channel, x_b, x_t, C, TAPS)
    if SILU:
        z = z / (1.0 + tl.exp(-z))
    z = tl.where((age >= 0)[:, None], z, 0.0)
    tl.store(y_ptr + (b * T + t)[:, None] * C + c[None, :], z.to(y_ptr.dtype.element_ty), mask=(t < T)[:, None] & is_channel[None, :])


@triton.jit
def _slopes(
    x_ptr, weight_ptr, bias_ptr, age_ptr, state_ptr, dy_ptr, dz_ptr, parts_ptr, x_b, x_t, T, C,
    TAPS: tl.constexpr, SILU: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The slopes of the sums [b, t, c], and of a block of tokens those of the taps and the bias: parts [blocks, k + 1, c]."""
    b, t, c, is_channel, block = _place(T, C, 0, BT, BC)
    age = tl.load(age_ptr + b * T + t, mask=t < T, other=-1)
    place = (b * T + t)[:, None] * C + c[None, :]
    inside = (age >= 0)[:, None] & is_channel[None, :]
    dz = tl.load(dy_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        z = _sums(x_ptr, weight_ptr, bias_ptr, age, state_ptr, b, t, c, is_channel, x_b, x_t, C, TAPS)
        sigmoid = 1.0 / (1.0 + tl.exp(-z))
        dz *= sigmoid * (1.0 + z * (1.0 - sigmoid))
    tl.store(dz_ptr + place, dz, mask=(t < T)[:, None] & is_channel[None, :])
    parts = parts_ptr + block * (TAPS + 1) * C + c
    for i in tl.static_range(TAPS):
        x = _input(x_ptr, state_ptr, b, t, c, (age >= i)[:, None] & is_channel[None, :], x_b, x_t, C, i, TAPS)
        tl.store(parts + (TAPS - 1 - i) * C, tl.sum(dz * x, 0), mask=is_channel)
    tl.store(parts + TAPS * C, tl.sum(dz, 0), mask=is_channel)


@triton.jit
def _input_gradients(
    weight_ptr, age_ptr, dz_ptr, dx_ptr, dstate_ptr, T, C, TAPS: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    b, t, c, is_channel, _ = _place(T, C, TAPS - 1, BT, BC)
    found = tl.zeros((BT, BC), tl.float32)
    for i in tl.static_range(TAPS):
        weight = tl.load(weight_ptr + c * TAPS + TAPS - 1 - i, mask=is_channel, other=0.0).to(tl.float32)
        later = t + i
        used = tl.load(age_ptr + b * T + later, mask=(later >= 0) & (later < T), other=-1) >= i
        dz = tl.load(dz_ptr + (b * T + later)[:, None] * C + c[None, :], mask=used[:, None] & is_channel[None, :], other=0.0)
        found += weight[None, :] * dz
    place = (b * T + t)[:, None] * C + c[None, :]
    tl.store(dx_ptr + place, found.to(dx_ptr.dtype.element_ty), mask=((t >= 0) & (t < T))[:, None] & is_channel[None, :])
    if dstate_ptr is not None:
        held = dstate_ptr + (b * C + c[None, :]) * (TAPS - 1) + TAPS - 1 + t[:, None]
        tl.store(held, found.to(dstate_ptr.dtype.element_ty), mask=(t < 0)[:, None] & is_channel[None, :])


class _CausalConv1d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, age: Tensor, silu: bool) -> Tensor:
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        sizes, options = _launch(x, weight)
        _forward[(_programs(x, 0),)](x, weight, bias, age, state, y, *sizes, SILU=silu, **options)
        ctx.save_for_backward(x, weight, bias, age, state)
        ctx.silu = silu
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, weight, bias, age, state = ctx.saved_tensors
        (b, t, c), taps = x.shape, weight.shape[1]
        sizes, options = _launch(x, weight)
        dz = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        parts = dz.new_empty(b * triton.cdiv(t, _TOKENS), taps + 1, c)
        _slopes[(_programs(x, 0),)](x, weight, bias, age, state, dy.contiguous(), dz, parts, *sizes, SILU=ctx.silu, **options)
        dx, dstate = torch.empty(x.shape, dtype=x.dtype, device=x.device), None if state is None else torch.empty_like(state)
        _input_gradients[(_programs(x, taps - 1),)](weight, age, dz, dx, dstate, t, c, **options)
        slopes = parts.sum(0)
        return dx, slopes[:-1].T.to(weight.dtype), None if bias is None else slopes[-1].to(bias.dtype), dstate, None, None


def _launch(x: Tensor, weight: Tensor) -> tuple[tuple[int, ...], dict[str, int]]:
    return (*x.stride()[:2], *x.shape[1:]), {"TAPS": weight.shape[1], "BT": _TOKENS, "BC": _CHANNELS}


def _programs(x: Tensor, extra: int) -> int:
    b, t, c = x.shape
    return b * triton.cdiv(t + extra, _TOKENS) * triton.cdiv(c, _CHANNELS)


def _packed(
    x_btc: Tensor,
    weight_ck: Tensor,
    bias_c: Tensor | None,
    document_bt: Tensor,
    state_bck: Tensor | None,
    continues_b: Tensor | None,
    activation: str | None,
) -> tuple[Tensor, Tensor]:
    state = None if state_bck is None else state_bck.to(x_btc.dtype).contiguous()
    age = ages(document_bt, continues_b, weight_ck.shape[1])
    y = x_btc
    if x_btc.numel():
        x = x_btc if x_btc.stride(2) == 1 else x_btc.contiguous()
        held = state if weight_ck.shape[1] > 1 else None
        y = _CausalConv1d.apply(x, weight_ck.contiguous(), bias_c, held, age, activation == "silu")
    return y, last_of_rows(x_btc, age, state, weight_ck.shape[1])


def causal_conv1d_triton(*arguments: Any) -> tuple[Tensor, Tensor]:
    """x is read as it lies; arguments as for the other forms."""
    return padding_last(_packed, *arguments)
