"""The one-call decoder gives what the plain PyTorch step and transformers give, and refuses what it was not made for."""

from __future__ import annotations

import dataclasses
import functools
import os

import pytest
import torch

from mmlm.base.errors import DataError, NumericsError
from mmlm.kernels.decode import fast
from mmlm.kernels.decode.fast import PRECISIONS, TOLERANCE, Decoder
from mmlm.kernels.decode.reference import decode_step
from mmlm.kernels.decode.spec import AttentionPart, DeltaNetPart, FeedForwardPart, Mamba1Part, Mamba2Part, Unsupported
from tests.kernels.decoders import (
    ATTENTION,
    DELTA,
    EXPERTS,
    GATED_DELTA,
    HYBRID,
    LLAMA,
    MAMBA1,
    MAMBA2,
    SPECS,
    SWIGLU,
    Reference,
    decoder_of,
    differ,
    llama,
    random_weights,
    relative,
    rope,
)


@functools.cache
def by_reference(name):
    """A decoder, prompts of four sequences and three more tokens, and what the reference makes of them."""
    spec, biases = SPECS[name]
    weights, generator, lengths = random_weights(spec, biases=biases), torch.Generator().manual_seed(1), [13, 1, 22, 5]
    ids_bt = torch.randint(0, spec.vocabulary, (4, 22), generator=generator)
    steps, reference = torch.randint(0, spec.vocabulary, (3, 4), generator=generator), Reference(spec, weights, 4)
    wanted = [reference.feed(ids_bt, lengths), *(reference.step(ids_b) for ids_b in steps)]
    return spec, weights, (ids_bt, lengths), steps, wanted, reference


@pytest.mark.parametrize(
    ("name", "precision"), [(name, p) for i, name in enumerate(SPECS) for p in (PRECISIONS[0], PRECISIONS[1:][i % len(PRECISIONS[1:])])]
)
def test_every_kind_of_decoder_equals_the_reference(name, precision):
    spec, weights, (ids_bt, lengths), steps, wanted, reference = by_reference(name)
    decoder = Decoder(spec, weights, precision, threads=1, max_length=16, batch=4)
    found = [decoder.extend(ids_bt, lengths).clone(), *(decoder.step(ids_b).clone() for ids_b in steps)]
    assert decoder.lengths == [length + 3 for length in lengths]
    pairs = list(zip(found, wanted, strict=True))
    for got, want in pairs:
        assert got.shape == want.shape == (4, spec.vocabulary)
        assert relative(got, want) < TOLERANCE[precision]
    assert differ(decoder, reference) < TOLERANCE[precision]
    if precision == "fp32":
        assert max(float((got - want).abs().max()) for got, want in pairs) < 1e-4


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", SPECS)
def test_a_twin_reads_the_same_weights_with_a_cache_of_its_own_and_outlives_the_first(name, precision):
    spec, weights, (ids_bt, lengths), steps, *_ = by_reference(name)
    first, alone = (Decoder(spec, weights, precision, threads=1, batch=4) for _ in range(2))
    first.extend(ids_bt.flip(1), lengths)
    twin = first.twin(batch=4)
    given = [twin.extend(ids_bt, lengths).clone(), twin.step(steps[0]).clone()]
    first.step(steps[1])
    del first
    given.append(twin.step(steps[1]).clone())
    wanted = [alone.extend(ids_bt, lengths).clone(), *(alone.step(ids_b).clone() for ids_b in steps[:2])]
    assert all(torch.equal(got, want) for got, want in zip(given, wanted, strict=True)) and twin.lengths == alone.lengths


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 33, 130])
def test_any_batch_size_equals_the_reference(batch, precision):
    weights, ids = random_weights(LLAMA), torch.randint(0, 97, (2, batch), generator=torch.Generator().manual_seed(batch))
    decoder, reference = Decoder(LLAMA, weights, precision, threads=1, batch=batch), Reference(LLAMA, weights, batch)
    for ids_b in ids:
        assert relative(decoder.step(ids_b), reference.step(ids_b)) < TOLERANCE[precision]


def test_a_pass_that_ends_within_a_sequence_keeps_its_tokens():
    weights, ids_bt = random_weights(LLAMA), torch.randint(0, 97, (128, 2), generator=torch.Generator().manual_seed(8))
    decoder, reference = Decoder(LLAMA, weights, "fp32", threads=1, batch=128), Reference(LLAMA, weights, 1)
    for ids_b in (*ids_bt[127], ids_bt[0, 0]):
        want = reference.step(ids_b[None])
    decoder.extend(ids_bt, [1] * 127 + [2])  # 128 rows go together: the last one is the first of two tokens
    assert relative(decoder.step(ids_bt[0, :1].expand(128))[127:], want) < 1e-5


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("spec", [LLAMA, HYBRID], ids=["llama", "hybrid"])
def test_a_long_prompt_at_once_equals_it_token_by_token_and_the_room_grows(spec, precision):
    weights, ids_bt = random_weights(spec), torch.randint(0, 97, (3, 150), generator=torch.Generator().manual_seed(2))
    whole, single = (Decoder(spec, weights, precision, threads=1, max_length=2, batch=3) for _ in range(2))
    at_once = whole.extend(ids_bt, [150, 3, 77]).clone()
    assert whole.room >= 150 and single.room == 16
    seen = torch.zeros(3, 97)
    for i in range(150):
        counts = [1, int(i < 3), int(i < 77)]
        logits = single.extend(ids_bt[:, i : i + 1], counts)
        seen = torch.where(torch.tensor(counts)[:, None] > 0, logits, seen)
    assert single.room == 256 and single.lengths == whole.lengths == [150, 3, 77]
    assert relative(at_once, seen) < (1e-5 if precision == "fp32" else 5e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("spec", [LLAMA, llama({"window": 6}), HYBRID], ids=["llama", "window", "hybrid"])
def test_states_computed_elsewhere_are_continued(spec, precision):
    weights, generator, lengths = random_weights(spec), torch.Generator().manual_seed(3), [9, 0, 21]
    reference, decoder = Reference(spec, weights, 3), Decoder(spec, weights, precision, threads=1, max_length=4)
    reference.feed(torch.randint(0, 97, (3, 21), generator=generator), lengths)
    decoder.step(torch.tensor([5]))
    decoder.load(reference.stacked(), lengths)
    assert decoder.batch == 3 and decoder.lengths == lengths
    for _ in range(2):
        ids_b = torch.randint(0, 97, (3,), generator=generator)
        assert relative(decoder.step(ids_b), reference.step(ids_b)) < TOLERANCE[precision]
    other = Decoder(spec, weights, precision, threads=1)
    other.load(decoder.states(), decoder.lengths)
    ids_b = torch.randint(0, 97, (3,), generator=generator)
    assert relative(other.step(ids_b), decoder.step(ids_b)) < (1e-6 if precision == "fp32" else 5e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_seventy_thousand_tokens_overflow_no_sum(precision):
    mixer = AttentionPart(num_heads=1, num_kv_heads=1, head_size=16)
    spec, tokens = decoder_of(mixer, feed=FeedForwardPart(hidden=16), vocabulary=17, width=16), 70_000
    weights = random_weights(spec)
    k, v = torch.zeros(1, 1, tokens, 16), torch.ones(1, 1, tokens, 16)
    v[..., tokens // 2 :, :8] = 3.0
    decoder, reference = Decoder(spec, weights, precision, threads=1), Reference(spec, weights, 1)
    decoder.load([{"key": k, "value": v}], [tokens])
    reference.states, reference.lengths = [[{"key": k[0], "value": v[0]}]], [tokens]
    for token in (3, 16):
        ids_b = torch.tensor([token])
        wanted = reference.step(ids_b)
        assert relative(decoder.step(ids_b), wanted) < max(TOLERANCE[precision], 1e-4)  # sums of 70,000 float32


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("spec", [LLAMA, HYBRID], ids=["llama", "hybrid"])
def test_selected_cropped_and_reset_sequences_continue_as_the_reference(spec, precision):
    weights, generator = random_weights(spec), torch.Generator().manual_seed(4)

    def draw(b):
        return torch.randint(0, 97, (b,), generator=generator)

    decoder, reference = Decoder(spec, weights, precision, threads=1, max_length=8, batch=3), Reference(spec, weights, 3)
    ids_bt = torch.randint(0, 97, (3, 20), generator=generator)
    decoder.extend(ids_bt, [20, 5, 12])
    reference.feed(ids_bt, [20, 5, 12])
    for index in ([2, 2, 0, 1], [3, 0], [1, 0]):
        logits = decoder._logits[:, :97].clone()
        decoder.select(index)
        assert torch.equal(decoder._logits[:, :97], logits[index])
        reference.select(index)
        for _ in range(2):
            ids_b = draw(len(index))
            assert relative(decoder.step(ids_b), reference.step(ids_b)) < TOLERANCE[precision]
    if spec is HYBRID:
        with pytest.raises(Unsupported, match="recurrent state cannot be cropped"):
            decoder.crop([7, decoder.lengths[1]])
        kept = [0, decoder.lengths[1]]
    else:
        kept = [7, decoder.lengths[1]]
    decoder.crop(kept)
    if spec is HYBRID:
        fresh = Reference(spec, weights, 1)
        for layer, new in zip(reference.states, fresh.states):
            layer[0] = new[0]
    else:
        for layer in reference.states:
            layer[0] = {name: x[:, :7] for name, x in layer[0].items()}
    reference.lengths = list(kept)
    for _ in range(2):
        ids_b = draw(2)
        assert relative(decoder.step(ids_b), reference.step(ids_b)) < TOLERANCE[precision]
    for batch in (2, 5):  # the same sequences as before, and more
        decoder.reset(batch)
        reference, ids_b = Reference(spec, weights, batch), draw(batch)
        assert relative(decoder.step(ids_b), reference.step(ids_b)) < TOLERANCE[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_greedy_gives_the_tokens_of_steps_and_stops(precision):
    spec = llama(positions=40)
    weights, start = random_weights(spec), torch.tensor([3, 50, 96])
    decoder = Decoder(spec, weights, precision, threads=1, batch=3)
    ids_b, steps = start, []
    for _ in range(12):
        ids_b = decoder.step(ids_b).argmax(-1)
        steps.append(ids_b)
    want_bt = torch.stack(steps, dim=1)
    decoder.reset()
    assert torch.equal(decoder.greedy(start, 12)[0], want_bt) and decoder.lengths == [12] * 3
    stops = [int(want_bt[0, 4]), int(want_bt[1, 2])]
    decoder.reset()
    got_bt, _ = decoder.greedy(start, 12, stops)
    for row, want in enumerate(want_bt.tolist()):
        ends = [i for i, token in enumerate(want) if token in stops]
        kept = want[: ends[0] + 1] if ends else want
        assert got_bt[row].tolist() == kept + [-1] * (got_bt.shape[1] - len(kept))
        assert decoder.lengths[row] == len(kept)
    with pytest.raises(DataError, match="beyond the 40 learned positions"):
        decoder.greedy(start, 60)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("mixer", [ATTENTION, MAMBA2], ids=["attention", "mamba2"])
def test_vocabulary_rows_vectors_and_hidden_states(mixer, precision):
    spec = decoder_of(mixer, mixer, feed=SWIGLU, vocabulary=333)
    weights = random_weights(spec)
    one, other = (Decoder(spec, weights, precision, threads=1, batch=2) for _ in range(2))
    ids_b = torch.tensor([3, 332])
    all_bv, (want_bv, hidden_bd) = one.step(ids_b).clone(), Reference(spec, weights, 2).logits_and_hidden(ids_b)
    assert relative(all_bv, want_bv) < TOLERANCE[precision] and relative(one.hidden, hidden_bd) < TOLERANCE[precision]
    for first, last in ((0, 1), (5, 40), (48, 49), (300, 333), (0, 333), (7, 7)):
        other.reset()
        other._logits.fill_(float("nan"))
        assert torch.equal(other.step(ids_b, rows=(first, last)), all_bv[:, first:last])
        assert torch.equal(other.hidden, one.hidden)
    other.reset()
    kept = weights["embedding.weight"] if precision == "fp32" else weights["embedding.weight"].bfloat16().float()
    assert torch.equal(other.step(None, x_bd=kept[ids_b]), all_bv)
    other.reset()
    assert torch.equal(other.extend(None, x_btd=kept[ids_b][:, None]), all_bv)


def large():
    """More than 4 MB in int8, of every kind."""
    mixers = (
        AttentionPart(num_heads=6, num_kv_heads=2, head_size=24, rope=rope(12)),
        Mamba1Part(inner=640, state_size=16, step_rank=20, conv_size=4),
        Mamba2Part(num_heads=10, head_size=64, state_size=64),
        DeltaNetPart(num_heads=5, num_key_heads=5, key_size=64, value_size=64, gated=True),
    )
    return decoder_of(*mixers, feed=FeedForwardPart(hidden=1200), vocabulary=5000, width=320)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_threads_do_not_change_a_bit(precision):
    spec = large()
    weights, ids_bt = random_weights(spec), torch.randint(0, 5000, (3, 20), generator=torch.Generator().manual_seed(5))
    seen = []
    for threads in (1, 2, 3):
        decoder = Decoder(spec, weights, precision, threads=threads, batch=3)
        prompt = decoder.extend(ids_bt, [20, 1, 9]).clone()
        seen.append([prompt, *decoder.greedy(prompt.argmax(-1), 8), decoder.step(ids_bt[:, 0]).clone()])
    for other in seen[1:]:
        assert all(torch.equal(got, want) for got, want in zip(other, seen[0]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_decodes_with_threads_of_its_own():
    spec = large()
    decoder, start = Decoder(spec, random_weights(spec), "int8", threads=2), torch.tensor([7])
    want, _ = decoder.greedy(start, 4)
    decoder.reset()
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(decoder.greedy(start, 4)[0], want) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(decoder.greedy(start, 4)[0], want)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_not_finite_is_not_hidden(precision):
    weights = random_weights(LLAMA)
    for name in ("layers.0.mixer.norm.weight", "layers.1.feed_forward.up.weight", "head.weight", "layers.0.mixer.qkv.weight"):
        broken = {key: tensor.clone() for key, tensor in weights.items()}
        broken[name].view(-1)[3] = float("nan")
        decoder = Decoder(LLAMA, broken, precision, threads=1)
        assert not decoder.step(torch.tensor([1])).isfinite().all()
        with pytest.raises(NumericsError, match="not finite"):
            decoder.greedy(torch.tensor([1]), 2)


def uneven(kind):
    """Weights whose sizes within a row differ by so much that 12 bits may not hold them."""
    weights, generator = random_weights(LLAMA), torch.Generator().manual_seed(9)
    for name in [name for name in weights if name.endswith(("qkv.weight", "up.weight", "out.weight", "down.weight"))]:
        w = weights[name]
        if kind == "pruned":
            w *= torch.rand(w.shape, generator=generator) < 0.5
        if kind == "rows_of_all_sizes":
            w *= 10.0 ** torch.randint(-12, 2, (len(w), 1), generator=generator)
            w[::7] = 0
        if kind == "one_channel_above_all" and not name.endswith(("out.weight", "down.weight")):
            w[:, 5] *= 1e6
    if kind == "one_channel_above_all":
        for name in [name for name in weights if name.startswith("layers.") and name.endswith("norm.weight")]:
            weights[name][5] = 0.0
    return weights


@pytest.mark.parametrize("kind", ["pruned", "rows_of_all_sizes", "one_channel_above_all"])
def test_bf16_holds_weights_of_uneven_sizes(kind, caplog):
    caplog.set_level("INFO")
    weights, ids_b = uneven(kind), torch.tensor([3, 50])
    for precision in ("fp32", "bf16"):
        decoder, reference = Decoder(LLAMA, weights, precision, threads=1, batch=2), Reference(LLAMA, weights, 2)
        for _ in range(2):
            assert relative(decoder.step(ids_b), reference.step(ids_b)) < TOLERANCE[precision]
    assert ("bf16 weights take 16" in caplog.text) == (kind == "one_channel_above_all")


@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("mixer", [MAMBA1, MAMBA2, GATED_DELTA], ids=["mamba1", "mamba2", "deltanet"])
def test_int8_rounds_what_recurrent_mixers_read_to_16_bits(mixer, rows):
    spec = decoder_of(mixer, mixer)
    weights, x_bd = random_weights(spec), torch.randn(rows, 72, generator=torch.Generator().manual_seed(rows))
    for name in [name for name in weights if name.endswith(".weight") and name.split(".")[-2] in mixer.matrices(72)]:
        scale = weights[name].abs().amax(dim=1, keepdim=True) / 127
        weights[name] = (weights[name] / scale).round() * scale  # weights that int8 holds, so that activations alone are rounded
    decoder, reference = Decoder(spec, weights, "int8", threads=1, batch=rows), Reference(spec, weights, rows)
    for _ in range(2):
        decoder.step(None, x_bd=x_bd, rows=(0, 0))
        _, want = decode_step(spec, weights, None, reference.states, torch.zeros(rows), x_bd)
        assert relative(decoder.hidden, want) < 1e-3


@pytest.mark.parametrize("rows", [1, 5, 20, 40])
def test_bf16_in_16_bits_equals_12_bits_where_both_hold(rows, monkeypatch):
    weights, ids_b = random_weights(LLAMA), torch.randint(0, 97, (rows,), generator=torch.Generator().manual_seed(rows))
    narrow = Decoder(LLAMA, weights, "bf16", threads=1, batch=rows).step(ids_b).clone()
    monkeypatch.setattr(fast, "PRECISIONS", ("fp32", "none", "none", "bf16"))
    wide = Decoder(LLAMA, weights, "bf16", threads=1, batch=rows).step(ids_b)
    assert relative(narrow, wide) < 1e-3


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (llama({"num_kv_heads": 4}), "layer 0: num_heads .6. is not a multiple of num_kv_heads"),
        (llama(feed={"activation": "tanh"}), "activation 'tanh'"),
        (llama(norm="batch"), "norm 'batch'"),
        (llama({"rope": rope(13)}), "for heads of 24 channels"),
        (llama({"window": 0}), "a window of 0 tokens"),
        (llama(feed={"hidden": 0}), "hidden must be at least 1"),
        (llama(feed={"hidden": 101}), "weights do not fit: layers.0.feed_forward.down.weight is"),
        (llama(tied=True), "unknown head.weight"),
        (llama({"qk_norm": True}), "missing layers.0.mixer.k_norm.weight"),
        (decoder_of(ATTENTION, parallel=True), "a parallel layer without"),
        (decoder_of(), "no layer has a mixer"),
        (decoder_of(dataclasses.replace(MAMBA2, num_groups=4)), "4 groups of 6 heads"),
        (decoder_of(dataclasses.replace(DELTA, num_key_heads=3)), "not a multiple of num_key_heads"),
        (decoder_of(dataclasses.replace(DELTA, output_gate="tanh")), "an output gate 'tanh'"),
        (decoder_of(ATTENTION, feed=dataclasses.replace(EXPERTS, top_k=6)), "top_k 6 of 5 experts"),
        (decoder_of(dataclasses.replace(MAMBA1, step_rank=0)), "step_rank must be at least 1"),
    ],
)
def test_it_refuses_what_it_was_not_made_for(spec, reason):
    with pytest.raises(Unsupported, match=reason) as caught:
        Decoder(spec, random_weights(LLAMA))
    assert caught.value.reason in str(caught.value)


def test_bad_input_is_an_error_that_changes_nothing():
    decoder = Decoder(LLAMA, random_weights(LLAMA), "fp32", threads=1, batch=2)
    with pytest.raises(Unsupported, match="precision 'fp8'"):
        Decoder(LLAMA, random_weights(LLAMA), "fp8")
    with pytest.raises(Unsupported, match="head.weight is torch.int64"):
        Decoder(LLAMA, random_weights(LLAMA) | {"head.weight": torch.zeros(97, 72, dtype=torch.long)})
    good = torch.tensor([1, 2])
    decoder.step(good)

    def states(heads):
        return [{name: torch.zeros(1, heads, 4, 24) for name in ("key", "value")}] * 2

    for call, message in (
        (lambda: decoder.step(torch.tensor([1, 97])), "within 0 to 96"),
        (lambda: decoder.step(torch.tensor([-1, 3])), "within 0 to 96"),
        (lambda: decoder.step(torch.tensor([1])), r"whole numbers \[2\]"),
        (lambda: decoder.step(torch.tensor([0.5, 1.0])), "whole numbers"),
        (lambda: decoder.step(good, rows=(0, 98)), "vocabulary rows 0 to 98"),
        (lambda: decoder.step(None), "either ids or vectors"),
        (lambda: decoder.step(None, x_bd=torch.zeros(2, 71)), r"where \[2, 72\]"),
        (lambda: decoder.extend(good[:, None], [2, 0]), "do not fit 2 sequences"),
        (lambda: decoder.select([0, 2]), "from 0 to 1"),
        (lambda: decoder.crop([2, 1]), "have \\[1, 1\\] tokens"),
        (lambda: decoder.load(states(2), [5]), "from 0 to 4"),
        (lambda: decoder.load(states(2), [-1]), "from 0"),
    ):
        with pytest.raises(DataError, match=message):
            call()
    for wrong in (states(3), states(2)[:1], [{"key": states(2)[0]["key"]}] * 2):
        with pytest.raises(Unsupported, match="are needed"):
            decoder.load(wrong, [4])
    assert decoder.lengths == [1, 1]


def llama_weights(model, names):
    """Weights of a transformers model of the Llama kind under the names of DecoderSpec."""
    state, found = model.state_dict(), {}
    found["embedding.weight"], found["norm.weight"] = state["model.embed_tokens.weight"], state["model.norm.weight"]
    if "head.weight" in names:
        found["head.weight"] = state["lm_head.weight"]
    for i in range(model.config.num_hidden_layers):
        at, to = f"model.layers.{i}.", f"layers.{i}."
        for part in ("weight", "bias"):
            if at + "self_attn.q_proj." + part in state:
                found[f"{to}mixer.qkv.{part}"] = torch.cat([state[f"{at}self_attn.{x}_proj.{part}"] for x in "qkv"])
            if at + "self_attn.o_proj." + part in state:
                found[f"{to}mixer.out.{part}"] = state[f"{at}self_attn.o_proj.{part}"]
        found[f"{to}feed_forward.up.weight"] = torch.cat([state[f"{at}mlp.{x}_proj.weight"] for x in ("gate", "up")])
        found[f"{to}feed_forward.down.weight"] = state[f"{at}mlp.down_proj.weight"]
        for norm, theirs in (("mixer", "input"), ("feed_forward", "post_attention")):
            found[f"{to}{norm}.norm.weight"] = state[f"{at}{theirs}_layernorm.weight"]
        for x in "qk":
            if f"{at}self_attn.{x}_norm.weight" in state:
                found[f"{to}mixer.{x}_norm.weight"] = state[f"{at}self_attn.{x}_norm.weight"]
    return found


def llama_spec(model, **more):
    config, rotary = model.config, model.model.rotary_emb
    mixer = AttentionPart(
        num_heads=config.num_attention_heads, num_kv_heads=config.num_key_value_heads, head_size=model.model.layers[0].self_attn.head_dim,
        rope=rotary.inv_freq, rope_scale=rotary.attention_scaling, **more
    )  # fmt: skip
    return decoder_of(
        *[mixer] * config.num_hidden_layers, feed=FeedForwardPart(hidden=config.intermediate_size), vocabulary=config.vocab_size,
        width=config.hidden_size, norm_eps=config.rms_norm_eps, tied=config.tie_word_embeddings,
    )  # fmt: skip


def check_beside_transformers(model, spec, weights):
    model.eval()
    generator = torch.Generator().manual_seed(6)
    ids_bt = torch.randint(0, spec.vocabulary, (2, 24), generator=generator)
    with torch.no_grad():
        want_btv = model(ids_bt).logits
    for precision in PRECISIONS:
        decoder = Decoder(spec, weights, precision, threads=1, batch=2)
        got = [decoder.extend(ids_bt[:, :10]).clone()] + [decoder.step(ids_b).clone() for ids_b in ids_bt[:, 10:].T]
        got_btv = torch.stack(got, dim=1)
        assert relative(got_btv, want_btv[:, 9:]) < TOLERANCE[precision]
        if precision == "fp32":
            assert float((got_btv - want_btv[:, 9:]).abs().max()) < 1e-4
            with torch.no_grad():
                long_bt = model.generate(ids_bt, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
            decoder.reset()
            first = decoder.extend(ids_bt).argmax(-1)
            assert torch.equal(torch.cat([first[:, None], decoder.greedy(first, 11)[0]], dim=1), long_bt[:, 24:])


def spread(model):
    """Weights large enough that logits differ; torch's own generator stays as it was."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data = torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5
        else:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_llama_of_transformers(tied):
    from transformers import LlamaConfig, LlamaForCausalLM

    scaling = {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = LlamaConfig(
        vocab_size=101, hidden_size=72, intermediate_size=90, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=3,
        attention_bias=True, rope_parameters=scaling | {"original_max_position_embeddings": 16}, tie_word_embeddings=tied,
    )  # fmt: skip
    model = spread(LlamaForCausalLM(config))
    spec = llama_spec(model)
    check_beside_transformers(model, spec, llama_weights(model, spec.shapes()))


def test_qwen3_of_transformers():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=101, hidden_size=72, intermediate_size=90, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=24
    )
    model = spread(Qwen3ForCausalLM(config))
    spec = llama_spec(model, qk_norm=True, qk_norm_eps=config.rms_norm_eps)
    check_beside_transformers(model, spec, llama_weights(model, spec.shapes()))


def test_gpt2_of_transformers():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = spread(GPT2LMHeadModel(GPT2Config(vocab_size=101, n_positions=50, n_embd=72, n_layer=2, n_head=3)))
    state, weights = model.state_dict(), {}
    names = {
        "ln_1": "mixer.norm", "attn.c_attn": "mixer.qkv", "attn.c_proj": "mixer.out",
        "ln_2": "feed_forward.norm", "mlp.c_fc": "feed_forward.up", "mlp.c_proj": "feed_forward.down",
    }  # fmt: skip
    for i in range(2):
        for theirs, ours in names.items():
            for part in ("weight", "bias"):
                tensor = state[f"transformer.h.{i}.{theirs}.{part}"]
                weights[f"layers.{i}.{ours}.{part}"] = tensor.T if tensor.dim() == 2 else tensor
    weights |= {f"norm.{part}": state[f"transformer.ln_f.{part}"] for part in ("weight", "bias")}
    weights |= {"embedding.weight": state["transformer.wte.weight"], "positions.weight": state["transformer.wpe.weight"]}
    mixer = AttentionPart(num_heads=3, num_kv_heads=3, head_size=24)
    feed = FeedForwardPart(hidden=288, gated=False, activation="gelu_tanh")
    check_beside_transformers(model, decoder_of(mixer, mixer, feed=feed, vocabulary=101, norm="layer", tied=True, positions=50), weights)


@pytest.mark.slow
@pytest.mark.parametrize("march", ["x86-64", "haswell", "skylake-avx512", "cascadelake"])
def test_simpler_processors_compute_the_same(march, other_flags):
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        flags = set(next(line for line in file if line.startswith("flags")).split())
    needs = {"haswell": {"avx2", "fma"}, "skylake-avx512": {"avx512bw", "avx512vl"}, "cascadelake": {"avx512_vnni"}}
    if missing := needs.get(march, set()) - flags:
        pytest.skip(f"this processor lacks {', '.join(sorted(missing))}")
    other_flags(march)
    for name in ("llama_biases", "gpt2", "many_query_heads", "hybrid", "mamba2_wide_heads"):
        for precision in PRECISIONS:
            test_every_kind_of_decoder_equals_the_reference(name, precision)
    for batch in (2, 9, 17):
        test_any_batch_size_equals_the_reference(batch, "int8")
