"""One decoding step in plain PyTorch, for rows of different lengths.

Axes: b rows   d width   h heads   g key heads   k channels of a head   t tokens   v vocabulary rows
Sources: pre-norm decoder of LLaMA, arXiv:2302.13971; grouped heads arXiv:2305.13245; rotary positions arXiv:2104.09864;
query and key norm of Qwen3;
the recurrences as in their own folders, here for one token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.kernels.conv1d.reference import causal_conv1d_reference
from mmlm.kernels.decode.spec import AttentionPart, DecoderSpec, DeltaNetPart, ExpertsPart, FeedForwardPart, Mamba1Part, Mamba2Part, Part
from mmlm.kernels.delta_rule.fast import delta_rule
from mmlm.kernels.selective_scan.fast import selective_scan
from mmlm.kernels.ssd.fast import ssd

Rows = list[dict[str, Tensor]]  # of one layer: what its mixer keeps of each row; keys and values [g, t, k]
Weights = Callable[[str], Any]  # a weight by its name within a part, or None


def empty_states(spec: DecoderSpec, batch: int) -> list[Rows]:
    """What is kept of no token, [layer][row]."""
    parts = [layer.mixer for layer in spec.layers]
    return [[{name: torch.zeros(shape) for name, shape in part.states().items()} if part else {} for _ in range(batch)] for part in parts]


def decode_step(
    spec: DecoderSpec, weights: Mapping[str, Tensor], ids_b: Tensor, states: list[Rows], position_b: Tensor, x_bd: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits [b, v] and normed hidden states [b, d] of one more token a row; the states take it in.

    position_b: tokens of each row before it. x_bd: vectors to read instead of the embedding's rows.
    """
    if x_bd is None:
        x_bd = weights["embedding.weight"].float()[ids_b] * spec.embedding_scale
    if spec.positions:
        x_bd = x_bd + weights["positions.weight"].float()[position_b]
    for index, layer in enumerate(spec.layers):
        added_bd, seen_bd = torch.zeros_like(x_bd), x_bd
        for name, part in layer.parts():
            named = _named(weights, f"layers.{index}.{name}.")
            norm = named if named("norm.weight") is not None else _named(weights, f"layers.{index}.mixer.")
            n_bd = _norm(spec, norm, "norm", seen_bd)
            if isinstance(part, FeedForwardPart):
                y_bd = _feed_forward(part, named, n_bd)
            elif isinstance(part, ExpertsPart):
                y_bd = _experts(part, named, n_bd)
            else:
                y_bd = MIXERS[type(part)](part, named, n_bd, position_b, states[index])
            added_bd = added_bd + y_bd
            seen_bd = x_bd if layer.parallel else x_bd + added_bd
        x_bd = x_bd + added_bd
    h_bd = _norm(spec, _named(weights, ""), "norm", x_bd)
    head = weights["embedding.weight" if spec.tied else "head.weight"].float()
    return F.linear(h_bd, head, _named(weights, "")("head.bias")) * spec.logit_scale, h_bd


def _named(weights: Mapping[str, Tensor], prefix: str) -> Weights:
    return lambda name: weights[prefix + name].float() if prefix + name in weights else None


def _linear(weights: Weights, name: str, x_bd: Tensor) -> Tensor:
    return F.linear(x_bd, weights(name + ".weight"), weights(name + ".bias"))


def _norm(spec: DecoderSpec, weights: Weights, name: str, x_bd: Tensor) -> Tensor:
    weight, width = weights(name + ".weight"), (spec.width,)
    if spec.norm == "rms":
        return F.rms_norm(x_bd, width, weight, spec.norm_eps)
    return F.layer_norm(x_bd, width, weight, weights(name + ".bias"), spec.norm_eps)


def _feed_forward(part: FeedForwardPart, weights: Weights, n_bd: Tensor) -> Tensor:
    acts: dict[str, Callable[[Tensor], Tensor]] = {
        "silu": F.silu,
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "relu": F.relu,
        "relu_squared": lambda x: F.relu(x).square(),
    }
    act = acts[part.activation]
    h = _linear(weights, "up", n_bd)
    if part.gated:
        gate, up = h.chunk(2, dim=-1)
        return _linear(weights, "down", act(gate) * up)
    return _linear(weights, "down", act(h))


def _experts(part: ExpertsPart, weights: Weights, n_bd: Tensor) -> Tensor:
    """Each row through its best experts, weighted by the router, and through the shared ones."""
    expert = FeedForwardPart(hidden=part.hidden)
    weight_bk, chosen_bk = F.linear(n_bd, weights("router.weight")).softmax(-1).topk(part.top_k, dim=-1)
    if part.renormalize:
        weight_bk = weight_bk / weight_bk.sum(-1, keepdim=True)
    y_bd = torch.zeros_like(n_bd)
    for name in [f"shared.{index}" for index in range(part.num_shared)]:
        y_bd = y_bd + _feed_forward(expert, _within(weights, name), n_bd)
    for row, (shares, choices) in enumerate(zip(weight_bk, chosen_bk.tolist())):
        for share, choice in zip(shares, choices):
            y_bd[row] += share * _feed_forward(expert, _within(weights, f"experts.{choice}"), n_bd[row])
    return y_bd


def _within(weights: Weights, prefix: str) -> Weights:
    return lambda name: weights(f"{prefix}.{name}")


def _turn(part: AttentionPart, x_bhk: Tensor, position_b: Tensor) -> Tensor:
    """Channel j turns with channel j + pairs by position * rope_j."""
    if part.rope is None:
        return x_bhk
    angle = position_b.float()[:, None, None] * part.rope.float()
    cos, sin, n = angle.cos() * part.rope_scale, angle.sin() * part.rope_scale, len(part.rope)
    left, right, rest = x_bhk[..., :n], x_bhk[..., n : 2 * n], x_bhk[..., 2 * n :]
    return torch.cat([left * cos - right * sin, right * cos + left * sin, rest], dim=-1)


def _attention(part: AttentionPart, weights: Weights, n_bd: Tensor, position_b: Tensor, rows: Rows) -> Tensor:
    """softmax(scale q K^T) V of each row over its own tokens, the new one included."""
    k = part.head_size
    q, key, value, gate = _linear(weights, "qkv", n_bd).split(part.sizes, dim=-1)
    q, key, value = (x.unflatten(-1, (-1, k)) for x in (q, key, value))
    if part.qk_norm:
        q = F.rms_norm(q, (k,), weights("q_norm.weight"), part.qk_norm_eps)
        key = F.rms_norm(key, (k,), weights("k_norm.weight"), part.qk_norm_eps)
    q, key = _turn(part, q, position_b), _turn(part, key, position_b)
    found = []
    for row, held in enumerate(rows):
        held["key"] = torch.cat([held["key"], key[row, :, None]], dim=1)
        held["value"] = torch.cat([held["value"], value[row, :, None]], dim=1)
        seen_k, seen_v = (held[name][:, -part.window :] if part.window else held[name] for name in ("key", "value"))
        q_gmk = q[row].unflatten(0, (part.num_kv_heads, -1))  # m: the query heads that share a key head
        p_gmt = (q_gmk @ seen_k.transpose(1, 2) * part.score_scale).double().softmax(dim=-1)
        found.append((p_gmt @ seen_v.double()).to(value.dtype).flatten())  # sums of float32 err more than what is tested
    y_bd = torch.stack(found)
    return _linear(weights, "out", y_bd * gate.sigmoid() if part.gated else y_bd)


def _convolved(weights: Weights, x_bc: Tensor, rows: Rows) -> Tensor:
    """silu of the causal convolution; the tails take the input in."""
    tail = torch.stack([held["conv"] for held in rows])
    y, tail = causal_conv1d_reference(x_bc[:, None], weights("conv.weight"), weights("conv.bias"), _one_token(rows), tail)
    for held, new in zip(rows, tail):
        held["conv"] = new
    return y[:, 0]


def _one_token(rows: Rows) -> Tensor:
    return torch.ones(len(rows), 1, dtype=torch.int32)


def _recur(scan: Callable[..., tuple[Tensor, Tensor]], arguments: tuple[Any, ...], rows: Rows, **more: Any) -> Tensor:
    """One step of a scan whose last two arguments are documents and states, by its reference; the states take it in."""
    y, new = scan(*arguments, _one_token(rows), torch.stack([held["state"] for held in rows]), backend="reference", **more)
    for held, state in zip(rows, new):
        held["state"] = state
    return y[:, 0]


def _mamba1(part: Mamba1Part, weights: Weights, n_bd: Tensor, position_b: Tensor, rows: Rows) -> Tensor:
    x, gate = _linear(weights, "input", n_bd).chunk(2, dim=-1)
    x = _convolved(weights, x, rows)
    low, key, query = _linear(weights, "select", x).split([part.step_rank, part.state_size, part.state_size], dim=-1)
    step = _linear(weights, "step", low)
    x, step, key, query, gate = (each[:, None] for each in (x, step, key, query, gate))
    inputs = (x, step, weights("step_bias"), weights("decay"), key, query, weights("skip"), gate)
    return _linear(weights, "out", _recur(selective_scan, inputs, rows, negative=part.negative_eigenvalues))


def _mamba2(part: Mamba2Part, weights: Weights, n_bd: Tensor, position_b: Tensor, rows: Rows) -> Tensor:
    z, xbc, step = _linear(weights, "input", n_bd).split(part.sizes, dim=-1)
    shared = part.num_groups * part.state_size
    x, key, query = _convolved(weights, xbc, rows).split([part.sizes[0], shared, shared], dim=-1)
    step = F.softplus(step + weights("step_bias")).clamp(*part.step_limit)
    x = x.unflatten(-1, (part.num_heads, -1))
    key, query = (both.unflatten(-1, (part.num_groups, -1))[:, None] for both in (key, query))
    y = _recur(ssd, (x[:, None], step[:, None], weights("decay"), key, query), rows)
    skip: Any = weights("skip")
    y = (y + skip[:, None] * x).flatten(1) * F.silu(z)
    groups = y.unflatten(-1, (part.norm_groups, -1))
    y = (groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + part.norm_eps)).flatten(1) * weights("inner_norm.weight")
    return _linear(weights, "out", y)


def _delta(part: DeltaNetPart, weights: Weights, n_bd: Tensor, position_b: Tensor, rows: Rows) -> Tensor:
    qkv, gate, beta, step = _linear(weights, "input", n_bd).split(part.sizes, dim=-1)
    query, key, value = _convolved(weights, qkv, rows).split(part.convolved, dim=-1)
    query = _unit(query.unflatten(-1, (part.num_key_heads, -1))) * part.key_size**-0.5
    key_bmgk = _unit(key.unflatten(-1, (part.micro_steps, part.num_key_heads, -1)))
    value_bmhv = value.unflatten(-1, (part.micro_steps, part.num_heads, -1))
    beta_bmh = beta.sigmoid().unflatten(-1, (part.micro_steps, -1)) * (2 if part.negative_eigenvalues else 1)
    y = value_bmhv[:, 0]
    for m in range(part.micro_steps):
        decay = weights("decay") * F.softplus(step + weights("step_bias")) if part.gated and m == 0 else None
        inputs = (query, key_bmgk[:, m], value_bmhv[:, m], beta_bmh[:, m], decay)
        y = _recur(delta_rule, tuple(x if x is None else x[:, None] for x in inputs), rows)
    if part.output_norm:
        y = F.rms_norm(y, (part.value_size,), weights("inner_norm.weight"), part.norm_eps)
    if part.output_gate:
        y = y * (F.silu if part.output_gate == "silu" else torch.sigmoid)(gate).view_as(y)
    return _linear(weights, "out", y.flatten(1))


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


MIXERS: dict[type[Part], Callable[..., Tensor]] = {
    AttentionPart: _attention,
    Mamba1Part: _mamba1,
    Mamba2Part: _mamba2,
    DeltaNetPart: _delta,
}
