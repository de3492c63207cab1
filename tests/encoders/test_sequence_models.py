"""Pretrained models of sequences from folders of transformers: the states that transformers itself computes, without what frames a text."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import mmlm
from mmlm.base.errors import CheckpointError, DataError, RecipeError

transformers = pytest.importorskip("transformers")
LETTERS = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWC", "<mask>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("esm")
    (folder / "vocab.txt").write_text("\n".join(LETTERS) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    places = {"position_embedding_type": "rotary", "max_position_embeddings": 40}
    config = transformers.EsmConfig(vocab_size=len(LETTERS), pad_token_id=1, mask_token_id=len(LETTERS) - 1, **sizes, **places)
    transformers.EsmForMaskedLM(config).save_pretrained(folder)  # without a pooler, as ESM-2 comes
    transformers.EsmTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def test_vectors_are_means_of_the_last_states_whatever_is_read_together(folder):
    own = mmlm.encoder("sequence_model", path=str(folder))
    items = ["MKTLLI", "GAV", "WWCCHHKKRRSS"]
    found = own.encode(items)
    model, tokenizer = transformers.EsmForMaskedLM.from_pretrained(folder).eval(), transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        states = [model.esm(**tokenizer(item, return_tensors="pt")).last_hidden_state[0, 1:-1] for item in items]
    assert found.dtype == np.float32 and np.allclose(found, [each.mean(0).numpy() for each in states], atol=1e-5)
    assert np.allclose(found, own.encode(items, batch_size=1), atol=1e-5) and own.encode([]).shape == (0, own.size) == (0, 16)
    assert np.allclose(np.linalg.norm(own.encode_texts(items, normalize=True), axis=1), 1, atol=1e-5)
    assert own.fingerprint == mmlm.encoder(f"{{type: sequence_model, path: {folder}}}").fingerprint


def test_what_it_does_not_know_or_cannot_read_is_told(folder, tmp_path):
    own = mmlm.encoder("sequence_model", path=str(folder))
    for item, told in (("MKJ", "text 1: 'MKJ' holds what the tokenizer of"), ("", "text 1: holds no token"), ("A" * 60, "has 62 tokens")):
        with pytest.raises(DataError, match=told):
            own.encode(["AAA", item])
    with pytest.raises(RecipeError, match="precision must be auto or fp32"):
        own.encode(["A"], precision="bf16")
    with pytest.raises(CheckpointError, match="config.json is missing"):
        mmlm.encoder("sequence_model", path=str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing known"}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot be read by transformers"):
        mmlm.encoder("sequence_model", path=str(tmp_path))


def test_a_folder_without_some_weights_is_refused_and_not_filled_up(folder, tmp_path):
    model = transformers.EsmForMaskedLM.from_pretrained(folder)
    held = {name: value for name, value in model.state_dict().items() if "layer.1." not in name}
    model.save_pretrained(tmp_path, state_dict=held)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="lacks weights: encoder.layer.1."):
        mmlm.encoder("sequence_model", path=str(tmp_path))
