"""Attention behind a shared prefix: equal to attention over the prefix repeated for every row, by either form."""

from __future__ import annotations

import pytest
import torch

from mmlm.kernels.attention import behind


@pytest.mark.parametrize("by_hand", [False, True], ids=["fused", "written out"])
@pytest.mark.parametrize("heads, kv_heads", [(3, 3), (4, 2), (5, 1)])
@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_as_if_every_row_had_its_own_prefix(heads, kv_heads, dtype, atol, by_hand, monkeypatch):
    draw = torch.Generator().manual_seed(0)

    def random(*sizes):
        return torch.randn(sizes, generator=draw, dtype=torch.float64).to(dtype)

    q, above_k, above_v = random(4, heads, 3, 8), random(1, kv_heads, 9, 8), random(1, kv_heads, 9, 8)
    own_k, own_v = random(4, kv_heads, 5, 8), random(4, kv_heads, 5, 8)
    visible = torch.rand(4, 3, 5, generator=draw) < 0.5
    visible[0], visible[1, 2] = True, False
    if by_hand:
        monkeypatch.setattr(behind, "_fused", lambda q: False)
    found = behind.behind_trunk(q, above_k, above_v, own_k, own_v, visible, 0.3)
    k, v = (torch.cat([a.expand(4, -1, -1, -1), b], 2).double() for a, b in ((above_k, own_k), (above_v, own_v)))
    mask = torch.cat([torch.ones(4, 3, 9, dtype=torch.bool), visible], -1)[:, None]
    wanted = torch.nn.functional.scaled_dot_product_attention(q.double(), k, v, attn_mask=mask, scale=0.3, enable_gqa=True)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=atol)
