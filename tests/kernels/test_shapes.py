"""Shapes that do not fit are refused by every operation before a back end reads them: native code trusts the sizes it is told."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch

from mmlm.base.errors import RecipeError
from mmlm.kernels.attention.fast import attention, packed_attention
from mmlm.kernels.attention.plan import Bucket, Plan
from mmlm.kernels.conv1d.fast import causal_conv1d
from mmlm.kernels.cross_entropy.fast import linear_cross_entropy
from mmlm.kernels.delta_rule.fast import delta_rule
from mmlm.kernels.dispatch import OPS
from mmlm.kernels.gla.fast import gla
from mmlm.kernels.long_conv.fast import long_conv
from mmlm.kernels.lrpe.fast import lrpe
from mmlm.kernels.rms_norm.fast import rms_norm
from mmlm.kernels.rope.fast import rope
from mmlm.kernels.running_softmax.fast import running_softmax
from mmlm.kernels.selective_scan.fast import selective_scan
from mmlm.kernels.ssd.fast import ssd


class Case(NamedTuple):
    """An operation, shapes that fit, and axes that may have another size without the others: (tensor, axis)."""

    call: Callable
    shapes: dict[str, tuple[int, ...]]
    free: tuple[tuple[str, int], ...] = ()


PLAN = Plan([Bucket(torch.arange(10).view(2, 5), 0, None)], torch.arange(10), torch.arange(10), True)
ROWS = {"document_bt": (2, 5), "continues": (2,)}
HEADS = {"q_bhtk": (2, 4, 5, 8), "k_bglk": (2, 2, 5, 8), "v_bglk": (2, 2, 5, 6), "mask": (2, 4, 5, 5), "slopes_h": (4,)}
KEYS = {"query_btgk": (2, 5, 2, 3), "key_btgk": (2, 5, 2, 3), "value_bthv": (2, 5, 4, 6), "beta_bth": (2, 5, 4), "decay_bth": (2, 5, 4)}
CHANNELS = {"step_bti": (2, 5, 6), "step_bias_i": (6,), "decay_in": (6, 3), "skip_i": (6,), "gate_bti": (2, 5, 6)}
CASES = {
    "attention": Case(partial(attention, causal=True), {**HEADS, "document_bt": (2, 5)}, (("v_bglk", 3),)),
    "causal_conv1d": Case(causal_conv1d, {"x_btc": (2, 5, 6), "weight_ck": (6, 4), "bias_c": (6,), "state_bck": (2, 6, 3), **ROWS}),
    "delta_rule": Case(delta_rule, {**KEYS, "state_bhkv": (2, 4, 3, 6), **ROWS}),
    "gla": Case(
        gla,
        {**{f"{x}_bthk": (2, 5, 4, 3) for x in ("query", "key", "decay")}, "value_bthv": (2, 5, 4, 6), "state_bhkv": (2, 4, 3, 6), **ROWS},
    ),
    "linear_cross_entropy": Case(
        linear_cross_entropy, {"x_nd": (7, 6), "weight_vd": (9, 6), "target_n": (7,), "weight_n": (7,), "bias_v": (9,)}
    ),
    "long_conv": Case(long_conv, {"x_btc": (2, 5, 6), "kernel_ck": (6, 4), "state_bck": (2, 6, 3), **ROWS}),
    "lrpe": Case(partial(lrpe, dtype=torch.float32), {"q_bthk": (2, 5, 4, 3), "k_bthk": (2, 5, 4, 3), "angle_bthk": (2, 5, 4, 3)}),
    "packed_attention": Case(
        partial(packed_attention, plan=PLAN, causal=True),
        {"q_nhk": (10, 4, 8), "k_ngk": (10, 2, 8), "v_ngk": (10, 2, 6), "slopes_h": (4,)},
        (("v_ngk", 2),),
    ),
    "rms_norm": Case(rms_norm, {"x": (2, 5, 6), "weight_d": (6,)}, (("x", 0), ("x", 1))),
    "rope": Case(
        rope,
        {"q_bthk": (2, 5, 4, 8), "k_btgk": (2, 5, 2, 8), "cos_btj": (2, 5, 4), "sin_btj": (2, 5, 4)},
        (("q_bthk", 2), ("q_bthk", 3), ("k_btgk", 2), ("k_btgk", 3)),
    ),
    "running_softmax": Case(running_softmax, {"logits_bti": (2, 5, 6), "state_bi": (2, 6), **ROWS}),
    "selective_scan": Case(
        selective_scan,
        {"x_bti": (2, 5, 6), **CHANNELS, "key_btn": (2, 5, 3), "query_btn": (2, 5, 3), "state_bin": (2, 6, 3), **ROWS},
    ),
    "ssd": Case(
        ssd,
        {
            "x_bthp": (2, 5, 4, 6),
            "step_bth": (2, 5, 4),
            "decay_h": (4,),
            **{f"{x}_btgn": (2, 5, 2, 3) for x in ("key", "query")},
            "state_bhpn": (2, 4, 6, 3),
            **ROWS,
        },
    ),
}
ALONE = {"decode": "its spec names the shapes of all weights", "ssm_conv": "its systems are a mixer's own weights", "swiglu": "one tensor"}
ODD = [(op, name, axis) for op, case in CASES.items() for name, shape in case.shapes.items() for axis in range(len(shape))]


def made(shapes):
    """Tensors of these shapes: ids where ids are wanted."""
    whole = {"document_bt": torch.int32, "target_n": torch.long, "continues": torch.bool, "mask": torch.bool}
    return {name: torch.ones(shape, dtype=whole.get(name, torch.float32)) for name, shape in shapes.items()}


def test_every_operation_is_here():
    assert CASES.keys() | ALONE.keys() == OPS.keys()


@pytest.mark.parametrize("op", CASES)
def test_shapes_that_fit_are_taken(op):
    CASES[op].call(**made(CASES[op].shapes))


@pytest.mark.parametrize("backend", ["auto", "reference", "torch"])
@pytest.mark.parametrize("op", sorted(CASES.keys() - {"packed_attention"}))
def test_no_rows_give_none(op, backend):
    rows = 7 if op == "linear_cross_entropy" else 2
    shapes = {name: (0, *shape[1:]) if shape[0] == rows else shape for name, shape in CASES[op].shapes.items()}
    found = CASES[op].call(**made(shapes), backend=backend)
    first = found if isinstance(found, torch.Tensor) else found[0]
    assert first.numel() == (op == "linear_cross_entropy") and not first.any()


@pytest.mark.parametrize(("op", "name", "axis"), ODD)
def test_one_more_along_an_axis_is_refused(op, name, axis):
    case = CASES[op]
    odd = list(case.shapes[name])
    odd[axis] += 1
    given = made({**case.shapes, name: tuple(odd)})
    if (name, axis) in case.free:
        case.call(**given)
        return
    with pytest.raises(RecipeError) as error:
        case.call(**given)
    assert str(error.value).startswith((f"{op}: ", "continues must be"))
