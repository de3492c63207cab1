"""Work that nobody waits for any more."""

from __future__ import annotations

import contextvars
import itertools
from threading import Event, Thread

import pytest
import torch

from mmlm.base.giving_up import GivenUp, as_told, go_on, unless
from mmlm.generation import generate
from mmlm.kernels.decode.fast import Decoder
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


def test_what_is_told_comes_as_it_comes_and_ends_with_who_listens():
    ended = []

    def endless(tell):
        try:
            for number in itertools.count():
                tell(number)
        except BaseException as error:
            ended.append(type(error))
            raise

    pieces = as_told(endless)
    assert [next(pieces) for _ in range(3)] == [0, 1, 2]
    pieces.close()
    assert ended == [GivenUp] and list(as_told(lambda tell: tell("a"))) == ["a"]
    with pytest.raises(ZeroDivisionError):
        list(as_told(lambda tell: 1 / 0))
    unwanted = Event()
    with unless(unwanted), pytest.raises(GivenUp):  # of who listens, seen by the work
        for number in as_told(endless):
            if number == 5:
                unwanted.set()


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_models_look_before_each_step(precision, monkeypatch):
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
    unwanted.clear()
    greedy = Decoder.greedy
    monkeypatch.setattr(Decoder, "greedy", lambda *given: (unwanted.set(), greedy(*given))[1])
    with unless(unwanted), pytest.raises(GivenUp):
        generate(model, [torch.arange(3)], max_new_tokens=200, precision=precision)
    monkeypatch.undo()
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
    stop = [max(one.ids, key=one.ids.index) for one in whole[1:3]]  # what these write late
    whole = generate(model, prompts, max_new_tokens=60, stop=stop)
    monkeypatch.setattr("mmlm.decoding.STEPS_AT_ONCE", 7)
    parts = generate(model, prompts, max_new_tokens=60, stop=stop)
    lengths = {len(one.ids) for one in whole}
    assert len(lengths) > 2 and sum(10 < length < 60 for length in lengths) >= 2
    assert [one.ids for one in parts] == [one.ids for one in whole]
    assert parts[0].logs == pytest.approx(whole[0].logs, rel=2e-5)  # fewer at once are summed in another order
