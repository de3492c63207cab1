"""One decoding step in plain PyTorch, for rows of different lengths.

Axes: b rows   d width   h query heads   g key heads   k channels of a head   t tokens   v vocabulary rows
Sources: pre-norm decoder arXiv:2302.13971; grouped heads arXiv:2305.13245; rotary positions arXiv:2104.09864; query and key norm of Qwen3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.kernels.decode.spec import DecoderSpec

Caches = list[list[tuple[Tensor, Tensor]]]  # [layer][row]: keys and values [g, t, k]


def empty_caches(spec: DecoderSpec, batch: int) -> Caches:
    """Keys and values of no token."""
    none = torch.zeros(spec.num_kv_heads, 0, spec.head_size)
    return [[(none, none) for _ in range(batch)] for _ in range(spec.num_layers)]


def decode_step(
    spec: DecoderSpec, weights: Mapping[str, Tensor], ids_b: Tensor, caches: Caches, x_bd: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits [b, v] and normed hidden states [b, d] of one more token a row; the caches take it in.

    x_bd: vectors to read instead of the embedding's rows. Position of a token = tokens of its row before it.
    """
    position_b = torch.tensor([keys.shape[1] for keys, _ in caches[0]])
    if x_bd is None:
        x_bd = weights["embedding.weight"].float()[ids_b] * spec.embedding_scale
    if spec.positions:
        x_bd = x_bd + weights["positions.weight"].float()[position_b]
    for index in range(spec.num_layers):
        name = f"layers.{index}."
        n_bd = _norm(spec, weights, name + "norm1", x_bd)
        attended_bd = _attend(spec, weights, index, n_bd, position_b, caches[index])
        if spec.parallel:
            second_bd = _norm(spec, weights, name + "norm2", x_bd) if name + "norm2.weight" in weights else n_bd
            x_bd = x_bd + attended_bd + _feed_forward(spec, weights, name, second_bd)
        else:
            x_bd = x_bd + attended_bd
            x_bd = x_bd + _feed_forward(spec, weights, name, _norm(spec, weights, name + "norm2", x_bd))
    h_bd = _norm(spec, weights, "norm", x_bd)
    head = weights["embedding.weight" if spec.tied else "head.weight"].float()
    return F.linear(h_bd, head, _float(weights, "head.bias")) * spec.logit_scale, h_bd


def _float(weights: Mapping[str, Tensor], name: str) -> Tensor | None:
    return weights[name].float() if name in weights else None


def _linear(weights: Mapping[str, Tensor], name: str, x_bd: Tensor) -> Tensor:
    return F.linear(x_bd, weights[name + ".weight"].float(), _float(weights, name + ".bias"))


def _norm(spec: DecoderSpec, weights: Mapping[str, Tensor], name: str, x_bd: Tensor) -> Tensor:
    weight = weights[name + ".weight"].float()
    if spec.norm == "rms":
        return F.rms_norm(x_bd, weight.shape, weight, spec.norm_eps)
    return F.layer_norm(x_bd, weight.shape, weight, _float(weights, name + ".bias"), spec.norm_eps)


def _feed_forward(spec: DecoderSpec, weights: Mapping[str, Tensor], name: str, n_bd: Tensor) -> Tensor:
    acts: dict[str, Callable[[Tensor], Tensor]] = {
        "silu": F.silu,
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "relu": F.relu,
        "relu_squared": lambda x: F.relu(x).square(),
    }
    act = acts[spec.activation]
    h = _linear(weights, name + "up", n_bd)
    if spec.gated:
        gate, up = h.chunk(2, dim=-1)
        return _linear(weights, name + "down", act(gate) * up)
    return _linear(weights, name + "down", act(h))


def _turn(spec: DecoderSpec, x_bhk: Tensor, position_b: Tensor) -> Tensor:
    """Channel j turns with channel j + pairs by position * rope_j."""
    if spec.rope is None:
        return x_bhk
    angle = position_b.float()[:, None, None] * spec.rope.float()
    cos, sin, n = angle.cos() * spec.rope_scale, angle.sin() * spec.rope_scale, len(spec.rope)
    left, right, rest = x_bhk[..., :n], x_bhk[..., n : 2 * n], x_bhk[..., 2 * n :]
    return torch.cat([left * cos - right * sin, right * cos + left * sin, rest], dim=-1)


def _attend(
    spec: DecoderSpec, weights: Mapping[str, Tensor], index: int, n_bd: Tensor, position_b: Tensor, caches: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """softmax(scale q K^T) V of each row over its own tokens, the new one included."""
    name, k = f"layers.{index}.", spec.head_size
    sizes = [spec.num_heads * k, spec.num_kv_heads * k, spec.num_kv_heads * k]
    q, key, value = (part.unflatten(-1, (-1, k)) for part in _linear(weights, name + "qkv", n_bd).split(sizes, dim=-1))
    if spec.qk_norm:
        q = F.rms_norm(q, (k,), weights[name + "q_norm.weight"].float(), spec.qk_norm_eps)
        key = F.rms_norm(key, (k,), weights[name + "k_norm.weight"].float(), spec.qk_norm_eps)
    q, key = _turn(spec, q, position_b), _turn(spec, key, position_b)
    window, rows = spec.windows[index], []
    for row, (keys, values) in enumerate(caches):
        keys, values = torch.cat([keys, key[row, :, None]], dim=1), torch.cat([values, value[row, :, None]], dim=1)
        caches[row] = keys, values
        seen_k, seen_v = (keys[:, -window:], values[:, -window:]) if window else (keys, values)
        q_gmk = q[row].unflatten(0, (spec.num_kv_heads, -1))  # m: the query heads that share a key head
        p_gmt = (q_gmk @ seen_k.transpose(1, 2) * spec.score_scale).softmax(dim=-1)
        rows.append((p_gmt @ seen_v).flatten())
    return _linear(weights, name + "out", torch.stack(rows))
