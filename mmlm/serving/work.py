"""Work on models beside the event loop: one call of a model at a time, a queue before it, and an end when nobody waits any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from threading import Event
from typing import Any, TypeVar

from mmlm.base.giving_up import unless
from mmlm.serving.errors import RequestError, busy

T = TypeVar("T")
MOST_UNTAKEN = 16


class Turns:
    """One after the other. most_waiting: beyond it `of` refuses.   waiting: who waits or is at work; who has gone is neither."""

    def __init__(self, most_waiting: int) -> None:
        self.most_waiting, self.waiting, self.lock = most_waiting, 0, asyncio.Lock()
        self.tasks: set[asyncio.Task[None]] = set()  # else nothing holds them

    async def of(self, make: Callable[[], Iterator[T]]) -> AsyncGenerator[T, None]:
        """What an iterator gives, which a thread goes through; left early, the thread ends at the next step of a model, and at the latest
        after the item that it is making. Each item holds all that came before it: of those that a slow client has not taken yet only the
        newest MOST_UNTAKEN are kept.

        Raises RequestError where too many wait, and what the iterator raises."""
        if self.waiting > self.most_waiting:
            raise busy()
        self.waiting += 1
        gone, has_turn, loop = Event(), False, asyncio.get_running_loop()
        items: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

        def put(kind: str, item: Any) -> None:
            if items.qsize() >= MOST_UNTAKEN:
                items.get_nowait()
            items.put_nowait((kind, item))

        def work() -> None:
            def tell(kind: str, item: Any) -> None:
                loop.call_soon_threadsafe(put, kind, item)

            try:
                with unless(gone):
                    for item in make():
                        if gone.is_set():
                            break
                        tell("item", item)
                tell("end", None)
            except BaseException as error:
                tell("error", error)

        async def whole() -> None:
            """Holds the turn until the thread has ended, also when nobody waits for it."""
            nonlocal has_turn
            async with self.lock:
                has_turn = True
                await asyncio.to_thread(work)

        def ended(task: asyncio.Task[None]) -> None:
            self.tasks.discard(task)
            self.waiting -= 1

        running = asyncio.create_task(whole())
        self.tasks.add(running)
        running.add_done_callback(ended)
        try:
            while True:
                kind, item = await items.get()
                if kind == "end":
                    return
                if kind == "error":
                    raise item
                yield item
        finally:
            gone.set()
            if not has_turn:
                running.cancel()


async def timed(seconds: float, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """The same items, all of which must come within so many seconds. Raises RequestError."""
    end = asyncio.get_running_loop().time() + seconds
    async with aclosing(items):
        while True:
            try:
                async with asyncio.timeout_at(end):  # of one step: who goes on may be another task
                    item = await anext(items)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise RequestError(f"the answer took longer than {seconds:g} s.", 408, "timeout") from None
            yield item


async def within(seconds: float, disconnected: Callable[[], Any], work: Any) -> Any:
    """The result of a coroutine, which is cancelled after so many seconds, or when the client has gone. Raises RequestError."""
    task = asyncio.ensure_future(work)
    end = asyncio.get_running_loop().time() + seconds
    try:
        while not task.done():
            await asyncio.wait([task], timeout=0.1)
            if task.done():
                break
            if await disconnected():
                raise RequestError("the client has gone.", 499, "client_closed")
            if asyncio.get_running_loop().time() > end:
                raise RequestError(f"the answer took longer than {seconds:g} s.", 408, "timeout")
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
