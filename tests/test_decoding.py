"""The C++ decoder writes what the model's own layers write, follows the weights, and leaves to the layers what it was not made for."""

import logging

import numpy as np
import pytest
import torch

from mmlm.backbone.cache import Cache
from mmlm.base.errors import NumericsError, RecipeError
from mmlm.base.schema import check
from mmlm.decoding import Decoding, OneCallDecoding, _told, guided, open_decoding, reads_on
from mmlm.generation import Guidance, RangeGrammar, Sampling, generate, stream
from mmlm.kernels.decode.spec import Unsupported
from mmlm.kernels.dispatch import forced
from mmlm.model import MultimodalLM
from mmlm.model_config import ModelConfig
from mmlm.one_call import one_call_form
from mmlm.stream import Segment, Stream, pad

GQA = {"type": "attention", "num_heads": 4, "num_kv_heads": 2}
MAMBA2 = {"type": "mamba2", "state_size": 8, "head_size": 16}
DELTA = {"type": "deltanet", "num_heads": 2, "key_size": 12}
SHAPES = {
    "llama": {"pattern": [GQA]},
    "qwen3": {"pattern": [{**GQA, "qk_norm": True, "head_size": 16}]},
    "qwen2": {"pattern": [{**GQA, "qkv_bias": True}]},
    "windows": {"pattern": [GQA, {**GQA, "window": 4}]},
    "yarn": {"pattern": [{**GQA, "rope": {"scaling": {"type": "yarn", "factor": 4.0, "original_length": 16}}}]},
    "scaled scores": {"pattern": [{**GQA, "score_scale": 0.1}]},
    "half turned": {"pattern": [{**GQA, "rope": {"fraction": 0.5}}]},
    "parallel": {"pattern": [{"mixer": GQA, "parallel": True}]},
    "gpt2": {"pattern": [{**GQA, "num_kv_heads": 4, "rope": None, "qkv_bias": True, "out_bias": True}], "norm": "layer",
             "feed_forward": {"type": "gelu"}, "learned_positions": 64},
    "gelu without the tanh": {"pattern": [GQA], "feed_forward": {"type": "gelu", "approximate": False}},
    "gated gelu, scaled embeddings": {"pattern": [GQA], "feed_forward": {"type": "geglu"}, "embedding_scale": 3.0},
    "squared relu": {"pattern": [GQA], "feed_forward": {"type": "relu2"}},
    "other eps of norms": {"pattern": [{**GQA, "qk_norm": True, "qk_norm_eps": 0.5}]},
    "gated attention": {"pattern": [{**GQA, "gate": True, "qk_norm": True}]},
    "layers that differ": {"pattern": [GQA, {**GQA, "qk_norm": True, "rope": None}]},
    "experts": {"pattern": [GQA], "feed_forward": {"type": "moe", "num_experts": 3, "top_k": 2, "num_shared": 1, "renormalize": False}},
    "mamba2": {"pattern": [MAMBA2], "feed_forward": None},
    "mamba2 with groups": {"pattern": [{**MAMBA2, "num_groups": 2, "norm_groups": 4, "conv_bias": False, "bias": True,
                                        "step_limit": [0.1, 0.5]}]},
    "mamba1": {"pattern": [{"type": "mamba1"}], "feed_forward": None},
    "mamba1 negative": {"pattern": [{"type": "mamba1", "negative_eigenvalues": True, "conv_size": 2, "bias": True, "step_rank": 3}]},
    "deltanet": {"pattern": [DELTA]},
    "gated deltanet": {"pattern": [{**DELTA, "gated": True, "num_key_heads": 1, "value_size": 20, "conv_bias": True}]},
    "delta product": {"pattern": [{**DELTA, "num_micro_steps": 2, "negative_eigenvalues": True, "output_gate": "sigmoid",
                                   "output_norm": False}]},
    "hybrid": {"pattern": "MD*ESM", "symbols": {"D": {**DELTA, "gated": True}, "S": {"type": "mamba1"}, "M": MAMBA2, "*": GQA},
               "num_layers": 6},
}  # fmt: skip
RECURRENT = [name for name in SHAPES if any(word in name for word in ("mamba", "delta", "hybrid"))]
PROMPTS = [3, 9, 6]


def made(shape: dict, tied: bool = False, **more) -> MultimodalLM:
    torch.manual_seed(0)
    raw = {
        "schema": 1,
        "vocabulary": {"text": 40, "label": 5},
        "backbone": {"width": 32, "num_layers": 2, **shape},
        "heads": {"language_model": {"type": "language_model", "tied": tied}},
        **more,
    }
    model = MultimodalLM(check(ModelConfig, raw, "test")).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # logits that differ enough for one best token
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def ids(length: int) -> torch.Tensor:
    return torch.randint(0, 40, (length,), generator=torch.Generator().manual_seed(length))


def by_layers(model, prompts, **options):
    with forced("torch"):
        return generate(model, prompts, **options)


WAYS = (
    {},
    {"sampling": Sampling(num_beams=3), "stop": [5]},
    {"stop": [7, 11, 23]},
    {"sampling": Sampling(temperature=1.0, top_p=0.9), "seed": 4},
    {"sampling": Sampling(repetition_penalty=1.5)},
    {"grammar": RangeGrammar(range(40, 45), stop=(1,)), "stop": [1]},
    {"guidance": [Guidance([ids(2)] * 3, 2.5)]},
)


@pytest.mark.parametrize("shape", SHAPES)
def test_one_call_writes_what_the_layers_write(shape):
    model, prompts = made(SHAPES[shape], tied=shape in ("qwen3", "mamba2")), [ids(length) for length in PROMPTS]
    for options in WAYS if shape in ("llama", "hybrid") else WAYS[:2]:
        want = by_layers(model, prompts, max_new_tokens=20, **options)
        got = generate(model, prompts, max_new_tokens=20, precision="fp32", **options)
        assert [one.ids for one in got] == [one.ids for one in want] and [one.finished for one in got] == [one.finished for one in want]
        torch.testing.assert_close(torch.tensor([one.score for one in got]), torch.tensor([one.score for one in want]), rtol=0, atol=1e-3)
    assert isinstance(open_decoding(model, prompts, 5, "fp32"), OneCallDecoding)


@pytest.mark.parametrize("shape", ["qwen3", *RECURRENT])
def test_layers_and_decoder_go_on_from_one_another(shape, tmp_path):
    """What is kept is the same after the same tokens; either writes on from what the other kept, also when that was saved."""
    model, prompts, more = made(SHAPES[shape]), [ids(length) for length in PROMPTS], [ids(30), ids(31)[:30], ids(32)[:30]]
    layers, native = Decoding(model, prompts, 40), open_decoding(model, prompts, 40, "fp32")
    assert isinstance(native, OneCallDecoding)
    for step, ids_b in enumerate(torch.stack(more).T):
        if step == 10:  # each goes on from what the other kept
            native.cache.save(tmp_path / "cache.safetensors")
            kept = layers.cache.snapshot()
            layers.cache, native.cache = Cache.load(tmp_path / "cache.safetensors"), kept
        if step == 20:  # as beams do
            for decoding in (layers, native):
                decoding.select(torch.tensor([2, 0, 2]))
        with torch.no_grad():
            layers.feed(ids_b)
        native.feed(ids_b)
        torch.testing.assert_close(native.scores(), layers.scores(), rtol=0, atol=1e-4)
    cache = native.cache
    assert torch.equal(cache.length, layers.cache.length)
    for got, want in zip(cache.layers, layers.cache.layers, strict=True):
        assert (got is None) == (want is None)
        for name in want.tensors if want else ():
            tensor = got.tensors[name]
            cut = want.tensors[name][:, :, : tensor.shape[2]] if want.roles[name] == "kv" else want.tensors[name]
            torch.testing.assert_close(tensor, cut, rtol=0, atol=2e-5)


def test_a_prompt_that_sees_both_ways_is_read_by_the_layers_and_written_on_by_the_decoder():
    model = made(SHAPES["qwen3"])
    prompts = [Stream([Segment("text", ids(5), mutual=1), Segment("text", ids(2))]), ids(9)]
    assert isinstance(open_decoding(model, prompts, 5, "fp32"), OneCallDecoding)
    want = by_layers(model, prompts, max_new_tokens=20)
    assert [one.ids for one in generate(model, prompts, max_new_tokens=20, precision="fp32")] == [one.ids for one in want]
    assert want[0].ids != by_layers(model, [torch.cat([ids(5), ids(2)])], max_new_tokens=20)[0].ids


def parts(rng: np.random.Generator, sizes: list[int], marked: bool) -> list[Stream]:
    """Streams with positions of their own, and with tokens that only some see."""
    found = []
    for size in sizes:
        segments = []
        for count in (size, 3):
            fields = {"position": torch.from_numpy(rng.integers(0, 40, (count, 1)))}
            if marked:
                low = torch.from_numpy(rng.integers(0, 4, count))
                fields |= {"mark": torch.from_numpy(rng.integers(-1, 5, count)), "reach": torch.stack([low, low + 1], dim=1)}
            segments.append(Segment("text", torch.from_numpy(rng.integers(0, 40, count)), **fields))
        found.append(Stream(segments))
    return found


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@torch.no_grad()
def test_positions_and_marks_of_their_own_are_read_as_the_layers_read_them(precision, marked, both_ways):
    model, rng = made(SHAPES["qwen3"]), np.random.default_rng(0)
    prompts = parts(rng, [5, 1, 9], marked)
    for prompt in prompts if both_ways else ():
        prompt.segments[0].mutual = 1
    layers, native = Decoding(model, prompts, 300), open_decoding(model, prompts, 4, precision, by_reading=True)
    assert isinstance(native, OneCallDecoding)
    rows, tolerance = torch.arange(40), {"fp32": 1e-4, "bf16": 5e-2, "int8": 1e-1}[precision]

    def alike() -> None:
        want, got = layers.scores_among(rows), native.scores_among(rows)
        assert float((want - got).norm() / want.norm()) < tolerance

    alike()
    for step in range(40):  # beyond the room that was asked for
        if step == 20:
            for decoding in (layers, native):
                decoding.select(torch.tensor([2, 0, 2]))
        batch = pad(parts(rng, [1, 0, 2] if step % 2 else [0, 4, 0], marked), model.vocabulary, starts=[0, 0, 0])
        layers.read(batch)
        native.read(batch)
    alike()
    if marked:  # either goes on from what the other kept
        layers.cache, native.cache = native.cache, layers.cache.snapshot()
        batch = pad(parts(rng, [2, 1, 3], marked), model.vocabulary, starts=[60] * 3)
        for decoding in (layers, native):
            decoding.read(batch)
        alike()
    if marked:  # a token that sees no marked token at all, itself included
        blind = Segment("text", ids(1), mark=torch.tensor([3]), reach=torch.tensor([[7, 7]]))
        for decoding in (layers, native):
            decoding.read(pad([Stream([blind])] * 3, model.vocabulary, starts=[50] * 3))
        assert torch.isfinite(native.scores_among(rows)).all()


def test_a_model_of_codebooks_alone_is_decoded_in_one_call(tiny):
    heads = {"books": {"type": "codebooks"}}
    model = tiny([{"type": "attention", "num_heads": 2}], heads, {"text": 10, "codec.0": 7, "codec.1": 6}, width=32).float()
    prompts = [Stream([Segment("text", torch.tensor([1, 2, 3]))]), Stream([Segment("text", torch.tensor([4]))])]
    decoding = open_decoding(model, prompts, 40, "fp32", by_reading=True)
    assert isinstance(decoding, OneCallDecoding)
    for name in ("codec.0", "codec.1"):
        with torch.no_grad():
            torch.testing.assert_close(decoding.scores_of_book(name), Decoding(model, prompts, 40).scores_of_book(name), rtol=0, atol=1e-4)


def test_a_head_of_some_ranges_reads_what_one_call_leaves(tiny):
    heads = {"language_model": {"type": "language_model", "ranges": ["label"], "soft_cap": 3.0}}
    model = tiny([{"type": "attention", "num_heads": 2}], heads, {"text": 10, "label": 7}, width=32).float()
    prompts, rows = [Stream([Segment("text", torch.tensor([1, 2, 3]))]), Stream([Segment("text", torch.tensor([4]))])], torch.arange(10, 17)
    decoding = open_decoding(model, prompts, 40, "fp32", by_reading=True)
    assert isinstance(decoding, OneCallDecoding) and isinstance(open_decoding(model, prompts, 40, "fp32"), Decoding)
    with torch.no_grad():
        torch.testing.assert_close(decoding.scores_among(rows), Decoding(model, prompts, 40).scores_among(rows), rtol=0, atol=1e-4)


def test_a_recurrence_refuses_tokens_that_only_some_see():
    model = made(SHAPES["mamba2"])
    decoding = open_decoding(model, [ids(4)], 40, "fp32", by_reading=True)
    hidden = Segment("text", ids(2), mark=torch.tensor([0, 1]), reach=torch.tensor([[0, 0], [0, 1]]))
    with pytest.raises(Unsupported, match="only some see"):
        decoding.read(pad([Stream([hidden])], model.vocabulary, starts=[4]))


def test_streaming_gives_the_tokens_one_by_one():
    model = made(SHAPES["llama"])
    want = generate(model, [ids(4), ids(7)], max_new_tokens=9, precision="fp32")
    found: list[list[int]] = [[], []]
    for step in stream(model, [ids(4), ids(7)], max_new_tokens=9, precision="fp32"):
        for number, (index, _, _) in step.items():
            found[number].append(index)
    assert found == [one.ids for one in want]


def test_what_is_written_follows_the_weights():
    model = made(SHAPES["llama"])
    before = generate(model, [ids(5)], max_new_tokens=12, precision="fp32")
    with torch.no_grad():
        model.heads["language_model"].weight.copy_(model.heads["language_model"].weight.roll(1, 0))
    after = generate(model, [ids(5)], max_new_tokens=12, precision="fp32")
    assert after[0].ids == by_layers(model, [ids(5)], max_new_tokens=12)[0].ids != before[0].ids
    held = open_decoding(model, [ids(5)], 12, "fp32")
    held.close()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model.logits(ids(6)[None]).square().mean().backward()
    optimizer.step()
    assert open_decoding(model, [ids(5)], 12, "fp32").decoder is not held.decoder
    assert generate(model, [ids(5)], max_new_tokens=12, precision="fp32")[0].ids == by_layers(model, [ids(5)], max_new_tokens=12)[0].ids
    held = open_decoding(model, [ids(5)], 12, "fp32")  # weights that change while it is open are not those that it has packed
    with torch.no_grad():
        model.embedding.weight.copy_(model.embedding.weight.roll(1, 0))
    held.close()
    assert generate(model, [ids(5)], max_new_tokens=12, precision="fp32")[0].ids == by_layers(model, [ids(5)], max_new_tokens=12)[0].ids


def test_two_writings_at_once_do_not_share_a_cache_and_weights_are_packed_once(monkeypatch):
    model, packed = made(SHAPES["llama"]), []
    monkeypatch.setattr("mmlm.decoding.one_call_form", lambda *given, **more: packed.append(given) or one_call_form(*given, **more))
    first = open_decoding(model, [ids(5)], 4, "fp32")
    second = open_decoding(model, [ids(8)], 4, "fp32")
    assert first.decoder is not second.decoder
    for each, count in ((first, 5), (second, 8)):
        torch.testing.assert_close(each.scores()[0], model.logits(ids(count)[None])[0, -1], rtol=0, atol=1e-4)
    second.close()
    assert open_decoding(model, [ids(3)], 4, "fp32").decoder is second.decoder and len(packed) == 1
    with torch.no_grad():
        model.embedding.weight.mul_(2.0)  # while the first is at work
    third = open_decoding(model, [ids(5)], 4, "fp32")
    torch.testing.assert_close(third.scores()[0], model.logits(ids(5)[None])[0, -1], rtol=0, atol=1e-4)
    assert len(packed) == 2


def test_features_in_a_prompt_reach_the_one_call_decoder():
    cells = {"encoders": {"cell": {"type": "table_cells", "hidden": 8}}, "features": {"cell": 6}}
    model = made(SHAPES["llama"], **cells)
    prompt = Stream([Segment("text", ids(3)), Segment("label", torch.zeros(2, dtype=torch.long), torch.randn(2, 6), "cell")])
    want = by_layers(model, [prompt], max_new_tokens=10)[0]
    assert generate(model, [prompt], max_new_tokens=10, precision="fp32")[0].ids == want.ids
    silent = Stream([Segment("text", ids(3)), Segment("label", torch.zeros(2, dtype=torch.long), torch.zeros(2, 6), "cell")])
    with torch.no_grad():
        scores = [open_decoding(model, [one], 3, "fp32").scores().clone() for one in (prompt, silent)]
    assert (scores[0] - scores[1]).abs().max() > 1e-3, "the features had no effect"


UNFIT = {
    "layer 1 has a S4": ({"pattern": [GQA, {"type": "s4", "state_size": 8}]}, [ids(4)]),
    "soft cap": ({"pattern": [{**GQA, "soft_cap": 5.0}]}, [ids(4)]),
    "norms around its layers": ({"pattern": [GQA], "norm_place": "around"}, [ids(4)]),
    "no layer has a mixer": ({"pattern": "--", "num_layers": 2}, [ids(4)]),
    "norms of what steps are made of": ({"pattern": [{"type": "mamba1", "select_norm": True}]}, [ids(4)]),
    "a gate or a size of their own": (
        {"pattern": [GQA], "feed_forward": {"type": "moe", "num_experts": 3, "num_shared": 1, "shared_gate": True}},
        [ids(4)],
    ),
    "positions": ({"pattern": [GQA]}, [Stream([Segment("text", ids(4), position=torch.tensor([[0], [1], [5], [6]]))])]),
}


@pytest.mark.parametrize("reason", UNFIT)
def test_what_it_was_not_made_for_is_left_to_the_layers_and_said_once(reason, caplog):
    shape, prompts = UNFIT[reason]
    model = made(shape)
    _told.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert isinstance(open_decoding(model, prompts, 50, "int8"), Decoding)
    assert caplog.text.count("precision 'int8' has no effect") == 1 and reason in caplog.text
    caplog.clear()
    assert isinstance(open_decoding(model, prompts, 50), Decoding) and not caplog.text


def test_packing_waits_until_it_pays_and_double_precision_stays_with_the_layers():
    model = made(SHAPES["llama"])
    assert isinstance(open_decoding(model, [ids(3)], 31), Decoding)
    assert isinstance(open_decoding(model, [ids(3)], 32), OneCallDecoding)
    assert isinstance(open_decoding(model.double(), [ids(3)], 99), Decoding)


def test_adapters_are_not_overlooked():
    from mmlm.adapt import adapt, merge_lora
    from mmlm.training.config import AdaptConfig, LoraConfig

    model = made(SHAPES["llama"])
    adapt(model, AdaptConfig(lora=LoraConfig(rank=2)), 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
    model.eval()
    want = by_layers(model, [ids(5)], max_new_tokens=12)[0].ids
    assert isinstance(open_decoding(model, [ids(5)], 50), Decoding)
    assert generate(model, [ids(5)], max_new_tokens=12, precision="fp32")[0].ids == want
    merge_lora(model)
    model.eval()
    assert isinstance(open_decoding(model, [ids(5)], 50), OneCallDecoding)
    assert generate(model, [ids(5)], max_new_tokens=12, precision="fp32")[0].ids == want


def test_generate_of_a_model_takes_ids_one_or_many_and_tells_what_it_cannot_take():
    model = made(SHAPES["llama"])
    whole = model.generate(torch.stack([ids(6), ids(7)[:6]]), max_new_tokens=4, sampling={"temperature": 0})
    assert [len(one.ids) for one in whole] == [4, 4] and whole[0].ids == model.generate(ids(6), max_new_tokens=4)[0].ids
    assert whole[0].text is None and model.generate([]) == []
    model.stop = (whole[0].ids[1],)
    assert model.generate(ids(6), max_new_tokens=4)[0].ids == whole[0].ids[:2]
    for wrong, options, told in (
        ("text", {}, "no text tokenizer"),
        (torch.zeros(0, dtype=torch.long), {}, "at least one token"),
        (ids(4), {"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        (ids(4), {"precision": "fp8"}, "precision must be one of"),
        (ids(4), {"sampling": {"temprature": 1}}, "Did you mean 'temperature'"),
    ):
        with pytest.raises(RecipeError, match=told):
            model.generate(wrong, **options)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "top_k": 5}, {"num_beams": 2}], ids=["greedy", "drawn", "beams"])
def test_scores_that_are_not_finite_are_told(sampling):
    model = made(SHAPES["llama"])
    with torch.no_grad():
        model.heads["language_model"].weight[3] = float("nan")
    for precision, new in (("fp32", 4), ("auto", 4)):
        with pytest.raises(NumericsError, match="not finite"):
            model.generate(ids(4), max_new_tokens=new, precision=precision, sampling=sampling)


def test_which_tokens_see_both_ways_can_be_told_token_by_token():
    model = made(SHAPES["llama"])
    one, each = (Stream([Segment("text", ids(4), mutual=mutual)]) for mutual in (1, torch.ones(4, dtype=torch.long)))
    want = model.generate(one, max_new_tokens=3, precision="fp32")[0]
    assert model.generate(each, max_new_tokens=3, precision="fp32")[0].ids == want.ids
    assert not reads_on([each]) and reads_on([Stream([Segment("text", ids(4), mutual=torch.zeros(4, dtype=torch.long))])])


def test_a_prompt_with_branches_is_refused_by_the_layers_too():
    prompt = Stream([Segment("text", ids(3)), Segment("text", ids(2), branch=1)])
    with pytest.raises(RecipeError, match="branches .* cannot be read into a cache"):
        made(SHAPES["llama"]).generate(prompt, max_new_tokens=3)


def test_two_branches_in_sequence_are_their_expansion():
    c, u, v = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(guided(c, [(u, 3.0), (v, 1.5)]), 1.5 * (3.0 * c - 2.0 * u) - 0.5 * v, rtol=0, atol=1e-12)
    assert torch.equal(guided(c, [(u, 1.0), (v, 1.0)]), c)
    assert (guided(c, [(u, 3.0), (v, 1.5)]) - guided(c, [(v, 1.5), (u, 3.0)])).abs().max() > 0.1
    c[2] = -torch.inf
    assert guided(c, [(u, 3.0)])[2] == -torch.inf
