"""The server: finished runs behind HTTP, as OpenAI's clients ask where they have a form for it, else by what their tasks declare.

    GET  /health   /metrics   /v1/models   /v1/models/{id}   /v1/tasks
    POST /v1/chat/completions   /v1/audio/speech   /v1/audio/transcriptions   /v1/embeddings   /v1/tabular/predict   /v1/tasks/{type}

Who is asked is a name of /v1/models, never a path; files come inside the request and nothing is fetched or kept.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException

from mmlm.base.errors import DataError, MissingExtra, MmlmError, RecipeError, unknown_name
from mmlm.base.giving_up import go_on
from mmlm.serving.asked import AnyTask, Asked, Chat, Embeddings, Predict, Speech, transcription_of
from mmlm.serving.chat import Writer, is_writer, picture_events, picture_question
from mmlm.serving.errors import RequestError, headers, told
from mmlm.serving.figures import Figures, Measured
from mmlm.serving.guard import Guard, Limits, Message, Receive, Send
from mmlm.serving.uses import TABLE_INPUTS, Use
from mmlm.serving.values import from_json, open_wav_head, pictures_of, sound_file, sounds_of, texts_of, to_json
from mmlm.serving.work import Turns, timed, within
from mmlm.sound import Sound
from mmlm.tasks.forms import MOST_SMILES, MOST_TEXT

T = TypeVar("T")
logger = logging.getLogger(__name__)
router = APIRouter()
SOUNDS = {"wav": "audio/wav", "flac": "audio/flac", "pcm": "audio/pcm"}


class Server:
    """The uses of all runs by the names of their models, and what works for them."""

    def __init__(self, uses: Sequence[Use], limits: Limits) -> None:
        self.limits, self.figures, self.started = limits, Figures(), int(time.time())
        runs = [use.run for use in uses]
        self.uses = {use.run.name if runs.count(use.run) == 1 else f"{use.run.name}/{use.name}": use for use in uses}
        if len(self.uses) < len(uses):
            raise RecipeError("two of the runs have one name, by which clients ask for them; rename a folder.")
        by_lock = {id(use.lock): Turns(limits.waiting) for use in uses}
        self.turns = {name: by_lock[id(use.lock)] for name, use in self.uses.items()}
        self.writers = {name: Writer(use, limits, self.figures) for name, use in self.uses.items() if is_writer(use)}
        self.encoders: dict[Path, Any] = {}  # by the folders of the runs

    def close(self) -> None:
        """End all threads."""
        for writer in self.writers.values():
            writer.batcher.close()

    def chosen(self, asked: Asked, fits: Callable[[Use], bool], what: str) -> tuple[str, Use]:
        """The model that a request is for. Raises RequestError where there is none that does this."""
        asked.check_rest()
        able = [name for name, use in self.uses.items() if fits(use)]
        if asked.model is not None and asked.model not in self.uses:
            raise RequestError(unknown_name("model", asked.model, self.uses), 404, "model_not_found", "model")
        if not able or (asked.model is not None and asked.model not in able):
            those = f"; those that do: {', '.join(able)}" if able else ""
            raise RequestError(f"{asked.model or 'no model here'} does not {what}{those}.", 404, "model_not_able", "model")
        if asked.model is None and len(able) > 1:
            raise RequestError(f"several models can do this; say which: {', '.join(able)}.", param="model")
        name = asked.model or able[0]
        return name, self.uses[name]

    def at_work(self) -> dict[str, tuple[int, int]]:
        """{model: (answers being made, requests that wait)}. Tasks of one run wait for one another, and each tells of all."""
        found = {}
        for name, turns in self.turns.items():
            running, waiting = int(turns.lock.locked()), turns.waiting - int(turns.lock.locked())
            if (writer := self.writers.get(name)) is not None:
                running, waiting = running + len(writer.batcher.running), waiting + len(writer.batcher.waiting)
            found[name] = (running, waiting)
        return found

    async def steps(self, name: str, given: dict[str, Any]) -> AsyncGenerator[Any, None]:
        """Outputs of a use for values in JSON's form, those that are there already, the whole ones last. Raises RequestError after the
        seconds allowed."""
        use = self.uses[name]
        async for values in timed(self.limits.seconds, self.turns[name].of(lambda: use.answer(from_json(use.inputs, given)))):
            yield values

    async def answer(self, request: Request, name: str, given: dict[str, Any]) -> dict[str, Any]:
        """All outputs of a use for values in JSON's form."""

        async def last() -> Any:
            found: Any = {}
            async with aclosing(self.steps(name, given)) as steps:
                async for values in steps:
                    found = values
            return found

        found: dict[str, Any] = await within(self.limits.seconds, request.is_disconnected, last())
        return found


def create_app(uses: Sequence[Use], *, token: str | None, limits: Limits | None = None) -> FastAPI:
    """The application. token: what clients must send; None lets all of this machine in. Raises RecipeError for runs of one name."""
    limits = limits or Limits()
    server = Server(uses, limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        server.close()

    app = FastAPI(title="mmlm", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, lifespan=lifespan)
    app.state.server = server
    app.include_router(router)
    app.add_middleware(Failures)
    app.add_middleware(Measured, figures=server.figures)
    app.add_middleware(Guard, token=token, limits=limits)
    for kind, answer in ((MmlmError, _mistake), (RequestValidationError, _invalid), (HTTPException, _unknown)):
        app.add_exception_handler(kind, answer)
    return app


def _error(message: str, status: int, code: str | None = None, param: str | None = None) -> JSONResponse:
    return JSONResponse(told(message, status, code, param), status, headers(status))


async def _mistake(_: Request, error: Any) -> Response:
    if isinstance(error, RequestError):
        return _error(str(error), error.status, error.code, error.param)
    if isinstance(error, MissingExtra):
        return _error("this server lacks a package that this needs.", 501, "missing_package")
    if isinstance(error, DataError | RecipeError):
        return _error(str(error), 400, "invalid_value")
    return _failed(error)


async def _invalid(_: Request, error: Any) -> Response:
    first = error.errors()[0]
    where = ".".join(str(part)[:60] for part in first["loc"][1:])
    return _error(f"{where or 'body'}: {first['msg']}.", 400, "invalid_value", where or None)


async def _unknown(_: Request, error: Any) -> Response:
    return _error(str(error.detail), error.status_code)


def _failed(error: Exception) -> Response:
    number = uuid.uuid4().hex[:12]
    logger.error("request failed, %s", number, exc_info=error)
    return _error(f"the server failed; its log tells more under {number}.", 500, "internal_error")


class Failures:
    """An ASGI application around another one, which answers what fails inside before an answer begins. FastAPI's own handler of all
    exceptions raises them again outside of everything, where they are not counted and end the connection that others use after it."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request."""
        has_begun = False

        async def noted(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception as error:
            if has_begun or scope["type"] != "http":
                raise
            await _failed(error)(scope, receive, send)


def _server(request: Request) -> Server:
    server: Server = request.app.state.server
    return server


@router.get("/health")
async def health() -> dict[str, str]:
    """Whether it answers."""
    return {"status": "ok"}


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Counts in the form of Prometheus."""
    server = _server(request)
    content, kind = server.figures.text(server.at_work())
    return Response(content, media_type=kind)


def _card(server: Server, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": server.started, "owned_by": "mmlm", "task": server.uses[name].type}


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The models that can be asked."""
    server = _server(request)
    return {"object": "list", "data": [_card(server, name) for name in server.uses]}


@router.get("/v1/models/{name:path}")
async def model(name: str, request: Request) -> dict[str, Any]:
    """One of them."""
    server = _server(request)
    if name not in server.uses:
        raise RequestError(unknown_name("model", name, server.uses), 404, "model_not_found", "model")
    return _card(server, name)


@router.get("/v1/tasks")
async def tasks(request: Request) -> dict[str, Any]:
    """What each model is asked with and answers, as its task declares it."""
    found = []
    for name, use in _server(request).uses.items():
        fields = [
            {key: {"type": type(one).__name__.lower(), **to_json(vars(one))} for key, one in some.items()}
            for some in (use.inputs, use.outputs)
        ]
        found.append({"model": name, "task": use.type, "inputs": fields[0], "outputs": fields[1]})
    return {"object": "list", "data": found}


@router.post("/v1/tasks/{kind}")
async def any_task(kind: str, asked: AnyTask, request: Request) -> Response:
    """Any task, by its declared inputs and outputs; streamed, an event for what is there already, the last one whole."""
    server = _server(request)
    name, use = server.chosen(asked, lambda use: use.type == kind, f"do the task {kind[:60]!r}")
    if not asked.stream:
        return JSONResponse({"model": name, "outputs": to_json(await server.answer(request, name, asked.inputs))})

    async def events() -> AsyncGenerator[Any, None]:
        async with aclosing(server.steps(name, asked.inputs)) as steps:
            async for values in steps:
                yield {"model": name, "outputs": to_json(values)}

    return await streamed(request, events())


@router.post("/v1/chat/completions")
async def chat(asked: Chat, request: Request) -> Response:
    """Text that goes on, or an answer about a picture."""
    server = _server(request)
    name, use = server.chosen(asked, lambda use: is_writer(use) or "image" in use.inputs and "text" in use.outputs, "chat")
    if (writer := server.writers.get(name)) is None:
        given = picture_question(use, asked)
        if asked.stream:
            return await streamed(request, _seen(server, request, name, given), done="[DONE]")
        found = await server.answer(request, name, given)
        return JSONResponse(writer_form(name, found["text"], "stop", boxes=to_json(found.get("boxes"))))
    text = writer.begin(asked)
    if asked.stream:
        with_usage = asked.stream_options is not None and asked.stream_options.include_usage
        return await streamed(request, writer.events(name, text, with_usage=with_usage), done="[DONE]")
    await within(server.limits.seconds, request.is_disconnected, writer.whole(text))
    return JSONResponse(writer_form(name, text.said, text.reason, usage=text.usage))


async def _seen(server: Server, request: Request, name: str, given: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    """An answer about a picture as a stream."""
    found = await server.answer(request, name, given)
    for event in picture_events(name, found, to_json(found.get("boxes"))):
        yield event


def writer_form(name: str, text: str, reason: str, **more: Any) -> dict[str, Any]:
    """A whole answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason, "logprobs": None}
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion", "created": int(time.time()), "model": name}
    return {**head, "choices": [choice], **{key: value for key, value in more.items() if value is not None}}


async def begun(request: Request, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """The same items, of which the first one is there, so that what goes wrong before it is an answer of its own. Raises RequestError also
    where the client goes before it."""

    async def first_one() -> list[T]:
        try:
            return [await anext(items)]
        except StopAsyncIteration:
            return []

    first = await within(_server(request).limits.seconds, request.is_disconnected, first_one())

    async def all_of_them() -> AsyncGenerator[T, None]:
        async with aclosing(items):
            for item in first:
                yield item
            async for item in items:
                yield item
                await asyncio.sleep(0)  # however fast they come: so it is seen when the client has gone, and others have their turn

    return all_of_them()


async def streamed(request: Request, events: AsyncGenerator[Any, None], done: str | None = None) -> Response:
    """Server-sent events. What goes wrong before the first one is an answer of its own, later an event."""
    events = await begun(request, events)

    async def lines() -> AsyncIterator[str]:
        try:
            async for event in events:
                yield f"data: {json.dumps(event)}\n\n"
        except MmlmError as error:
            status = error.status if isinstance(error, RequestError) else 400
            yield f"data: {json.dumps(told(str(error), status))}\n\n"
        except Exception as error:
            yield f"data: {bytes(_failed(error).body).decode()}\n\n"
        finally:
            await events.aclose()
        if done is not None:
            yield f"data: {done}\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@router.post("/v1/audio/speech")
async def speech(asked: Speech, request: Request) -> Response:
    """A text as sound."""
    server = _server(request)
    name, use = server.chosen(asked, lambda use: "text" in use.inputs and "audio" in use.outputs, "speak")
    if asked.voice != "default":
        raise RequestError("voice: there are no named voices; say 'default'.", param="voice")
    given: dict[str, Any] = {"text": asked.input} | ({"seed": asked.seed} if "seed" in use.inputs else {})
    if "pace" in use.inputs:
        given["pace"] = asked.speed
    elif asked.speed != 1:
        raise RequestError("speed: this model keeps its own pace; leave it out.", param="speed")
    if asked.stream_format is not None:
        return await _in_pieces(request, server.steps(name, given), asked)
    sound = (await server.answer(request, name, given))["audio"]
    return Response(sound_file(sound, asked.response_format), media_type=SOUNDS[asked.response_format],
                    headers={"X-Sample-Rate": str(sound.rate_hz)})  # fmt: skip


async def _in_pieces(request: Request, steps: AsyncGenerator[Any, None], asked: Speech) -> Response:
    """Speech while it is written, as bytes or as events. Raises RequestError for a form of file that is written whole."""
    form = asked.response_format
    if form == "flac":
        raise RequestError("stream_format: flac comes whole; ask for wav or pcm, or leave it out.", param="stream_format")

    async def pieces() -> AsyncGenerator[tuple[int, bytes], None]:
        count = 0
        async with aclosing(steps):
            async for values in steps:
                sound: Sound = values["audio"]
                if len(sound.wave_n) > count:
                    head = open_wav_head(sound.rate_hz) if form == "wav" and not count else b""
                    yield sound.rate_hz, head + sound_file(Sound(sound.wave_n[count:], sound.rate_hz), "pcm")
                    count = len(sound.wave_n)

    async def events() -> AsyncGenerator[Any, None]:
        async with aclosing(pieces()) as found:
            async for _, data in found:
                yield {"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()}
        yield {"type": "speech.audio.done", "usage": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}}

    if asked.stream_format == "sse":
        return await streamed(request, events())
    found = await begun(request, pieces())
    rate_hz, first = await anext(found)

    async def data() -> AsyncIterator[bytes]:
        async with aclosing(found):
            yield first
            async for _, piece in found:
                yield piece

    return StreamingResponse(data(), media_type=SOUNDS[form], headers={"X-Sample-Rate": str(rate_hz), "Cache-Control": "no-store"})


@router.post("/v1/audio/transcriptions")
async def transcriptions(request: Request) -> Response:
    """A sound as text, by a run whose task takes the one and answers with the other."""
    server = _server(request)
    asked, data = await transcription_of(request)
    name, use = server.chosen(asked, lambda use: "audio" in use.inputs and "text" in use.outputs, "write down speech")
    if data is None:
        raise RequestError("file: is missing; send the sound as a file of the form.", param="file")
    given = {"audio": base64.b64encode(data).decode(), **asked.given(use.inputs)}
    if asked.stream:
        return await streamed(request, _written_down(server.steps(name, given)))
    text = (await server.answer(request, name, given))["text"]
    return PlainTextResponse(text) if asked.response_format == "text" else JSONResponse({"text": text})


async def _written_down(steps: AsyncGenerator[Any, None]) -> AsyncGenerator[dict[str, str], None]:
    """A text while it grows, as OpenAI's events."""
    text = ""
    async with aclosing(steps):
        async for values in steps:
            begun, text = len(text), values.get("text") or text
            if len(text) > begun:
                yield {"type": "transcript.text.delta", "delta": text[begun:]}
    yield {"type": "transcript.text.done", "text": text}


@router.post("/v1/embeddings")
async def embeddings(asked: Embeddings, request: Request) -> Response:
    """Vectors of sounds, pictures or molecules by the encoder of a run."""
    server = _server(request)
    name, use = server.chosen(asked, lambda use: True, "embed")
    items = [asked.input] if isinstance(asked.input, str) else asked.input
    if not 1 <= len(items) <= 2048:
        raise RequestError("input: must be 1 to 2,048 items.", param="input")

    def encode() -> Any:
        with use.lock:
            yield _encoded(server, name, use, items)

    async def last() -> np.ndarray:
        async with aclosing(server.turns[name].of(encode)) as found:
            vectors: np.ndarray = await anext(found)
            return vectors

    vectors = await within(server.limits.seconds, request.is_disconnected, last())
    as_is = asked.encoding_format == "float"
    rows = [row.tolist() if as_is else base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
    return JSONResponse({"object": "list", "model": name, "data": data, "usage": {"prompt_tokens": 0, "total_tokens": 0}})


def _encoded(server: Server, name: str, use: Use, items: list[str]) -> np.ndarray:
    """Vectors [items, size]. Raises RequestError for a run without an encoder."""
    from mmlm.embedding import Embedder, PictureEmbedder, TextEmbedder, encoder_of_run

    if use.run not in server.encoders:
        opened = {each.name: (each.task, each.model) for each in server.uses.values() if each.run == use.run}
        try:
            server.encoders[use.run] = encoder_of_run(use.run, opened)
        except RecipeError:
            raise RequestError(f"{name} has no encoder.", 404, "model_not_able", "model") from None
    found = server.encoders[use.run]
    given: list[Any]
    if isinstance(found, Embedder):
        given = sounds_of("input", items)
    elif isinstance(found, PictureEmbedder):
        given = pictures_of("input", items)
    else:
        given = texts_of("input", items, MOST_TEXT if isinstance(found, TextEmbedder) else MOST_SMILES)
    return np.asarray(found.encode(given, progress=lambda *_: go_on()), dtype=np.float32)


@router.post("/v1/tabular/predict")
async def predict(asked: Predict, request: Request) -> Response:
    """A column of rows from example rows."""
    server = _server(request)
    name, _ = server.chosen(asked, lambda use: use.inputs is TABLE_INPUTS, "predict columns of tables")
    found = await server.answer(request, name, {"shots": asked.examples, "table": asked.rows, "target": asked.target})
    predictions = [row[asked.target] for row in found["table"]]
    return JSONResponse({"model": name, "predictions": to_json(predictions), "probabilities": to_json(found["probabilities"])})
