"""What a client is told when it cannot be served: one form, that of OpenAI, and no path of this machine."""

from __future__ import annotations

import re
from typing import Any

from mmlm.base.errors import MmlmError

PATH = re.compile(r"(?<![\w.:/])/(?:[^\s/:'\"]+/)+")
AGAIN_SECONDS = 1


class RequestError(MmlmError):
    """A request that cannot be served. status: of HTTP.   code: for programs.   param: the key at fault, where one is."""

    def __init__(self, message: str, status: int = 400, code: str = "invalid_value", param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


def busy() -> RequestError:
    """Too many wait already."""
    return RequestError("too many requests are waiting; try again later.", 429, "queue_full")


def told(message: str, status: int, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": without_paths(message), "type": kind, "param": param, "code": code}}


def headers(status: int) -> dict[str, str]:
    """What goes with an error."""
    return {429: {"Retry-After": str(AGAIN_SECONDS)}, 401: {"WWW-Authenticate": "Bearer"}}.get(status, {})


def without_paths(message: str) -> str:
    """A message with the last part of each absolute path alone."""
    return PATH.sub("", message)
