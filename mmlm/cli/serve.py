"""`mmlm serve`: finished runs behind HTTP."""

from __future__ import annotations

import argparse
import secrets

from mmlm.base.errors import RecipeError, require


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of finished runs; each is a model by the name of its folder")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen; default 127.0.0.1, this machine alone")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="default 8000; 0: any that is free")
    parser.add_argument("--token", metavar="TEXT", help="what clients must send as their key; default: one made now, which is printed")
    parser.add_argument("--no-token", action="store_true", help="let every program of this machine in")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="texts that are written together; default 16")
    parser.add_argument("--queue", type=int, default=16, metavar="N", help="requests that may wait for a model; default 16")
    parser.add_argument("--seconds", type=float, default=120.0, metavar="S", help="in which an answer has to be there; default 120")


def run(arguments: argparse.Namespace) -> int:
    """Serve until interrupted."""
    from mmlm.serving.guard import LOOPBACK, Limits

    token = _token(arguments, arguments.host in LOOPBACK)
    for name, low in (("batch", 1), ("queue", 0), ("seconds", 0.1), ("port", 0)):
        if not getattr(arguments, name) >= low:  # NaN is neither
            raise RecipeError(f"mmlm serve: --{name} must be at least {low:g}, but is {getattr(arguments, name):g}.")
    uvicorn = require("uvicorn", "server")
    for module in ("fastapi", "prometheus_client", "python_multipart"):
        require(module, "server")
    from mmlm.serving.app import create_app
    from mmlm.serving.guard import port_to_listen
    from mmlm.serving.uses import uses_of

    uses = []
    for folder in arguments.runs:
        if not (found := uses_of(folder)):
            raise RecipeError(f"{folder}: its task is no use by itself, so that there is nothing to serve.")
        uses += found
    limits = Limits(seconds=arguments.seconds, waiting=arguments.queue, at_once=arguments.batch)
    app = create_app(uses, token=token, limits=limits)
    port = port_to_listen(arguments.host, arguments.port)
    address = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    print(f"serving {', '.join(app.state.server.uses)} at http://{address}:{port}/v1", flush=True)
    print("no token is asked for" if token is None else f"token: {token}", flush=True)
    uvicorn.run(app, host=arguments.host, port=port, log_level="warning", access_log=False, server_header=False)
    return 0


def _token(arguments: argparse.Namespace, is_loopback: bool) -> str | None:
    """What clients must send. Raises RecipeError where others than this machine would need none."""
    if arguments.no_token:
        if arguments.token is not None or not is_loopback:
            raise RecipeError("mmlm serve: --no-token goes with no --token, and only where this machine alone is listened to.")
        return None
    from mmlm.serving.guard import check_token

    token: str | None = arguments.token
    check_token("serve", token)
    return token or secrets.token_urlsafe(24)
