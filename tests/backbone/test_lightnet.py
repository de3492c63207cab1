"""LightNet beside the softmax it is, in and out of order; positions on several axes; decaying sums along axes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmlm.backbone.config import LightNetConfig, LrpeConfig, TpeConfig
from mmlm.backbone.lrpe import Lrpe
from mmlm.base.errors import RecipeError
from mmlm.kernels.lrpe.fast import lrpe as spread
from mmlm.layout import Layout

WIDTH = 12


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def built(config, width=WIDTH):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return config.build(width).double()


def by_definition(mixer, x_td, causal, scale=1.0):
    """One document from the equations: a softmax over the tokens of every key channel, each token's written out."""
    q, k, v, gate = mixer.input(x_td).split(mixer.sizes, dim=-1)
    q, k, v = (part.unflatten(-1, (mixer.num_heads, -1)) for part in (F.silu(q), k * scale, v))
    angle = torch.zeros(len(x_td), mixer.num_heads, mixer.head_size, dtype=x_td.dtype)
    if mixer.positions.lrpe is not None:
        angle = torch.arange(len(x_td))[:, None, None] * mixer.positions.lrpe.theta
    outputs = []
    for t in range(len(x_td)):
        seen = slice(0, t + 1 if causal else None)
        weight = k[seen].softmax(0) * (angle[t] - angle[seen]).cos()
        outputs.append(torch.einsum("hk,shk,shv->hv", q[t], weight, v[seen]))
    y = torch.stack(outputs)
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + mixer.config.norm_eps) * mixer.norm.weight
    return mixer.out(y.flatten(1) * torch.sigmoid(mixer.gate(gate)))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "whole"])
@pytest.mark.parametrize("lrpe", [None, LrpeConfig(base=50.0)], ids=["no positions", "lrpe"])
def test_packed_documents_are_running_softmaxes_with_gradients(causal, lrpe):
    mixer = built(LightNetConfig(num_heads=2, lrpe=lrpe))
    document = torch.tensor([[1] * 8 + [0] * 2 + [2] * 7, [0] * 3 + [4] * 14]).int()
    places, position = [(0, 1), (0, 2), (1, 4)], torch.zeros(2, 17, 1, dtype=torch.long)
    for row, number in places:
        position[row, document[row] == number, 0] = torch.arange(int((document[row] == number).sum()))
    x, weight = torch.randn(2, 2, 17, WIDTH, dtype=torch.float64, generator=seeded()).unbind()
    x.requires_grad_()
    y = mixer(x, Layout(document, position, causal=causal))[0]
    wanted = torch.cat([by_definition(mixer, x[row, document[row] == number], causal) for row, number in places])
    got = torch.cat([y[row, document[row] == number] for row, number in places])
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11)
    mixed = torch.cat([weight[row, document[row] == number] for row, number in places])
    for one, want in zip(*(torch.autograd.grad((part * mixed).sum(), [x, *mixer.parameters()]) for part in (got, wanted))):
        torch.testing.assert_close(one, want, rtol=0, atol=1e-10)


def test_huge_logits_are_no_trouble_in_float32():
    mixer = built(LightNetConfig(num_heads=2, lrpe=None))
    x = torch.randn(40, WIDTH, dtype=torch.float64, generator=seeded(3))
    rows = slice(mixer.sizes[0], 2 * mixer.sizes[0])
    scale = 30 / float(mixer.input(x).detach()[:, rows].std())
    with torch.no_grad():
        wanted = by_definition(mixer, x, True, scale)
        mixer.input.weight[rows] *= scale
        x32 = x.float()[None]
        y = mixer.float()(x32, Layout.plain(1, 40))[0][0]
    assert y.isfinite().all() and float((y - wanted).norm() / wanted.norm()) < 1e-4


@pytest.mark.parametrize("lrpe", [None, LrpeConfig()], ids=["no positions", "lrpe"])
@torch.no_grad()
def test_a_whole_document_is_the_same_in_any_order_unless_positions_are_told(lrpe):
    mixer = built(LightNetConfig(num_heads=2, lrpe=lrpe))
    x, order = torch.randn(1, 30, WIDTH, dtype=torch.float64, generator=seeded()), torch.randperm(30, generator=seeded(1))
    plain = Layout.plain(1, 30, causal=False)
    moved, same = mixer(x[:, order], plain)[0], mixer(x, plain)[0][:, order]
    assert (float((moved - same).abs().max()) < 1e-12) == (lrpe is None)
    carried = Layout(plain.document, plain.position[:, order], causal=False)
    torch.testing.assert_close(mixer(x[:, order], carried)[0], same, rtol=0, atol=1e-12)
    by_decay = built(LightNetConfig(num_heads=2, lrpe=lrpe))
    assert float((by_decay(x[:, order], Layout.plain(1, 30))[0] - by_decay(x, Layout.plain(1, 30))[0][:, order]).abs().max()) > 1e-3


@pytest.mark.parametrize("axes", [1, 2, 3])
@torch.no_grad()
def test_products_of_queries_and_keys_know_offsets_on_each_axis_alone(axes):
    lrpe = Lrpe(LrpeConfig(num_axes=axes, base=100.0), 2, 7).double()
    lrpe.theta += 0.1 * torch.randn(lrpe.theta.shape, dtype=torch.float64, generator=seeded())
    q, k = torch.randn(2, 1, 9, 2, 7, dtype=torch.float64, generator=seeded(1))
    position = torch.randint(0, 20, (1, 9, 3), generator=seeded(2))

    def scores(q_position, k_position):
        q_angle, k_angle = (lrpe.angles(Layout(torch.ones(1, 9), p, ("a", "b", "c"))) for p in (q_position, k_position))
        turned = spread(q, q, q_angle, q.dtype)[0], spread(k, k, k_angle, k.dtype)[0]
        return torch.einsum("bihk,bjhk->bhij", *turned)

    first = scores(position, position)
    for axis in range(3):
        shift = torch.zeros(3, dtype=torch.long).index_fill(0, torch.tensor([axis]), 13)
        torch.testing.assert_close(scores(position + shift, position + shift), first, rtol=0, atol=1e-11)
        changed = float((scores(position + shift, position) - first).abs().max())
        assert (changed > 0.1) == (axis < axes)
    assert lrpe.theta.numel() == 2 * -(-7 // axes)


def test_rows_with_positions_of_their_own_are_told_apart_and_missing_axes_refused():
    mixer = built(LightNetConfig(num_heads=2, lrpe=LrpeConfig(num_axes=2)))
    x = torch.randn(1, 6, WIDTH, dtype=torch.float64, generator=seeded()).expand(2, -1, -1)
    grid = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(3), indexing="ij"), dim=-1).flatten(0, 1)
    layout = Layout(torch.ones(2, 6).int(), torch.stack([grid, grid * 2]), ("row", "column"), causal=False)
    y = mixer(x, layout)[0]
    assert float((y[0] - y[1]).detach().abs().max()) > 1e-3
    with pytest.raises(RecipeError, match="lrpe.num_axes is 2, but the data has 1 position axes"):
        mixer(x, Layout.plain(2, 6))


def decayed(x_ld, decay_h, causal):
    """Sums over s of decay^|t - s| x_s, the token itself twice where both directions are added."""
    place = torch.arange(len(x_ld))
    distance = place[:, None] - place
    decay_d = decay_h.repeat_interleave(x_ld.shape[1] // len(decay_h))
    factor = torch.where((distance >= 0) | (not causal), decay_d[:, None, None] ** distance.abs(), 0)
    return torch.einsum("dts,sd->td", factor, x_ld) + (0 if causal else x_ld)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "whole"])
@pytest.mark.parametrize("over", [[], ["row"], ["row", "column"]], ids=str)
def test_decaying_sums_along_the_tokens_or_the_axes_of_a_grid(over, causal):
    """Two pictures in one row, of 2 x 3 and 3 x 2 patches, and padding."""
    mixer = built(TpeConfig(num_heads=3, over=over))
    sizes, tokens = [(2, 3), (3, 2)], []
    for rows, columns in sizes:
        tokens += [(row, column) for row in range(rows) for column in range(columns)]
    document = torch.tensor([[1] * 6 + [2] * 6 + [0]]).int()
    layout = Layout(document, torch.tensor([[*tokens, (0, 0)]]), ("row", "column"), causal=causal)
    x = torch.randn(1, 13, WIDTH, dtype=torch.float64, generator=seeded(), requires_grad=True)
    y = mixer(x, layout)[0]
    wanted = torch.zeros_like(y)
    for axis, name in enumerate(over or [None]):
        decay_h, sums = mixer.decay[axis].sigmoid(), torch.zeros_like(y)
        for picture, (rows, columns) in enumerate(sizes):
            index = (torch.arange(6) + 6 * picture).view(rows, columns)
            lines = {None: [index.flatten()], "row": index.T.unbind(), "column": index.unbind()}[name]
            for line in lines:
                sums[0, line] = decayed(x[0, line], decay_h, causal)
        sums = sums * mixer.gain[axis]
        wanted = wanted + mixer.outs[axis](sums * torch.rsqrt(sums.square().mean(-1, keepdim=True) + 1e-5) * mixer.norms[axis].weight)
    torch.testing.assert_close(y[:, :12], wanted[:, :12], rtol=0, atol=1e-11)
    inputs = [x, *mixer.parameters()]
    for got, want in zip(*(torch.autograd.grad(part[:, :12].square().sum(), inputs, retain_graph=True) for part in (y, wanted))):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_an_axis_that_the_data_has_not_is_refused():
    with pytest.raises(RecipeError, match="tpe works over axis 'depth', but the data's axes are time"):
        built(TpeConfig(num_heads=3, over=["depth"]))(torch.zeros(1, 2, WIDTH, dtype=torch.float64), Layout.plain(1, 2, causal=False))
