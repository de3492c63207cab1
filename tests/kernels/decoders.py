"""Decoders of every kind, their weights, and the plain step beside the one-call decoder."""

from __future__ import annotations

import dataclasses

import torch

from mmlm.kernels.decode.reference import decode_step, empty_states
from mmlm.kernels.decode.spec import (
    AttentionPart,
    DecoderSpec,
    DeltaNetPart,
    ExpertsPart,
    FeedForwardPart,
    LayerSpec,
    Mamba1Part,
    Mamba2Part,
)


def rope(pairs, base=10_000.0):
    return base ** (-torch.arange(pairs) / pairs)


def decoder_of(*mixers, feed=None, parallel=False, **more):
    """A decoder with these mixers, each with the same feed-forward behind it."""
    layers = tuple(LayerSpec(mixer=mixer, feed_forward=feed, parallel=parallel) for mixer in mixers)
    return DecoderSpec(**{"vocabulary": 97, "width": 72, "layers": layers, **more})


def llama(mixer=None, feed=None, **more):
    """Two layers of attention and SwiGLU with some parts changed."""
    attention = AttentionPart(**{"num_heads": 6, "num_kv_heads": 2, "head_size": 24, "rope": rope(12), **(mixer or {})})
    return decoder_of(attention, attention, feed=FeedForwardPart(**{"hidden": 100, **(feed or {})}), **more)


def gpt2(feed=None, **more):
    inner = {"hidden": 150, "gated": False, "activation": "gelu_tanh", **(feed or {})}
    return llama({"num_kv_heads": 6, "rope": None}, inner, **{"positions": 80, "norm": "layer", "tied": True, **more})


LLAMA = llama()
ATTENTION, SWIGLU = LLAMA.layers[0].mixer, LLAMA.layers[0].feed_forward
MAMBA1 = Mamba1Part(inner=88, state_size=5, step_rank=6, conv_size=4)
MAMBA2 = Mamba2Part(num_heads=6, head_size=20, state_size=9, num_groups=2)
DELTA = DeltaNetPart(num_heads=4, num_key_heads=2, key_size=11, value_size=18)
EXPERTS = ExpertsPart(num_experts=5, top_k=2, hidden=30, num_shared=1)
GATED_DELTA = dataclasses.replace(DELTA, gated=True)
SPECS = {
    "llama": (LLAMA, False),
    "llama_biases": (LLAMA, True),
    "tied": (llama(tied=True, embedding_scale=3.0, logit_scale=0.5), False),
    "one_key_head_qk_norm": (llama({"num_kv_heads": 1, "qk_norm": True, "qk_norm_eps": 1e-3}), False),
    "many_query_heads": (llama({"num_heads": 22, "num_kv_heads": 2, "head_size": 8, "rope": rope(4)}), True),
    "odd_head": (llama({"num_heads": 3, "num_kv_heads": 3, "head_size": 7, "rope": rope(2), "rope_scale": 1.3}), False),
    "wide_head": (llama({"num_heads": 2, "num_kv_heads": 1, "head_size": 144, "rope": rope(40)}, vocabulary=33), False),
    "gated_attention": (llama({"gated": True}), True),
    "gpt2": (gpt2(), True),
    "gelu": (gpt2({"activation": "gelu"}, tied=False), False),
    "relu": (gpt2({"activation": "relu"}), True),
    "relu_squared": (llama(feed={"gated": False, "activation": "relu_squared"}), False),
    "parallel": (llama(parallel=True, norm="layer"), False),
    "parallel_two_norms": (llama(parallel=True), True),
    "window": (llama({"window": 5, "scale": 0.3}), False),
    "layers_that_differ": (
        decoder_of(
            ATTENTION,
            dataclasses.replace(ATTENTION, window=18, num_kv_heads=3, head_size=16, rope=rope(5, 100.0)),
            dataclasses.replace(ATTENTION, rope=None),
            feed=SWIGLU,
        ),
        False,
    ),
    "experts": (decoder_of(ATTENTION, MAMBA2, feed=EXPERTS), True),
    "experts_parallel": (decoder_of(ATTENTION, ATTENTION, feed=dataclasses.replace(EXPERTS, renormalize=False), parallel=True), False),
    "mamba1": (decoder_of(MAMBA1, MAMBA1), True),
    "mamba1_negative": (decoder_of(dataclasses.replace(MAMBA1, negative_eigenvalues=True, conv_size=1), feed=SWIGLU), False),
    "mamba2": (decoder_of(MAMBA2, MAMBA2), True),
    "mamba2_wide_heads": (
        decoder_of(Mamba2Part(num_heads=2, head_size=80, state_size=16, norm_groups=2, conv_size=2, step_limit=(0.3, 0.9)), feed=SWIGLU),
        False,
    ),
    "mamba2_parallel": (decoder_of(MAMBA2, MAMBA2, feed=SWIGLU, parallel=True, norm="layer"), False),
    "deltanet": (decoder_of(DELTA, DELTA), True),
    "gated_deltanet": (decoder_of(GATED_DELTA, GATED_DELTA, feed=SWIGLU), False),
    "deltanet_wide_values": (
        decoder_of(
            DeltaNetPart(num_heads=2, num_key_heads=1, key_size=16, value_size=70, output_norm=False, output_gate="sigmoid", conv_size=2),
            DeltaNetPart(num_heads=3, num_key_heads=3, key_size=5, value_size=16, output_gate=None, negative_eigenvalues=True),
        ),
        False,
    ),
    "delta_product": (decoder_of(dataclasses.replace(GATED_DELTA, micro_steps=3, negative_eigenvalues=True)), False),
    "hybrid": (
        DecoderSpec(
            vocabulary=97,
            width=72,
            layers=(
                LayerSpec(mixer=MAMBA2),
                LayerSpec(mixer=ATTENTION),
                LayerSpec(feed_forward=SWIGLU),
                LayerSpec(mixer=GATED_DELTA, feed_forward=SWIGLU, parallel=True),
                LayerSpec(mixer=MAMBA1),
                LayerSpec(feed_forward=dataclasses.replace(SWIGLU, hidden=40)),
            ),
        ),
        True,
    ),
    "smallest": (
        decoder_of(AttentionPart(num_heads=1, num_kv_heads=1, head_size=1), feed=FeedForwardPart(hidden=1), vocabulary=1, width=1),
        False,
    ),
    "smallest_recurrent": (
        decoder_of(
            Mamba1Part(inner=1, state_size=1, step_rank=1, conv_size=1),
            Mamba2Part(num_heads=1, head_size=1, state_size=1, conv_size=1),
            DeltaNetPart(num_heads=1, num_key_heads=1, key_size=1, value_size=1, conv_size=1),
            vocabulary=1,
            width=1,
        ),
        False,
    ),
}
HYBRID = SPECS["hybrid"][0]


def random_weights(spec, *, biases=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in (spec.shapes() | (spec.optional() if biases else {})).items():
        draw = torch.randn(shape, generator=generator)
        if name.endswith("norm.weight"):
            draw = 1 + 0.1 * draw
        elif name.endswith("decay"):
            draw = -draw.exp()
        elif len(shape) == 2 and name not in ("embedding.weight", "positions.weight"):
            draw = draw * shape[1] ** -0.5
        weights[name] = draw * 0.5 if name.endswith("bias") else draw
    return weights


def relative(got, want):
    return float((got - want).norm() / want.norm())


class Reference:
    """The plain step with the states of several sequences."""

    def __init__(self, spec, weights, batch):
        self.spec, self.weights, self.lengths = spec, weights, [0] * batch
        self.states = empty_states(spec, batch)

    def step(self, ids_b):
        return self.logits_and_hidden(ids_b)[0]

    def logits_and_hidden(self, ids_b):
        found = decode_step(self.spec, self.weights, ids_b, self.states, torch.tensor(self.lengths))
        self.lengths = [length + 1 for length in self.lengths]
        return found

    def feed(self, ids_bt, lengths):
        """One sequence at a time; logits after the last token of each."""
        rows = []
        for row, (ids, length) in enumerate(zip(ids_bt, lengths)):
            logits, own = torch.zeros(1, self.spec.vocabulary), [[layer[row]] for layer in self.states]
            for token in ids[:length]:
                logits, _ = decode_step(self.spec, self.weights, token[None], own, torch.tensor([self.lengths[row]]))
                self.lengths[row] += 1
            rows.append(logits[0])
        return torch.stack(rows)

    def select(self, index):
        self.states = [[dict(layer[i]) for i in index] for layer in self.states]
        self.lengths = [self.lengths[i] for i in index]

    def stacked(self):
        """The states as `Decoder.load` takes them."""
        longest = max(1, *self.lengths)
        return [
            {name: torch.stack([pad(row[name], longest) if name in ("key", "value") else row[name] for row in layer]) for name in layer[0]}
            for layer in self.states
        ]


def pad(x_gtk, tokens):
    return torch.nn.functional.pad(x_gtk, (0, 0, 0, tokens - x_gtk.shape[1]))


def differ(decoder, reference):
    """The largest relative error of a state."""
    pairs = [
        (got[name], want[name])
        for got, want in zip(decoder.states(), reference.stacked())
        for name in want
        if want[name].numel() and want[name].norm() > 0
    ]
    return max(relative(got, want) for got, want in pairs)
