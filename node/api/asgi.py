"""The few things that all endpoints do with a request and an answer, without a framework's cost."""

from __future__ import annotations

from typing import Any

import trio
from starlette.types import Receive, Scope, Send

from .errors import ApiError
from .recording import SIGNALS

CLIENT_CHARS_MAX = 60
CONVERSATION_CHARS_MAX = 200

Headers = list[tuple[bytes, bytes]]


async def respond(send: Send, status: int, body: bytes, headers: Headers | None = None) -> None:
    """Send a whole answer in JSON."""
    whole: Headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *(headers or []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": whole})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def body_of(receive: Receive) -> bytes:
    """The whole body: the guard has it already, under a cap and a deadline."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(400, "the request ended before its body did", kind="cut_short")
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def until_gone(receive: Receive, scope: trio.CancelScope) -> None:
    """Cancel `scope` once the client has hung up, or has its answer."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def about(scope: Scope) -> dict[str, Any]:
    """What the headers say of the talk, for `Asked` and `Exchange`.

    feedback: what the owner made of the answer before this ask; what is no such word is left out,
    for a header of another program's must not cost an answer.
    """
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    conversation = headers.get(b"x-groove-conversation", "")[:CONVERSATION_CHARS_MAX]
    not_kept = headers.get(b"x-groove-no-capture", "").strip().lower()
    signal = headers.get(b"x-groove-feedback", "").strip().lower()
    return {
        "conversation": conversation or None,
        "client": headers.get(b"user-agent", "")[:CLIENT_CHARS_MAX],
        "no_capture": not_kept in ("1", "true", "yes"),
        "feedback": signal if signal in SIGNALS else "",
    }
