"""Turns at a model: one after the other, and who has gone keeps no place."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from threading import Event

import httpx
import numpy as np
import pytest

from mmlm.serving.errors import RequestError
from mmlm.serving.work import MOST_UNTAKEN, Turns
from mmlm.sound import Sound
from mmlm.tasks import forms

from .conftest import TOKEN, listening
from .test_server import own


async def first(turns, items):
    async with aclosing(turns.of(items)) as found:
        return await anext(found)


def test_who_gave_up_waiting_leaves_the_place_to_others():
    free = Event()

    def slow():
        free.wait(30)
        yield 1

    async def all_of_them():
        turns = Turns(1)
        at_work = asyncio.create_task(first(turns, slow))
        waits = asyncio.create_task(first(turns, lambda: iter([2])))
        while turns.waiting < 2:
            await asyncio.sleep(0.01)
        with pytest.raises(RequestError, match="too many"):
            await first(turns, lambda: iter([3]))
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        await asyncio.sleep(0.01)
        comes = asyncio.create_task(first(turns, lambda: iter([4])))
        await asyncio.sleep(0.01)
        free.set()
        assert (await at_work, await comes) == (1, 4)
        while turns.waiting:
            await asyncio.sleep(0.01)
        assert not turns.tasks

    asyncio.run(asyncio.wait_for(all_of_them(), 60))


def test_a_slow_client_is_told_the_newest_and_what_it_did_not_take_is_not_kept():
    done = Event()

    def many():
        yield from range(200)
        done.set()

    async def slowly():
        async with aclosing(Turns(1).of(many)) as found:
            taken = [await anext(found)]
            await asyncio.to_thread(done.wait, 30)
            await asyncio.sleep(0.05)
            return taken + [item async for item in found]

    found = asyncio.run(asyncio.wait_for(slowly(), 60))
    assert found[-1] == 199 and found == sorted(found) and len(found) <= MOST_UNTAKEN


@pytest.mark.parametrize(
    ("path", "more"),
    [("/v1/tasks/loud", {"inputs": {"text": "a"}, "stream": True}), ("/v1/audio/speech", {"input": "a", "stream_format": "audio"})],
)
def test_a_stream_that_comes_faster_than_it_is_sent_is_not_written_to_who_has_gone(path, more, caplog):
    def loud(given):
        for size in range(1, 2000):
            yield {"audio": Sound(np.ones(4 * size, dtype=np.float32), 8000)}

    with listening([own("loud", {"text": forms.Text("Text")}, {"audio": forms.Audio("Speech")}, loud)]) as (address, server):
        with (
            httpx.Client(headers={"Authorization": f"Bearer {TOKEN}"}) as client,
            client.stream("POST", address + path, json=more) as answer,
        ):
            assert answer.status_code == 200
        began = time.monotonic()
        while server.turns["loud"].waiting and time.monotonic() - began < 10:
            time.sleep(0.01)
    assert not [line for line in caplog.messages if "socket.send" in line]
