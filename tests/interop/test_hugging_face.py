"""Decoders of transformers load into our modules, compute the same, and are saved back."""

import json

import pytest
import torch

from mmlm.base.errors import CheckpointError
from mmlm.interop.hugging_face import FAMILIES, load_hugging_face, save_hugging_face
from mmlm.interop.load import convert, load
from mmlm.interop.name_map import Rule, check_keys, differences
from mmlm.model import WEIGHTS, MultimodalLM
from mmlm.model_config import ModelConfig
from mmlm.recipe import Recipe
from mmlm.run import load_run, train
from mmlm.tokenizers.config import TextConfig
from mmlm.tokenizers.text import TextTokenizer
from mmlm.weights import read_tensors, write_tensors

transformers = pytest.importorskip("transformers")
SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FOUR = {**SIZES, "num_hidden_layers": 4, "rms_norm_eps": 1e-3}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
BAMBA = {**FOUR, "attn_layer_indices": [1, 2], "mamba_n_heads": 8, "mamba_d_state": 6, "mamba_n_groups": 2, "mamba_chunk_size": 8}
NEMOTRON = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 12, "layers_block_type": ["linear_attention", "mlp", "full_attention", "linear_attention"],
            "ssm_state_size": 6, "mamba_num_heads": 6, "mamba_head_dim": 4, "n_groups": 2, "chunk_size": 8,
            "layer_norm_epsilon": 1e-3, "time_step_min": 1e-6}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
MODELS = {
    "llama": ("Llama", SIZES),
    "llama3-tied": ("Llama", {**SIZES, "rope_scaling": LLAMA3, "tie_word_embeddings": True}),
    "yarn": ("Llama", {**SIZES, "rope_scaling": YARN}),
    "mistral": ("Mistral", {**SIZES, "sliding_window": 5}),
    "qwen2": ("Qwen2", SIZES),
    "qwen2-window": ("Qwen2", {**SIZES, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {**SIZES, "head_dim": 16, "rms_norm_eps": 1e-3, "attention_bias": True}),
    "mixtral": ("Mixtral", {**SIZES, "num_local_experts": 4, "sliding_window": 6}),
    "qwen3_moe": ("Qwen3Moe", {**FOUR, **MOE, "mlp_only_layers": [2], "head_dim": 8}),
    "gemma2": ("Gemma2", {**FOUR, "head_dim": 12, "sliding_window": 5, "query_pre_attn_scalar": 30, "attn_logit_softcapping": 2.0,
                          "final_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3", {**FOUR, "head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 30, "final_logit_softcapping": None,
                          "layer_types": ["sliding_attention", "full_attention"] * 2,
                          "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
                                              "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 90.0}}}),
    "gpt2": ("GPT2", {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "mamba": ("Mamba", {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 5}),
    "mamba-untied": ("Mamba", {"vocab_size": 97, "hidden_size": 24, "num_hidden_layers": 2, "state_size": 16, "expand": 3, "use_bias": True,
                               "use_conv_bias": False, "conv_kernel": 3, "time_step_rank": 5, "tie_word_embeddings": False}),
    "mamba2": ("Mamba2", {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8, "state_size": 16,
                          "n_groups": 2, "chunk_size": 8}),
    "jamba": ("Jamba", {**FOUR, "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 3, "attn_layer_offset": 1,
                        "mamba_d_state": 6, "mamba_dt_rank": 5, "mamba_proj_bias": True}),
    "jamba-dense": ("Jamba", {**FOUR, "num_experts": 1, "attn_layer_period": 8, "attn_layer_offset": 2, "mamba_d_state": 4}),
    "bamba": ("Bamba", BAMBA),
    "bamba-bounded": ("Bamba", {**BAMBA, "mlp_bias": True, "attention_bias": True, "time_step_limit": [0.2, 2.0]}),
    "nemotron_h": ("NemotronH", NEMOTRON),
    "nemotron_h-bounded": ("NemotronH", {**NEMOTRON, "time_step_min": 0.7, "use_bias": True, "mlp_bias": True}),
    "qwen3_next": ("Qwen3Next", {**FOUR, **MOE, "head_dim": 16, "linear_key_head_dim": 6, "linear_value_head_dim": 4,
                                 "linear_num_key_heads": 2, "linear_num_value_heads": 6, "shared_expert_intermediate_size": 20,
                                 "layer_types": ["linear_attention", "full_attention"] * 2, "mlp_only_layers": [0],
                                 "attention_bias": True}),
}  # fmt: skip


def config_of(name):
    family, sizes = MODELS[name]
    return getattr(transformers, f"{family}{'Text' if family == 'Gemma3' else ''}Config")(**sizes)


def theirs(name):
    family = MODELS[name][0]
    torch.manual_seed(0)
    kind = getattr(transformers, f"{family}LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM")
    model = kind(config_of(name)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn_like(parameter)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_are_equal_whole_and_token_by_token_and_after_saving_back(name, tmp_path):
    model = theirs(name)
    model.save_pretrained(tmp_path / "theirs")
    ours = load_hugging_face(tmp_path / "theirs")
    ids = torch.randint(0, 97, (2, 21), generator=torch.Generator().manual_seed(1))
    want = model(ids).logits
    torch.testing.assert_close(ours.logits(ids), want, rtol=0, atol=2e-5)
    cache = ours.backbone.init_cache(2)
    steps = torch.cat([ours.logits(part, cache) for part in ids.split(1, dim=1)], dim=1)
    torch.testing.assert_close(steps, want, rtol=0, atol=2e-5)
    assert save_hugging_face(ours, tmp_path / "back") == model.config.model_type
    again = type(model).from_pretrained(tmp_path / "back").eval()
    torch.testing.assert_close(again(ids).logits, want, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_what_is_not_understood_is_refused(tmp_path):
    theirs("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "attention_multiplier": 2.0}))
    with pytest.raises(CheckpointError, match="attention_multiplier"):
        load_hugging_face(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match=r"9 tensors are missing .*layers\.2"):
        load_hugging_face(tmp_path)


@pytest.mark.slow
def test_a_mamba_that_transformers_cannot_hold_is_refused_both_ways(tmp_path):
    theirs("mamba").save_pretrained(tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    with pytest.raises(CheckpointError, match="intermediate_size is 48, but expand \\* hidden_size is 64"):
        load_hugging_face(tmp_path / "theirs")
    backbone = {"width": 16, "num_layers": 1, "pattern": [{"type": "mamba1", "negative_eigenvalues": True}], "feed_forward": None}
    heads = {"language_model": {"type": "language_model"}}
    ours = MultimodalLM(ModelConfig.model_validate({"schema": 1, "vocabulary": {"text": 9}, "backbone": backbone, "heads": heads}))
    with pytest.raises(CheckpointError, match="no family of transformers that is known here has this architecture"):
        save_hugging_face(ours, tmp_path / "ours")


LORA = """
schema: 1
name: adapted
task: {type: tabular_text, context: 400, episode: {num_rows: 6, max_shots: 4, max_columns: 2, max_classes: 3}}
data: {train: [{type: structural_tables}]}
tokenizers: {text: {type: text, path: FOLDER}}
backbone: {pretrained: FOLDER}
adapt: {lora: {rank: 4}}
train: {steps: 4, batch_size: 2, lr: 0.01, log_every: 1}
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gpt2", "mamba", "mamba2", "qwen3_next"])
def test_a_decoder_of_transformers_is_tuned_by_a_recipe_merged_and_read_back_by_transformers(name, tmp_path):
    pytest.importorskip("peft")
    family, sizes = MODELS[name]
    MODELS["wide"] = (family, {**sizes, "vocab_size": 320, **({"n_positions": 512} if name == "gpt2" else {})})
    model, folder = theirs("wide"), tmp_path / "theirs"
    model.save_pretrained(folder)
    texts = [f"Predict the outcome {number}" for number in range(50)]
    TextTokenizer(TextConfig(vocabulary_size=300)).fit(texts).save(folder)
    recipe = Recipe.read(LORA.replace("FOLDER", str(folder)), [f"output={tmp_path / 'run'}"])
    before = load(folder)
    train(recipe)
    _, task, tuned = load_run(tmp_path / "run")
    rows = len(tuned.vocabulary)
    assert rows == max(320, task.text.sizes["text"])
    convert(tmp_path / "run", tmp_path / "back")
    again = type(model).from_pretrained(tmp_path / "back").eval()
    ids = torch.randint(0, 97, (2, 21), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, tuned.logits(ids), rtol=0, atol=1e-4)
        assert (tuned.logits(ids)[..., :320] - before.logits(ids)).abs().max() > 1e-3, "training changed nothing"
    read = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "back" / "tokenizer.json"))
    text = "Predict the outcome 7<|endinput|>"
    assert read(text)["input_ids"] == task.text.ids([text])[0]


def own(pattern, head=None, **more):
    """A tiny model of ours, with weights that matter."""
    raw = {"width": 32, "num_layers": 4, "pattern": pattern, **more}
    torch.manual_seed(0)
    heads = {"language_model": {"type": "language_model", "tied": False, **(head or {})}}
    model = MultimodalLM(ModelConfig.model_validate({"schema": 1, "vocabulary": {"text": 90, "mark": 7}, "backbone": raw, "heads": heads}))
    return model.eval()


PLAIN = {"type": "attention", "num_heads": 4, "rope": None}
MAMBA2 = {"type": "mamba2", "state_size": 4, "head_size": 8}
OWN = {
    "nemotron_h": {"pattern": [{"mixer": MAMBA2, "feed_forward": None}, {"feed_forward": {"type": "relu2"}},
                               {"mixer": PLAIN, "feed_forward": None}, {"mixer": MAMBA2, "feed_forward": None}]},
    "bamba": {"pattern": [MAMBA2], "feed_forward": "swiglu"},
    "jamba": {"pattern": [{"type": "mamba1", "select_norm": True, "state_size": 4}, {"mixer": PLAIN}], "feed_forward": "swiglu"},
    "qwen3_next": {"pattern": [{"type": "deltanet", "gated": True, "key_size": 8, "num_heads": 2},
                               {"type": "attention", "num_heads": 2, "gate": True, "qk_norm": True, "qk_norm_eps": 1e-5}]},
    "mixtral": {"pattern": [{"type": "attention", "num_heads": 4}], "feed_forward": {"type": "moe"}},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", OWN)
@torch.no_grad()
def test_a_hybrid_with_default_sizes_is_read_by_transformers(kind, tmp_path):
    model = own(**OWN[kind])
    assert save_hugging_face(model, tmp_path) == kind
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(0, 97, (2, 21), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(again(ids, use_cache=False).logits, model.logits(ids), rtol=0, atol=2e-5)


ROPE = {"type": "attention", "num_heads": 4}
NEAR = {
    "a cap": ([{**ROPE, "soft_cap": 5.0}], {}, r"Nearest is llama, but .*soft_cap would be None, not 5\.0"),
    "a gate": ([{**ROPE, "gate": True}], {}, r"Nearest is llama, but .*gate would be False, not True"),
    "sinks": ([{**ROPE, "window": 4, "sinks": 1}], {}, r"sinks would be 0, not 1"),
    "scaled embeddings": ([ROPE], {"embedding_scale": 2.0}, r"embedding_scale would be 1\.0, not 2\.0"),
    "norms around": ([ROPE], {"norm_place": "around"}, r"norm_place would be before, not around"),
    "a layer that differs": ([ROPE, ROPE, ROPE, {**ROPE, "num_kv_heads": 1}], {}, r"3\.mixer\.num_kv_heads would be 4, not 1"),
    "two shared experts": ([ROPE], {"feed_forward": {"type": "moe", "num_shared": 2}}, r"num_shared would be 0, not 2"),
    "attention without a rhythm": (
        [{"type": "mamba1", "select_norm": True}, {"mixer": PLAIN}, {"mixer": PLAIN}, {"mixer": PLAIN}],
        {}, r"Nearest is jamba, but .*pattern\.1\.mixer",
    ),
    "half a width": ([{"type": "mamba1", "expand": 1.5}], {"feed_forward": None}, r"Nearest is mamba, but expand is 1\.5, which must be"),
    "another eps within": ([{**MAMBA2, "norm_eps": 0.1}], {"feed_forward": None}, r"is mamba2, but .*norm_eps would be 1e-05, not 0\.1"),
}  # fmt: skip


@pytest.mark.parametrize("name", NEAR)
def test_what_transformers_cannot_hold_is_refused_with_the_nearest_family(name, tmp_path):
    pattern, more, told = NEAR[name]
    with pytest.raises(CheckpointError, match=f"no family of transformers .*{told}"):
        save_hugging_face(own(pattern, **more), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_head_that_leaves_ids_out_is_refused_and_one_that_names_all_is_not(tmp_path):
    with pytest.raises(CheckpointError, match=r"Nearest is llama, but heads\.language_model\.ranges\.0 would be None, not text"):
        save_hugging_face(own([ROPE], head={"ranges": ["text"]}), tmp_path)
    assert save_hugging_face(own([ROPE], head={"ranges": ["mark", "text"]}), tmp_path) == "llama"


def test_models_of_the_hub_are_loaded_and_converted_with_their_tokenizer_whichever_format_they_have(tmp_path, monkeypatch):
    hub, model = {"someone/theirs": tmp_path / "theirs", "someone/ours": tmp_path / "ours"}, own([ROPE])
    save_hugging_face(model, hub["someone/theirs"])
    model.save_pretrained(hub["someone/ours"])
    text = TextTokenizer(TextConfig(vocabulary_size=300)).fit(["a red cat sat on a red mat"])
    for folder in hub.values():
        text.save(folder)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(hub[name]))
    ids = torch.arange(90)[None]
    for name in hub:
        torch.testing.assert_close(load(name).logits(ids), model.logits(ids), rtol=0, atol=1e-6)
        convert(name, tmp_path / "to" / name)
        assert load(tmp_path / "to" / name).text.ids(["a red cat"]) == text.ids(["a red cat"])


REFUSED = {
    "nemotron_h": ({"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"]}, "layers_block_type: layer 1 is 'moe'"),
    "bamba": ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}}, r"partial_rotary_factor is 0\.25; only 0\.5"),
    "gemma2": ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True; only None or False"),
    "gemma3": ({"attn_logit_softcapping": 20.0}, r"attn_logit_softcapping is 20\.0; only None"),
    "qwen3": ({"rope_parameters": {"rope_theta": 1e4, "mrope_section": [2, 3, 3]}}, "rope_parameters: unknown key 'mrope_section'"),
    "jamba": ({"mamba_inner_layernorms": False}, "mamba_inner_layernorms is False; only True"),
    "qwen3_next": ({"use_sliding_window": True}, "use_sliding_window is True; only False"),
    "qwen3_moe": ({"n_shared_experts": 1}, "unknown key 'n_shared_experts'"),
    "llama": ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, r"partial_rotary_factor is 0\.5; only 1\.0"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_keys_that_change_a_hybrid_are_refused_by_name(name, tmp_path):
    changes, told = REFUSED[name]
    (tmp_path / "config.json").write_text(json.dumps({**config_of(name).to_dict(), **changes}))
    with pytest.raises(CheckpointError, match=told):
        load_hugging_face(tmp_path)


OLDER = {
    "qwen2-window": (["layer_types"], {}),
    "gemma2": (["layer_types"], {}),
    "gemma3": (["layer_types", "rope_parameters"], {"sliding_window_pattern": 2, "rope_theta": 90.0, "rope_local_base_freq": 50.0,
                                                    "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "nemotron_h": (["layers_block_type"], {"hybrid_override_pattern": "M-*M", "num_hidden_layers": 4}),
    "qwen3_next": (["layer_types", "rope_parameters"], {"full_attention_interval": 2, "rope_theta": 1e4, "partial_rotary_factor": 0.25}),
    "bamba": (["rope_parameters"], {"rope_theta": 1e4, "mamba_d_head": "auto"}),
    "llama3-tied": (["rope_parameters"], {"rope_theta": 1e4, "rope_scaling": LLAMA3}),
    "mixtral": (["rope_parameters", "rms_norm_eps"], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", OLDER)
def test_configs_of_earlier_releases_mean_the_same(name):
    gone, added = OLDER[name]
    now = json.loads(json.dumps(config_of(name).to_dict()))
    older, family = {key: value for key, value in now.items() if key not in gone} | added, FAMILIES[now["model_type"]]
    check_keys(older, family, "config.json")
    assert gone and not differences(family.to_ours(older), family.to_ours(now))


PUBLISHED = {
    "llama": {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 1.0}},
    "qwen2": {"use_mrope": False},
    "gemma2": {"cache_implementation": "hybrid", "sliding_window_size": 5},
    "gemma3": {"cache_implementation": "hybrid"},
    "mamba": {"d_inner": 64, "d_model": 32, "n_layer": 2, "fused_add_norm": True, "pad_vocab_size_multiple": 8, "rms_norm": True,
              "ssm_cfg": {}},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_that_published_configs_hold_and_that_change_nothing_are_understood(name):
    now = json.loads(json.dumps(config_of(name).to_dict()))
    published, family = now | PUBLISHED[name], FAMILIES[now["model_type"]]
    check_keys(published, family, "config.json")
    assert not differences(family.to_ours(published), family.to_ours(now))


@torch.no_grad()
def test_a_file_written_without_the_head_is_read_and_what_ends_a_text_goes_along(tmp_path):
    mixer = {"type": "attention", "num_heads": 4, "rope": None, "qkv_bias": True, "out_bias": True}
    model = own([mixer], norm="layer", norm_eps=1e-5, learned_positions=64, feed_forward={"type": "gelu"}, head={"tied": True})
    model.stop = (96, 5)
    assert save_hugging_face(model, tmp_path) == "gpt2"
    write_tensors(tmp_path / WEIGHTS, {name.removeprefix("transformer."): each for name, each in read_tensors(tmp_path / WEIGHTS).items()})
    again, ids = load(tmp_path), torch.randint(0, 97, (2, 21), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(again.logits(ids), model.logits(ids), rtol=0, atol=1e-6)
    assert again.stop == (96, 5)
    for stop, told in (((7,), 7), ((), None)):  # with none of its own, transformers' default of the family must not end a text
        model.stop = stop
        save_hugging_face(model, tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == told
        assert load(tmp_path).stop == stop


def test_norms_stored_as_distances_from_one_are_rounded_as_such(tmp_path):
    parts = {"feed_forward": {"type": "geglu"}, "norm_place": "around", "embedding_scale": 32**0.5}
    model = own([{"type": "attention", "num_heads": 4}], **parts)
    with torch.no_grad():
        model.backbone.norm.weight.fill_(1.003)
    assert save_hugging_face(model, tmp_path, torch.bfloat16) == "gemma2"
    stored = read_tensors(tmp_path / WEIGHTS)["model.norm.weight"]
    assert stored.dtype == torch.bfloat16
    torch.testing.assert_close(stored.float(), torch.full((32,), 0.003), rtol=1e-2, atol=0)


def test_one_foreign_tensor_can_hold_rows_of_two_of_ours():
    theirs = {"a": torch.arange(6.0).view(6, 1), "b": torch.tensor([[10.0], [11.0]])}
    rules = [Rule(("a", "b"), (6, 2), torch.tensor([4, 0, 7, 6]), plus=1), Rule(("a",), (6,), torch.tensor([1, 2, 3, 5]))]
    ours = [rule.read(theirs.__getitem__) for rule in rules]
    assert [tensor.flatten().tolist() for tensor in ours] == [[5, 1, 12, 11], [1, 2, 3, 5]]
    found = {}
    for rule, tensor in zip(rules, ours, strict=True):
        rule.write(tensor, found)
    assert found.keys() == theirs.keys() and all(torch.equal(found[name], theirs[name]) for name in found)
