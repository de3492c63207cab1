"""Attention through packed and gridded layouts is attention under the dense definition."""

import pytest
import torch
import torch.nn.functional as F

from mmlm.backbone.attention import Attention, alibi_slopes
from mmlm.backbone.config import AttentionConfig, RopeConfig
from mmlm.layout import Layout


def dense(attention: Attention, x_btd: torch.Tensor, layout: Layout) -> torch.Tensor:
    q, k, v = (part.transpose(1, 2) for part in attention._project(x_btd, *attention._angles(layout)))
    causal = layout.causal if attention.config.causal is None else attention.config.causal
    see = layout.dense(causal=causal, window=attention.config.window, over=attention.config.over)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=see[:, None], enable_gqa=True)
    return attention.out(torch.nan_to_num(y.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("extra", ["plain", "mutual", "branch", "allowed"])
@pytest.mark.parametrize(("over", "causal", "window"), [(None, True, None), (None, True, 3), (None, False, None), ("row", True, None),
                                                        ("row", False, None), ("column", False, None)])  # fmt: skip
def test_packed_attention_equals_its_definition_with_gradients(over, causal, window, extra):
    g = torch.Generator().manual_seed(1)
    b, t = 2, 12
    document = torch.tensor([[1] * 6 + [2] * 4 + [0] * 2, [1] * 3 + [2] * 9]).int()
    layout = Layout(document, torch.randint(0, 3, (b, t, 2), generator=g), ("row", "column"), causal=causal)
    if extra in ("mutual", "branch"):
        setattr(layout, extra, torch.randint(0, 3, (b, t), generator=g))
    if extra == "allowed":
        layout.allowed = (torch.rand(b, t, t, generator=g) > 0.3) | torch.eye(t, dtype=torch.bool)
    rope = None if over else RopeConfig()
    attention = Attention(AttentionConfig(num_heads=2, num_kv_heads=1, over=over, window=window, rope=rope), 16).double()
    x = torch.randn(b, t, 16, dtype=torch.float64, generator=g, requires_grad=True)
    y, want = attention(x, layout)[0], dense(attention, x, layout)
    real = document > 0
    torch.testing.assert_close(y[real], want[real], rtol=0, atol=1e-12)
    weight = torch.randn(y.shape, dtype=torch.float64, generator=g) * real[..., None]
    got, expected = (torch.autograd.grad((out * weight).sum(), x)[0] for out in (y, want))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


OPTIONS = {
    "gate": {"gate": True},
    "soft cap": {"soft_cap": 0.5},
    "scale": {"score_scale": 2.0},
    "alibi": {"alibi": True, "rope": None},
    "alibi, window": {"alibi": True, "window": 3},
    "sinks": {"window": 3, "sinks": 2},
    "all": {"gate": True, "soft_cap": 0.8, "alibi": True, "window": 4, "sinks": 1, "score_scale": 0.3, "qk_norm": True},
}


def by_loop(attention: Attention, x_btd: torch.Tensor, document: torch.Tensor) -> torch.Tensor:
    """One query after the other, from the equations."""
    config = attention.config
    layout = Layout(document, torch.cat([torch.arange(n) for n in torch.bincount(document[0])[1:].tolist()])[None, :, None])
    q, k, v = attention._project(x_btd, *attention._angles(layout))
    shared, scale = attention.num_heads // attention.num_kv_heads, config.score_scale or attention.head_size**-0.5
    y = torch.zeros_like(q)
    for head in range(attention.num_heads):
        slope = 2 ** (-8 * (head + 1) / attention.num_heads) if config.alibi else 0.0
        for at in range(x_btd.shape[1]):
            first = int((document[0] == document[0, at]).nonzero()[0])
            keys = [j for j in range(first, at + 1) if config.window is None or at - j < config.window or j - first < config.sinks]
            scores = torch.stack([(q[0, at, head] * k[0, j, head // shared]).sum() * scale for j in keys])
            if config.soft_cap:
                scores = config.soft_cap * torch.tanh(scores / config.soft_cap)
            scores = scores - slope * torch.tensor([float(at - j) for j in keys], dtype=scores.dtype)
            y[0, at, head] = (scores.softmax(-1)[:, None] * v[0, keys, head // shared]).sum(0)
    y = y.flatten(2)
    return attention.out(y * torch.sigmoid(attention.gate(x_btd)) if config.gate else y)


@pytest.mark.parametrize("name", OPTIONS)
def test_options_equal_their_equations_packed_and_through_a_cache(name):
    torch.manual_seed(0)
    attention = Attention(AttentionConfig(**{"num_heads": 4, "num_kv_heads": 2, **OPTIONS[name]}), 16).double()
    document = torch.tensor([[1] * 7 + [2] * 5]).int()
    x = torch.randn(1, 12, 16, dtype=torch.float64)
    position = torch.cat([torch.arange(7), torch.arange(5)])[None, :, None]
    want = by_loop(attention, x, document)
    torch.testing.assert_close(attention(x, Layout(document, position))[0], want, rtol=0, atol=1e-10)
    state, parts = attention.init_state(1, 0, torch.float64, "cpu"), []
    for part, start in ((x[:, :3], 0), (x[:, 3:4], 3), (x[:, 4:7], 4)):
        parts.append(attention(part, Layout.plain(1, part.shape[1], start=start), state)[0])
    torch.testing.assert_close(torch.cat(parts, dim=1), want[:, :7], rtol=0, atol=1e-10)


def test_slopes_of_other_numbers_of_heads_are_those_of_the_paper():
    torch.testing.assert_close(alibi_slopes(8), torch.tensor([2.0**-n for n in range(1, 9)]))
    torch.testing.assert_close(alibi_slopes(6), torch.tensor([2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]))


def test_sinks_without_a_larger_window_are_refused():
    for given in ({"sinks": 2}, {"sinks": 3, "window": 3}):
        with pytest.raises(ValueError, match="need a window that is larger"):
            AttentionConfig(**given)
