"""Decoders of transformers load into our modules, compute the same, and are saved back."""

import json

import pytest
import torch

from mmlm.base.errors import CheckpointError
from mmlm.interop.hugging_face import load_hugging_face, save_hugging_face
from mmlm.interop.load import convert, load
from mmlm.model import MultimodalLM
from mmlm.model_config import ModelConfig
from mmlm.recipe import Recipe
from mmlm.run import load_run, train
from mmlm.tokenizers.config import TextConfig
from mmlm.tokenizers.text import TextTokenizer

transformers = pytest.importorskip("transformers")
SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
MODELS = {
    "llama": ("Llama", SIZES),
    "llama3-tied": ("Llama", {**SIZES, "rope_scaling": LLAMA3, "tie_word_embeddings": True}),
    "yarn": ("Llama", {**SIZES, "rope_scaling": YARN}),
    "mistral": ("Mistral", {**SIZES, "sliding_window": 5}),
    "qwen2": ("Qwen2", SIZES),
    "qwen3": ("Qwen3", {**SIZES, "head_dim": 16}),
    "gpt2": ("GPT2", {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "mamba": ("Mamba", {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 5}),
    "mamba-untied": ("Mamba", {"vocab_size": 97, "hidden_size": 24, "num_hidden_layers": 2, "state_size": 16, "expand": 3, "use_bias": True,
                               "use_conv_bias": False, "conv_kernel": 3, "time_step_rank": 5, "tie_word_embeddings": False}),
    "mamba2": ("Mamba2", {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8, "state_size": 16,
                          "n_groups": 2, "chunk_size": 8}),
}  # fmt: skip


def theirs(name):
    family, sizes = MODELS[name]
    torch.manual_seed(0)
    kind = getattr(transformers, f"{family}LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM")
    model = kind(getattr(transformers, f"{family}Config")(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
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
    torch.testing.assert_close(ours.logits(ids), want, rtol=0, atol=1e-4)
    cache = ours.backbone.init_cache(2)
    steps = torch.cat([ours.logits(part, cache) for part in ids.split(1, dim=1)], dim=1)
    torch.testing.assert_close(steps, want, rtol=0, atol=1e-4)
    save_hugging_face(ours, tmp_path / "back")
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
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gpt2", "mamba", "mamba2"])
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
