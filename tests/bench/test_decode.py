"""Greedy decoding beside transformers' `generate`: same weights, one thread, CPU seconds, prompt included, interleaved; parity first.

Goals (CPU, batch 1): 10M at least 6 times `generate` in float32 with bf16 weights and 10 times with int8; 100M 1.9 and 3.2 times.
Batch 8: at least 3 times on both with bf16 weights. Ratios are asserted with a margin of 1.3.
"""

from __future__ import annotations

import statistics
import time

import pytest
import torch

from mmlm.kernels.decode.fast import TOLERANCE, Decoder
from mmlm.kernels.decode.spec import DecoderSpec

PROMPT, ROUNDS, MARGIN = 128, 3, 1.3
SIZES = {  # vocabulary, width, layers, heads, inner width, new tokens
    "10M": (4096, 320, 6, 5, 864, 256),
    "100M": (16384, 768, 12, 12, 2048, 64),
}
GOALS = {
    ("10M", 1): {"bf16": 6.0, "int8": 10.0},
    ("100M", 1): {"bf16": 1.9, "int8": 3.2},
    ("10M", 8): {"bf16": 3.0},
    ("100M", 8): {"bf16": 3.0},
}


def llama(name):
    """A random transformers model, its sizes and its weights under the decoder's names."""
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary, width, layers, heads, hidden, new_tokens = SIZES[name]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        max_position_embeddings=1024, tie_word_embeddings=False, attn_implementation="sdpa",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    state = model.state_dict()
    weights = {"embedding.weight": state["model.embed_tokens.weight"], "head.weight": state["lm_head.weight"]}
    weights["norm.weight"] = state["model.norm.weight"]
    for i in range(layers):
        at, to = f"model.layers.{i}.", f"layers.{i}."
        weights[f"{to}norm1.weight"] = state[f"{at}input_layernorm.weight"]
        weights[f"{to}norm2.weight"] = state[f"{at}post_attention_layernorm.weight"]
        weights[f"{to}qkv.weight"] = torch.cat([state[f"{at}self_attn.{x}_proj.weight"] for x in "qkv"])
        weights[f"{to}out.weight"] = state[f"{at}self_attn.o_proj.weight"]
        weights[f"{to}up.weight"] = torch.cat([state[f"{at}mlp.{x}_proj.weight"] for x in ("gate", "up")])
        weights[f"{to}down.weight"] = state[f"{at}mlp.down_proj.weight"]
    spec = DecoderSpec(
        vocabulary=vocabulary, width=width, num_layers=layers, num_heads=heads, num_kv_heads=heads, head_size=width // heads, hidden=hidden,
        norm_eps=config.rms_norm_eps, rope=model.model.rotary_emb.inv_freq,
    )  # fmt: skip
    return model, spec, weights, new_tokens


def check_parity(model, decoders, ids_bt):
    """Logits after a prompt and after each of 8 more tokens, beside the model's in float32."""
    with torch.no_grad():
        want = model(ids_bt).logits[:, PROMPT - 9 :]
    for precision, decoder in decoders.items():
        decoder.reset(len(ids_bt))
        got = [decoder.extend(ids_bt[:, : PROMPT - 8]).clone()] + [decoder.step(ids_b).clone() for ids_b in ids_bt[:, PROMPT - 8 :].T]
        error = float((torch.stack(got, dim=1) - want).norm() / want.norm())
        print(f"  relative error of the logits, {precision}: {error:.1e}")
        assert error < TOLERANCE[precision]


def run_generate(model, ids_bt, new_tokens):
    begin = time.process_time()
    with torch.no_grad():
        model.generate(ids_bt, min_new_tokens=new_tokens, max_new_tokens=new_tokens, do_sample=False, pad_token_id=0, eos_token_id=None)
    return time.process_time() - begin


def run_decoder(decoder, ids_bt, new_tokens):
    begin = time.process_time()
    decoder.reset(len(ids_bt))
    first_b = decoder.extend(ids_bt).argmax(-1)
    prompt = time.process_time() - begin
    decoder.greedy(first_b, new_tokens - 1)
    return time.process_time() - begin, prompt


@pytest.mark.bench
@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_decoding_beside_generate(name):
    torch.set_num_threads(1)
    model, spec, weights, new_tokens = llama(name)
    decoders = {precision: Decoder(spec, weights, precision, threads=1, max_length=512) for precision in ("fp32", "bf16", "int8")}
    print(f"\n{name}, prompt {PROMPT}, {new_tokens} new tokens, one thread, CPU seconds, median of {ROUNDS}")
    ratios = {}
    for batch in (1, 8):
        ids_bt = torch.randint(0, spec.vocabulary, (batch, PROMPT), generator=torch.Generator().manual_seed(batch))
        check_parity(model, decoders, ids_bt)
        run_generate(model, ids_bt, 4)
        peer, ours, prompts = [], {precision: [] for precision in decoders}, {precision: [] for precision in decoders}
        for _ in range(ROUNDS):
            peer.append(run_generate(model, ids_bt, new_tokens))
            for precision, decoder in decoders.items():
                seconds, prompt = run_decoder(decoder, ids_bt, new_tokens)
                ours[precision].append(seconds)
                prompts[precision].append(prompt)
        base, tokens = statistics.median(peer), batch * new_tokens
        print(f"  batch {batch}: generate, float32           {tokens / base:7.0f} tokens/s")
        for precision, seconds in ours.items():
            median, prompt = statistics.median(seconds), statistics.median(prompts[precision])
            step = (median - prompt) / (new_tokens - 1)
            size = sum(w.numel() for key, w in weights.items() if w.dim() == 2 and key != "embedding.weight")
            rate = size * {"fp32": 4, "bf16": 2, "int8": 1}[precision] / step / 1e9
            ratios[name, batch, precision] = base / median
            print(
                f"  batch {batch}: decoder, {precision}               {tokens / median:7.0f} tokens/s, {base / median:5.1f} times; prompt"
                f" {prompt * 1e3:.1f} ms, step {step * 1e3:.2f} ms, weights read at {rate:.1f} GB/s"
            )
    for (size, batch), goals in GOALS.items():
        for precision, goal in goals.items():
            if size == name:
                assert ratios[name, batch, precision] > goal / MARGIN, f"{name}, batch {batch}, {precision}: goal {goal}"
