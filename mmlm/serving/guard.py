"""What stands before every request: the token, the size of the body, the time it may take to arrive, and where it comes from.

A page of another origin cannot ask: there is no CORS, and unless a token protects it, a request must name this server as its host and,
where a browser tells one, as its origin.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from mmlm.base.errors import RecipeError
from mmlm.base.files import parse_json
from mmlm.serving.errors import RequestError, busy, headers, told

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
LARGE_AT_ONCE = 4  # bodies of the largest size whose bytes all requests at work may hold: what is read of them takes several times as much
FORM = b"multipart/form-data"
OPEN = ("/health",)  # says nothing about anybody


@dataclass(frozen=True)
class Limits:
    """What one client may ask of a server. body_seconds: in which a body has to arrive.   seconds: in which an answer has to be there.
    waiting: requests that may wait for a model.   at_once: texts that are written together.   new_tokens: of one answer."""

    body_bytes: int = 32 * 2**20
    body_seconds: float = 20.0
    seconds: float = 120.0
    waiting: int = 16
    at_once: int = 16
    new_tokens: int = 4096


class Guard:
    """An ASGI application around another one. token: None lets every client of this machine in.   held: bytes of all bodies at work."""

    def __init__(self, app: Any, token: str | None, limits: Limits) -> None:
        self.app, self.token, self.limits, self.held = app, token, limits, 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        size = 0

        def hold(more: int) -> None:
            nonlocal size
            size, self.held = size + more, self.held + more
            if size > self.limits.body_bytes:
                raise self._too_large()
            if self.held > LARGE_AT_ONCE * self.limits.body_bytes:
                raise busy()

        try:
            await self._answer(scope, receive, send, hold)
        finally:
            self.held -= size

    async def _answer(self, scope: Message, receive: Receive, send: Send, hold: Callable[[int], None]) -> None:
        try:
            self._admit(scope)
            body = await asyncio.wait_for(self._body(scope, receive, hold), self.limits.body_seconds)
            if not dict(scope["headers"]).get(b"content-type", b"").lower().startswith(FORM):  # its files are of bytes
                _check_text(body)
        except TimeoutError:
            await refuse(send, RequestError("the body took too long to arrive.", 408, "timeout"))
        except RequestError as error:
            await refuse(send, error)
        except ConnectionError:
            return
        else:
            await self.app(scope, _once(body, receive), send)

    def _admit(self, scope: Message) -> None:
        given = dict(scope["headers"])
        if self.token is None:
            host = given.get(b"host", b"").decode("latin-1")
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if name not in LOOPBACK:
                raise RequestError("this server answers to this machine alone.", 403, "forbidden_host")
            if given.get(b"origin", b"http://" + host.encode("latin-1")).decode("latin-1").partition("://")[2] != host:
                raise RequestError("this server answers to no page of another origin.", 403, "forbidden_origin")
        elif scope["path"] not in OPEN:
            if not hmac.compare_digest(given.get(b"authorization", b""), b"Bearer " + self.token.encode()):
                raise RequestError("the token is missing or wrong: send it as 'Authorization: Bearer TOKEN'.", 401, "invalid_api_key")

    async def _body(self, scope: Message, receive: Receive, hold: Callable[[int], None]) -> bytes:
        """All of it. hold: told the bytes of each part, and raises where they are too many."""
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.limits.body_bytes:
            raise self._too_large()
        parts, more = list[bytes](), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
            hold(len(parts[-1]))
        return b"".join(parts)

    def _too_large(self) -> RequestError:
        return RequestError(f"the body is larger than {self.limits.body_bytes:,} bytes.", 413, "body_too_large")


def _check_text(body: bytes) -> None:
    """Raises RequestError for a body in another encoding than UTF-8, and for half a character, which JSON can write and no text holds."""
    try:
        body.decode()
    except UnicodeDecodeError:
        raise RequestError("the body is not UTF-8.") from None
    if b"\0" in body:  # none in JSON, many in UTF-16 and UTF-32
        raise RequestError("the body holds a NUL byte.")
    if b"\\ud" in body.lower():
        try:
            json.dumps(parse_json(body), ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise RequestError("a text holds half of a surrogate pair.") from None
        except (ValueError, RecursionError):
            return  # no JSON at all, which is told where it is read


def _once(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was read, then whatever else comes."""
    left = [body]

    async def give() -> Message:
        return {"type": "http.request", "body": left.pop(), "more_body": False} if left else await receive()

    return give


def port_to_listen(host: str, port: int) -> int:
    """A port of an address that is free, for 0 any. Raises RecipeError where nobody can listen there, as somebody else does."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as server:
            return int(server.getsockname()[1])
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise RecipeError(f"{host}, port {port}: nobody can listen there: {why}. Name another --port or --host.") from None


def check_token(verb: str, token: str | None) -> None:
    """Raises RecipeError for a token that is easily guessed, or that no header can hold."""
    if token is not None and (len(token) < 8 or not token.isascii() or not token.isprintable() or " " in token):
        raise RecipeError(f"mmlm {verb}: --token must be at least 8 printable ASCII characters without spaces.")


async def refuse(send: Send, error: RequestError) -> None:
    """Answer with an error."""
    content = json.dumps(told(str(error), error.status, error.code, error.param)).encode()
    own = [(name.lower().encode(), value.encode()) for name, value in headers(error.status).items()]
    given = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode()), (b"connection", b"close"), *own]
    await send({"type": "http.response.start", "status": error.status, "headers": given})
    await send({"type": "http.response.body", "body": content})
