"""What every recurrence keeps in every form: any split gives the whole, padding is nothing, and autocast has no say."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch

from mmlm.kernels.delta_rule.fast import delta_rule
from mmlm.kernels.dispatch import available
from mmlm.kernels.gla.fast import gla
from mmlm.kernels.parity import relative_error
from mmlm.kernels.ssd.fast import ssd
from tests.kernels import test_delta_rule, test_gla, test_selective_scan, test_ssd
from tests.kernels.recurrences import fixed


class Recurrence(NamedTuple):
    """call(**tensors, **options); inputs(length, dtype, state=...); the name of the state; tensors that have no axis of tokens."""

    call: Callable
    inputs: Callable
    state: str
    whole: tuple[str, ...] = ()


SCAN = Recurrence(test_selective_scan.scan, test_selective_scan.inputs, "state_bin", ("step_bias_i", "decay_in", "skip_i"))
RECURRENCES = {
    "gla": Recurrence(gla, test_gla.inputs, "state_bhkv"),
    "delta_rule": Recurrence(delta_rule, test_delta_rule.inputs, "state_bhkv"),
    "ssd": Recurrence(ssd, test_ssd.inputs, "state_bhpn", ("decay_h",)),
    "selective_scan": SCAN,
    "selective_scan negative": SCAN._replace(call=partial(SCAN.call, negative=True)),
}
ALL = [(name, backend) for name in RECURRENCES for backend in available(name.split()[0])]


@pytest.mark.parametrize(("name", "backend"), ALL)
def test_any_split_gives_the_whole(name, backend):
    op = RECURRENCES[name]
    tensors = fixed(op.inputs(72, torch.float32, state=False))
    document = torch.tensor([[1] * 25 + [2] * 47, [1] * 72, [3] * 9 + [4] * 63], dtype=torch.int32)
    whole, last = op.call(**tensors, document_bt=document, backend=backend)
    state, parts, at = None, [], 0
    for size in (1, 7, 16, 1, 0, 47):
        part = {key: x if key in op.whole else x[:, at : at + size] for key, x in tensors.items()}
        continues = None if at == 0 or not size else document[:, at] == document[:, at - 1]
        given = {"document_bt": document[:, at : at + size], op.state: state, "continues": continues}
        y, state = op.call(**part, **given, backend=backend)
        parts.append(y)
        at += size
    assert relative_error(torch.cat(parts, 1), whole) < 1e-5 and relative_error(state, last) < 1e-5


@pytest.mark.parametrize("spoil", [9.0, torch.nan])
@pytest.mark.parametrize(("name", "backend"), ALL)
def test_padding_gives_zero_and_leaves_the_state_as_it_is(name, backend, spoil):
    op = RECURRENCES[name]
    tensors = fixed(op.inputs(9, torch.float32))
    document = torch.tensor([[0] * 9, [1] * 9, [1] * 5 + [0] * 4])
    y, last = op.call(**tensors, document_bt=document, backend=backend)
    assert torch.equal(last[0], tensors[op.state][0]) and not y[0].any() and not y[2, 5:].any()
    spoiled = {key: x.clone() for key, x in tensors.items()}
    for key in spoiled.keys() - {op.state, *op.whole}:
        spoiled[key][2, 5:] = spoil
    again, after = op.call(**spoiled, document_bt=document, backend=backend)
    assert torch.equal(again, y) and torch.equal(after, last)


@pytest.mark.parametrize(("name", "backend"), ALL)
def test_autocast_changes_nothing_and_the_dtype_is_kept(name, backend):
    op = RECURRENCES[name]
    tensors = fixed(op.inputs(20, torch.float32))
    document = torch.ones(3, 20, dtype=torch.int32)
    y, last = op.call(**tensors, document_bt=document, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        y_cast, last_cast = op.call(**tensors, document_bt=document, backend=backend)
    assert y_cast.dtype == torch.float32 and torch.equal(y, y_cast) and torch.equal(last, last_cast)
