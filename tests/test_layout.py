"""What a token sees: the plan that mixers follow, the dense matrix and a loop over the definition are the same."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlm.backbone.attention import Attention
from mmlm.backbone.config import AttentionConfig
from mmlm.base.errors import RecipeError
from mmlm.layout import Layout

AXES = ("time", "row", "column")


@st.composite
def layouts(draw):
    """Layouts of one to three rows of up to nine tokens, with any of the exceptions."""
    rows, length, seed = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(0, 2**32))
    g = torch.Generator().manual_seed(seed)
    document = torch.zeros(rows, length, dtype=torch.int32)
    for row in range(rows):
        cuts = (torch.rand(length, generator=g) < 0.3).int()
        document[row] = (cuts.cumsum(0) + 1) * (torch.rand(length, generator=g) > draw(st.sampled_from([0.0, 0.2])))
    document[0, 0] = 1
    position = torch.randint(0, draw(st.integers(1, 3)), (rows, length, 3), generator=g) * draw(st.sampled_from([1, 2**40]))
    if draw(st.booleans()):
        position = position - 2**40
    layout = Layout(document, position, AXES, causal=draw(st.booleans()))
    for name in ("mutual", "branch"):
        if draw(st.booleans()):
            setattr(layout, name, torch.randint(0, 3, (rows, length), generator=g))
    if draw(st.booleans()):
        layout.allowed = torch.rand(rows, length, length, generator=g) < 0.7
    if draw(st.booleans()):
        layout.mark = torch.randint(-1, 5, (rows, length), generator=g)
        first = torch.randint(0, 5, (rows, length), generator=g)
        layout.reach = torch.stack([first, first + torch.randint(-1, 3, (rows, length), generator=g)], dim=-1)
    return layout


def by_definition(layout, causal, window, over):
    rows, length = layout.document.shape
    see = torch.zeros(rows, length, length, dtype=torch.bool)
    for row in range(rows):
        sequences = {}
        for at in range(length):
            if document := int(layout.document[row, at]):
                kept = [int(layout.position[row, at, axis]) for axis, name in enumerate(AXES) if over and name != over]
                sequences.setdefault((document, *kept), []).append(at)
        for sequence in sequences.values():
            for i, query in enumerate(sequence):
                for j, key in enumerate(sequence):
                    ok = j <= i or not causal
                    if layout.mutual is not None:
                        ok = ok or int(layout.mutual[row, query]) == int(layout.mutual[row, key]) > 0
                    if layout.branch is not None:
                        ok = ok and int(layout.branch[row, key]) in (0, int(layout.branch[row, query]))
                    if layout.allowed is not None:
                        ok = ok and bool(layout.allowed[row, query, key])
                    if layout.mark is not None and (mark := int(layout.mark[row, key])) >= 0:
                        first, last = layout.reach[row, query].tolist()
                        ok = ok and first <= mark <= last
                    see[row, query, key] = ok and (window is None or i - j < window)
    return see


def of_plan(layout, causal, over):
    plan, (rows, length) = layout.plan(over, causal=causal), layout.document.shape
    see = torch.zeros(rows * length, rows * length, dtype=torch.bool)
    for bucket in plan.buckets:
        n, size = bucket.index.shape
        plain = torch.ones(size, size, dtype=torch.bool)
        visible = (plain.tril() if causal else plain)[None] if bucket.visible is None else bucket.visible
        for index, seen in zip(bucket.index, visible.expand(n, size, size), strict=True):
            see[index[:, None], index] = seen
        if bucket.start is not None:
            assert torch.equal(bucket.index.flatten(), torch.arange(bucket.start, bucket.start + n * size))
    blocks = [see[row * length : (row + 1) * length, row * length : (row + 1) * length] for row in range(rows)]
    assert see.sum() == sum(block.sum() for block in blocks), "a row sees another"
    real = layout.document.flatten() > 0
    assert sorted(plan.order.tolist()) == real.nonzero()[:, 0].tolist()
    assert torch.equal(plan.order[plan.inverse[real]], real.nonzero()[:, 0]) and (plan.inverse[~real] == len(plan.order)).all()
    assert plan.ordered == (plan.order.tolist() == list(range(rows * length)))
    return torch.stack(blocks)


RULES = {"causal": st.booleans(), "over": st.sampled_from([None, *AXES])}


@settings(max_examples=80, deadline=None, derandomize=True)
@given(layout=layouts(), window=st.sampled_from([None, 1, 2, 4]), **RULES)
def test_dense_and_plan_are_the_definition(layout, causal, window, over):
    assert torch.equal(layout.dense(causal=causal, window=window, over=over), by_definition(layout, causal, window, over))
    assert torch.equal(of_plan(layout, causal, over), by_definition(layout, causal, None, over))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    layout=layouts(), window=st.sampled_from([None, 1, 2, 4]), switch=st.sampled_from([None, True, False]), kv=st.sampled_from([1, 2, 4]),
    over=RULES["over"], norm=st.booleans(), rope=st.booleans(),
)  # fmt: skip
def test_attention_is_a_softmax_over_what_is_seen_values_and_gradients(layout, window, switch, kv, over, norm, rope):
    given = {"num_kv_heads": kv, "window": window, "causal": switch, "over": over, "qk_norm": norm}
    config = AttentionConfig.model_validate({"num_heads": 4, **given, **({} if rope else {"rope": None})})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(kv)
        attention = Attention(config, 16).double()
    layout.position = layout.position.remainder(5)
    rows, length = layout.document.shape
    x = torch.randn(rows, length, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(length), requires_grad=True)
    y = attention(x, layout)[0]
    q, k, v = attention._project(x, *attention._angles(layout))
    k, v = (part.repeat_interleave(4 // kv, dim=2) for part in (k, v))
    scores = torch.einsum("bihk,bjhk->bhij", q, k) / math.sqrt(4)
    see = by_definition(layout, layout.causal if switch is None else switch, window, over)[:, None]
    weights = torch.where(see, scores, -1e30).softmax(-1) * see
    wanted = attention.out(torch.einsum("bhij,bjhk->bihk", weights, v).flatten(2))
    real = layout.document > 0
    torch.testing.assert_close(y[real], wanted[real], rtol=0, atol=1e-10)
    mixed = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * real[..., None]
    for got, want in zip(*(torch.autograd.grad((out * mixed).sum(), [x, *attention.parameters()]) for out in (y, wanted)), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_positions_far_apart_do_not_mix_documents():
    position = torch.tensor([[[0, 0, 0], [0, 2**40, 2**40], [0, 0, 0], [0, 2**40, 2**40]]])
    layout = Layout(torch.tensor([[1, 1, 2, 2]]), position, AXES)
    assert torch.equal(of_plan(layout, True, "time"), torch.eye(4, dtype=torch.bool)[None])


def test_one_layer_looks_ahead_where_another_looks_back(tiny):
    x = torch.randn(1, 6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, 4] += 1
    for switch, causal, moved in [(None, True, False), (None, False, True), (False, True, True), (True, False, False)]:
        model = tiny([{"type": "attention", "num_heads": 2, "causal": switch}], num_layers=1)
        y, z = (model.backbone(value, Layout.plain(1, 6, causal=causal))[0] for value in (x, changed))
        assert ((y - z)[:, :4].abs().max().item() > 1e-6) == moved


def test_a_plain_layout_is_one_document_a_row():
    layout = Layout.plain(2, 3, start=torch.tensor([4, 0]))
    assert layout.position[..., 0].tolist() == [[4, 5, 6], [0, 1, 2]] and layout.is_simple
    assert torch.equal(layout.dense(), torch.ones(2, 3, 3, dtype=torch.bool).tril())
    assert not Layout(torch.tensor([[1, 1, 0]]), torch.zeros(1, 3, 1, dtype=torch.long)).is_simple
    assert not Layout(torch.tensor([[1, 2]]), torch.zeros(1, 2, 1, dtype=torch.long)).is_simple
    moved = layout.to("meta")
    assert moved.document.device.type == "meta" and moved._memo == {} and layout._memo


def test_a_changed_copy_makes_its_own_plans():
    layout = Layout.plain(1, 4)
    layout.plan(causal=True)
    other = dataclasses.replace(layout, document=torch.tensor([[1, 1, 2, 2]]).int())
    assert not other.is_simple and layout.is_simple
    assert torch.equal(of_plan(other, True, None), other.dense()) and not torch.equal(other.dense(), layout.dense())


def test_an_axis_that_the_data_lacks_is_named():
    attention = Attention(AttentionConfig(num_heads=2, over="depth"), 16)
    with pytest.raises(RecipeError, match="attention works over axis 'depth', but the data's axes are time"):
        attention(torch.zeros(1, 3, 16), Layout.plain(1, 3))
