"""Turns at a model: one after the other, and who has gone keeps no place."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from threading import Event

import pytest

from mmlm.serving.errors import RequestError
from mmlm.serving.work import MOST_UNTAKEN, Turns


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
