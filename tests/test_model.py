"""Packing, caching and saving never change what a model computes."""

from functools import partial

import pytest
import torch

from mmlm.adapt import attach_lora, merge_lora
from mmlm.base.errors import CheckpointError, RecipeError
from mmlm.base.schema import check
from mmlm.generation import Sampling, TrieGrammar, generate, score_options
from mmlm.interop.hugging_face import save_hugging_face
from mmlm.model import MultimodalLM
from mmlm.model_config import ModelConfig
from mmlm.stream import pack, text_stream, unpack
from mmlm.training.config import LoraConfig

PATTERNS = {
    "attention": [{"type": "attention", "num_heads": 4, "num_kv_heads": 2, "qk_norm": True}, {"type": "attention", "window": 3}],
    "mamba2": [{"type": "mamba2", "state_size": 8, "head_size": 16, "chunk_size": 4}],
    "hybrid": [{"type": "mamba2", "state_size": 8, "head_size": 16, "chunk_size": 4},
               {"mixer": {"type": "attention"}, "feed_forward": {"type": "moe"}, "parallel": True}],
}  # fmt: skip


@pytest.fixture(params=PATTERNS)
def model(request):
    torch.manual_seed(0)
    raw = {
        "schema": 1,
        "vocabulary": {"text": 40, "label": 5},
        "backbone": {"width": 32, "num_layers": 2, "pattern": PATTERNS[request.param]},
    }
    return MultimodalLM(check(ModelConfig, raw, "test")).double().eval()


def ids(length: int) -> torch.Tensor:
    return torch.randint(0, 40, (length,), generator=torch.Generator().manual_seed(length))


def test_packed_samples_are_as_alone(model):
    streams = [text_stream(ids(length)) for length in (5, 9, 5, 1, 7)]
    together = pack(streams, model.vocabulary)
    for stream, part in zip(streams, unpack(model.hidden(together)[0], together.layout), strict=True):
        torch.testing.assert_close(part, model.hidden(pack([stream], model.vocabulary))[0][0], rtol=0, atol=1e-10)


def test_chunks_and_single_steps_through_a_cache_equal_the_whole(model):
    x = torch.stack([ids(12), ids(13)[:12]])
    whole = model.logits(x)
    for cuts in ([1] * 12, [5, 1, 6]):
        cache = model.backbone.init_cache(2, 3)
        parts = [model.logits(part, cache) for part in x.split(cuts, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-5)


def test_generation_in_a_batch_of_different_lengths_is_as_one_by_one(model):
    prompts = [ids(3), ids(9), ids(6)]
    for sampling in (Sampling(), Sampling(temperature=1.0, top_k=10)):
        together = generate(model, prompts, max_new_tokens=6, sampling=sampling, seed=3)
        assert together[0].ids == generate(model, prompts[:1], max_new_tokens=6, sampling=sampling, seed=3)[0].ids
        assert all(len(found.ids) == 6 for found in together)
    greedy = generate(model, prompts, max_new_tokens=6)
    for prompt, found in zip(prompts, greedy, strict=True):
        sequence = prompt
        for index in found.ids:
            assert index == int(model.logits(sequence[None])[0, -1].argmax())
            sequence = torch.cat([sequence, torch.tensor([index])])


def test_scored_options_equal_the_full_forward_and_an_exhaustive_search(model):
    draw, end = torch.Generator().manual_seed(5), 39
    for trial in range(8):
        prompt = ids(4 + trial)
        options = list(
            {tuple(torch.randint(0, 4, (int(torch.randint(1, 4, (1,), generator=draw)),), generator=draw).tolist()) for _ in range(5)}
        )
        scores = score_options(model, [prompt], [[torch.tensor(option) for option in options]], end_token=end)[0]
        for option, score in zip(options, scores.tolist(), strict=True):
            sequence = torch.cat([prompt, torch.tensor([*option, end])])
            log = model.logits(sequence[None]).log_softmax(-1)[0, len(prompt) - 1 : -1]
            assert abs(float(log.gather(1, sequence[len(prompt) :, None]).sum()) - score) < 1e-4
        grammar = TrieGrammar([[*option, end] for option in options])
        free = [score_options(model, [prompt], [[torch.tensor([*option, end])]])[0].item() for option in options]
        assert generate(model, [prompt], grammar=grammar, sampling=Sampling())[0].finished
        assert max(range(len(options)), key=lambda i: free[i]) == int(scores.argmax())


def test_a_saved_model_computes_the_same(model, tmp_path):
    model = model.float()
    model.save_pretrained(tmp_path)
    again = MultimodalLM.from_pretrained(tmp_path)
    assert torch.equal(again.logits(ids(8)[None]), model.logits(ids(8)[None]))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="model.safetensors"):
        MultimodalLM.from_pretrained(tmp_path)


def test_a_model_with_adapters_attached_is_not_written(tmp_path):
    raw = {"schema": 1, "vocabulary": {"text": 40}, "backbone": {"width": 32, "num_layers": 1, "pattern": ["mamba2"]}}
    model = MultimodalLM(check(ModelConfig, raw, "test"))
    attach_lora(model, LoraConfig(rank=2))
    for write in (model.save_pretrained, partial(save_hugging_face, model)):
        with pytest.raises(RecipeError, match="adapters attached: merge them"):
            write(tmp_path)
    assert not any(tmp_path.iterdir())
    merge_lora(model)
    model.save_pretrained(tmp_path)
    MultimodalLM.from_pretrained(tmp_path)


def test_parameters_of_a_saved_model_know_what_they_knew(tmp_path):
    raw = {"schema": 1, "vocabulary": {"text": 40}, "backbone": {"width": 32, "pattern": [{"type": "s4"}, {"type": "mamba2"}]}}
    model = MultimodalLM(check(ModelConfig, raw, "test"))
    model.save_pretrained(tmp_path)
    again = dict(MultimodalLM.from_pretrained(tmp_path).named_parameters())
    known = {name: vars(each) for name, each in model.named_parameters()}
    assert {name: vars(each) for name, each in again.items()} == known
    assert {key for each in known.values() for key in each} == {"axes", "no_weight_decay", "lr_scale"}


def test_new_vocabulary_ranges_leave_the_old_scores_as_they_were(model):
    before = model.logits(ids(8)[None])
    model.extend_vocabulary({"unit": 7})
    assert len(model.vocabulary) == 52
    torch.testing.assert_close(model.logits(ids(8)[None])[..., :45], before, rtol=0, atol=1e-12)


def test_every_parameter_names_its_axes(tiny):
    heads = {"language_model": {"type": "language_model", "tied": False}, "number": {"type": "regression"}}
    attention = {"type": "attention", "qk_norm": True, "qkv_bias": True, "out_bias": True}
    pattern = [{"type": "mamba2", "head_size": 8, "bias": True}, {"mixer": attention, "feed_forward": "moe"}]
    for norm in ("rms", "layer"):
        model = tiny([*pattern, {"feed_forward": "gelu"}], heads, norm=norm, num_layers=3, learned_positions=9)
        unnamed = [name for name, p in model.named_parameters() if len(getattr(p, "axes", ())) != p.ndim]
        assert unnamed == []
        model.extend_vocabulary({"unit": 3})
        assert model.embedding.weight.axes == model.heads["language_model"].weight.axes == ("vocab", "residual")
