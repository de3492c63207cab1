"""Chats: a text that a text run continues, written in the batch of all who ask it, and questions about pictures."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from mmlm.base.errors import DataError
from mmlm.generation import Sampling
from mmlm.serving.asked import Chat
from mmlm.serving.batching import Batcher
from mmlm.serving.batching import Request as Written
from mmlm.serving.errors import RequestError
from mmlm.serving.figures import Figures
from mmlm.serving.guard import Limits
from mmlm.serving.uses import Use
from mmlm.serving.work import timed
from mmlm.tasks.text import TextTask
from mmlm.tokenizers.growing import GrowingText

USUAL_NEW_TOKENS = 128
MOST_PROMPT = 20_000  # characters


def is_writer(use: Use) -> bool:
    """Whether a use continues texts, so that its requests are batched."""
    return isinstance(use.task, TextTask)


def picture_question(use: Use, asked: Chat) -> dict[str, Any]:
    """Inputs of a use that is asked about a picture. Raises RequestError, also for what would change nothing."""
    wanted, most = asked.max_completion_tokens or asked.max_tokens, getattr(use.task.config, "max_tokens", 0)
    if wanted is not None and wanted < most:
        raise RequestError(f"max_tokens: answers about pictures may have {most}; ask for as many or leave it out.", param="max_tokens")
    is_drawn, can_draw = asked.temperature > 0, "temperature" in use.inputs
    idle = {"temperature": is_drawn and not can_draw, "top_p": is_drawn and asked.top_p < 1, "stop": bool(asked.stop)}
    if refused := [key for key, is_idle in idle.items() if is_idle]:
        said = f"{refused[0]}: has no effect on answers about pictures; leave it out."
        raise RequestError(said, code="unsupported_parameter", param=refused[0])
    if len(asked.messages) > 1:
        raise RequestError(f"this model reads one message, that with the picture, but {len(asked.messages)} were sent.", param="messages")
    (message,) = asked.messages
    pictures = message.pictures
    if len(pictures) != 1:
        raise RequestError(f"this model looks at one picture, but {len(pictures)} were sent.", param="messages")
    words = message.text.strip()
    given: dict[str, Any] = {"image": pictures[0], **({"temperature": asked.temperature, "seed": asked.seed} if is_drawn else {})}
    if words and "words" in use.inputs:
        options = getattr(use.inputs["kind"], "options", ())
        kind = next((kind for kind in ("question", "expression") if kind in options), None)
        if kind is None:
            raise RequestError("this model describes pictures and takes no words; send the picture alone.", param="messages")
        given |= {"kind": kind, "words": words}
    return given


def picture_events(name: str, found: Mapping[str, Any], boxes: Any) -> Iterator[dict[str, Any]]:
    """An answer about a picture, which is there whole, in the pieces of a stream."""
    event = events_of(name)
    yield event({"role": "assistant", "content": found["text"]})
    yield {**event({}, "stop"), "boxes": boxes}


def events_of(name: str) -> Callable[..., dict[str, Any]]:
    """What makes an event of a stream, as OpenAI has them, from what is new and why the answer ends, if it does."""
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion.chunk", "created": int(time.time()), "model": name}
    return lambda delta, reason=None: {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


@dataclass
class Writing:
    """A text that is being written. count: tokens of it so far.   said: what of it clients were told.   reason: why it ended."""

    request: Written
    queue: asyncio.Queue[tuple[int | Exception, bool]]
    stops: list[str]
    count: int = 0
    said: str = ""
    reason: str = "length"

    @property
    def usage(self) -> dict[str, int]:
        """Its tokens, as OpenAI counts them."""
        read = len(self.request.prompt)
        return {"prompt_tokens": read, "completion_tokens": self.count, "total_tokens": read + self.count}

    async def told(self) -> AsyncGenerator[tuple[int | Exception, bool], None]:
        """(id or what went wrong, whether it is the last one)."""
        while True:
            yield await self.queue.get()


class Writer:
    """Continues texts by a run of texts."""

    def __init__(self, use: Use, limits: Limits, figures: Figures) -> None:
        self.use, self.limits, self.figures = use, limits, figures
        self.task: TextTask = use.task
        self.span = use.model.vocabulary.span("text")
        self.batcher = Batcher(use.model, use.lock, at_once=limits.at_once, most_waiting=limits.waiting)

    def begin(self, asked: Chat) -> Writing:
        """Ask for a text. Raises RequestError for a prompt that cannot be continued, and where too many wait."""
        if any(message.pictures for message in asked.messages):
            raise RequestError("this model sees no pictures.", param="messages")
        text = "\n".join(message.text for message in asked.messages)
        if not text.strip() or "\0" in text or len(text) > MOST_PROMPT:
            raise RequestError(f"messages: must hold 1 to {MOST_PROMPT:,} characters, none of them NUL.", param="messages")
        count = asked.max_completion_tokens or asked.max_tokens or USUAL_NEW_TOKENS
        if count > self.limits.new_tokens:
            raise RequestError(f"max_tokens: at most {self.limits.new_tokens:,} are allowed.", param="max_tokens")
        try:
            prompt = self.task.prompt(self.use.model, text, count)
        except DataError as error:
            raise RequestError(str(error), 400, "context_length_exceeded", "messages") from None
        sampling = Sampling(temperature=asked.temperature, top_p=None if asked.top_p == 1 else asked.top_p)
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[tuple[int | Exception, bool]]()

        def tell(index: int | Exception, is_last: bool) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(queue.put_nowait, (index, is_last))

        stop = [self.span.start + each for each in self.task.ends]
        request = Written(prompt, count, sampling, stop, asked.seed, tell)
        stops = [asked.stop] if isinstance(asked.stop, str) else list(asked.stop or [])
        self.batcher.submit(request)
        return Writing(request, queue, [each for each in stops if each])

    async def pieces(self, writing: Writing) -> AsyncGenerator[str, None]:
        """Text as it is written. Raises RequestError after the seconds allowed; left early, the text is given up."""
        growing, text, is_last = GrowingText(self.task.text.decode), "", False
        try:
            async with aclosing(timed(self.limits.seconds, writing.told())) as told:
                while not is_last:
                    index, is_last = await anext(told)
                    if isinstance(index, Exception):
                        raise index
                    self.figures.tokens.inc()
                    if index in writing.request.stop:
                        writing.reason = "stop"
                    else:
                        writing.count += 1
                        text += growing.push(index - self.span.start) if index in self.span else ""
                    text += growing.flush() if is_last else ""
                    end, begun = len(text) if is_last else _settled(text, writing.stops), len(writing.said)
                    if ends := [at for stop in writing.stops if (at := text.find(stop, begun)) >= 0]:
                        end, is_last, writing.reason = min(ends), True, "stop"
                    if end > begun:
                        writing.said = text[:end]
                        yield text[begun:end]
        finally:
            writing.request.is_gone = True

    async def whole(self, writing: Writing) -> None:
        """Until it is written."""
        async for _ in self.pieces(writing):
            pass

    async def events(self, name: str, writing: Writing, *, with_usage: bool = False) -> AsyncGenerator[dict[str, Any], None]:
        """The answer in pieces, as OpenAI has them. with_usage: a last one counts the tokens."""
        event = events_of(name)
        try:
            yield event({"role": "assistant", "content": ""})
            async with aclosing(self.pieces(writing)) as pieces:
                async for piece in pieces:
                    yield event({"content": piece})
        finally:
            writing.request.is_gone = True  # also where nobody asked for the first piece
        yield event({}, writing.reason)
        if with_usage:
            yield {**event({}), "choices": [], "usage": writing.usage}


def _settled(text: str, stops: list[str]) -> int:
    """Characters without what may be the beginning of a stop."""
    return len(text) - max((size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0)
