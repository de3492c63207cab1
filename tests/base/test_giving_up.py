"""Work that nobody waits for any more."""

from __future__ import annotations

import contextvars
from threading import Event, Thread

import pytest
import torch

from mmlm.base.giving_up import GivenUp, go_on, unless
from mmlm.generation import generate
from mmlm.model import MultimodalLM
from mmlm.model_config import ModelConfig


def test_it_ends_at_its_next_step_inside_and_in_threads_with_the_context_alone():
    unwanted, ended = Event(), []

    def look(name: str) -> None:
        try:
            go_on()
        except GivenUp:
            ended.append(name)

    with unless(unwanted):
        go_on()
        unwanted.set()
        with pytest.raises(GivenUp):
            go_on()
        for thread in (Thread(target=look, args=["alone"]), Thread(target=contextvars.copy_context().run, args=[look, "within"])):
            thread.start()
            thread.join()
    go_on()
    assert ended == ["within"] and not issubclass(GivenUp, Exception)


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_models_look_before_each_step(precision):
    config = {
        "schema": 1, "vocabulary": {"text": 30}, "heads": {"language_model": {"type": "language_model"}},
        "backbone": {"width": 16, "num_layers": 1, "pattern": [{"type": "attention", "num_heads": 2}]},
    }  # fmt: skip
    model, unwanted = MultimodalLM(ModelConfig.model_validate(config)).eval(), Event()
    with unless(unwanted):
        assert len(generate(model, [torch.arange(3)], max_new_tokens=200, precision=precision)[0].ids) == 200
        unwanted.set()
        with pytest.raises(GivenUp):
            generate(model, [torch.arange(3)], max_new_tokens=200, precision=precision)
        with pytest.raises(GivenUp):
            model.logits(torch.arange(3)[None])
    again = generate(model, [torch.arange(3)] * 2, max_new_tokens=150, precision=precision)
    by_layers = generate(model, [torch.arange(3)], max_new_tokens=4)[0].ids
    assert again[0].ids == again[1].ids and again[0].ids[:4] == by_layers


def test_looking_between_steps_of_the_decoder_changes_nothing(monkeypatch):
    config = {
        "schema": 1, "vocabulary": {"text": 60}, "heads": {"language_model": {"type": "language_model"}},
        "backbone": {"width": 32, "num_layers": 2, "pattern": [{"type": "mamba2", "head_size": 16, "state_size": 8}]},
    }  # fmt: skip
    torch.manual_seed(0)
    model = MultimodalLM(ModelConfig.model_validate(config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    prompts = [torch.arange(start, start + 5) for start in (0, 11, 23, 31)]
    whole = generate(model, prompts, max_new_tokens=60)
    stop = [whole[0].ids[2], whole[1].ids[17]]
    whole = generate(model, prompts, max_new_tokens=60, stop=stop)
    monkeypatch.setattr("mmlm.decoding.STEPS_AT_ONCE", 7)
    parts = generate(model, prompts, max_new_tokens=60, stop=stop)
    lengths = {len(one.ids) for one in whole}
    assert len(lengths) > 2 and any(1 < length < 60 for length in lengths) and len(set(whole[-1].ids)) > 5
    assert [one.ids for one in parts] == [one.ids for one in whole] and parts[0].logs == pytest.approx(whole[0].logs)
