"""Attention through packed and gridded layouts is attention under the dense definition."""

import pytest
import torch
import torch.nn.functional as F

from mmlm.backbone.attention import Attention
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
