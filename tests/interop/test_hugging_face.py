"""Decoders of transformers load into our modules, compute the same, and are saved back."""

import json

import pytest
import torch

from mmlm.base.errors import CheckpointError
from mmlm.interop.hugging_face import load_hugging_face, save_hugging_face

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
