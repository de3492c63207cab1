"""Continuous batching: what is written does not hang on who else is written for."""

from __future__ import annotations

from threading import Event, RLock

import pytest
import torch

from mmlm.generation import Sampling, generate
from mmlm.serving.batching import Batcher, Request
from mmlm.serving.errors import RequestError


def asked(prompt, count, temperature=0.0, seed=0):
    """A request, what is told of it, and an event when it ends."""
    told, done = [], Event()

    def tell(index, is_last):
        told.append(index)
        if is_last:
            done.set()

    return Request(prompt, count, Sampling(temperature=temperature), [], seed, tell), told, done


@pytest.mark.parametrize("at_once", [1, 3, 8])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("room", [8, 40])
def test_answers_in_a_batch_are_those_of_one_alone(text_use, at_once, temperature, room):
    model, span = text_use.model, text_use.model.vocabulary.span("text")
    draws = torch.Generator().manual_seed(1)
    prompts = [torch.randint(span.start, span.start + 250, (3 + 5 * number % 17,), generator=draws) for number in range(9)]
    batcher = Batcher(model, RLock(), at_once=at_once, most_waiting=99)
    pending = []
    for number, prompt in enumerate(prompts):
        request = asked(prompt, room + number, temperature, seed=number)
        batcher.submit(request[0])
        pending.append(request)
        if number % 3 == 2:
            pending[number - 1][2].wait(0.02)  # so that later ones join sequences that are being written
    assert all(done.wait(60) for _, _, done in pending)
    batcher.close()
    for number, (prompt, (_, told, _)) in enumerate(zip(prompts, pending, strict=True)):
        if temperature == 0:
            assert told == generate(model, [prompt], max_new_tokens=room + number)[0].ids
        alone = Batcher(model, RLock(), at_once=1, most_waiting=1)
        again, told_alone, done = asked(prompt, room + number, temperature, seed=number)
        alone.submit(again)
        assert done.wait(60) and told == told_alone
        alone.close()


def test_who_has_gone_leaves_and_the_others_go_on(text_use):
    span = text_use.model.vocabulary.span("text").start
    batcher = Batcher(text_use.model, RLock(), at_once=4, most_waiting=9)
    gone, _, _ = asked(torch.tensor([span + 5]), 100_000)
    stays, told, done = asked(torch.tensor([span + 6]), 30)
    batcher.submit(gone)
    batcher.submit(stays)
    gone.is_gone = True
    assert done.wait(30) and len(told) == 30
    batcher.submit(last := asked(torch.tensor([span + 7]), 3)[0])
    while last.left:
        pass
    assert gone not in batcher.running and len(gone.written) < 100
    batcher.close()


def test_too_many_are_refused_and_a_failure_ends_one_batch_alone(text_use, monkeypatch):
    span = text_use.model.vocabulary.span("text").start
    lock = RLock()
    with lock:  # nobody is let in
        batcher = Batcher(text_use.model, lock, at_once=1, most_waiting=2)
        requests = [asked(torch.tensor([span + 5]), 2) for _ in range(2)]
        for request, _, _ in requests:
            batcher.submit(request)
        with pytest.raises(RequestError, match="too many"):
            batcher.submit(asked(torch.tensor([span]), 1)[0])
        requests[0][0].is_gone = True  # whose place is free
        requests[0] = asked(torch.tensor([span + 5]), 2)
        batcher.submit(requests[0][0])
        monkeypatch.setattr(batcher, "_choose", lambda scores: 1 / 0)
    for _, told, done in requests:
        assert done.wait(30) and isinstance(told[0], ZeroDivisionError)
    monkeypatch.undo()
    request, told, done = asked(torch.tensor([span + 5]), 2)
    batcher.submit(request)
    assert done.wait(30) and len(told) == 2
    batcher.close()
