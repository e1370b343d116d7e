"""From a POST to an answer in some client's shape: what OpenAI's and Anthropic's have in common.

The guard has read the body and watches the writes. Here the client's end is watched: whoever hangs
up frees the back end at once, and nothing is computed for nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import trio
from starlette.types import Receive, Scope, Send

from . import sse
from .asgi import about, body_of, respond, until_gone
from .asked import Asked, fields_of, model_of
from .completing import PREFIX, Answer, Completing
from .errors import ApiError, no_such_model
from .ports import Piece
from .relay import Relay, Upstream


class Stream(Protocol):
    """Frames one answer. What is empty is not sent."""

    def opening(self) -> bytes: ...

    def piece(self, piece: Piece) -> bytes: ...

    def closing(self) -> bytes: ...

    def broken(self, error: ApiError) -> bytes: ...


class Shape(Protocol):
    """What a client's requests and answers look like."""

    def read(self, fields: dict[str, Any], about: Mapping[str, Any]) -> Asked:
        """about: the model, and what the headers say, read already."""
        ...

    def whole(self, answer: Answer, asked: Asked) -> bytes: ...

    def stream(self, answer: Answer, asked: Asked) -> Stream: ...

    def error(self, error: ApiError) -> bytes: ...


class Endpoint:
    """One path, as an ASGI application."""

    def __init__(
        self, completing: Completing, shape: Shape, relay: Relay, upstream: Callable[[], Upstream]
    ) -> None:
        self._completing = completing
        self._shape = shape
        self._relay = relay
        self._upstream = upstream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["method"] != "POST":
                message = f"{scope['path']} takes POST alone, not {scope['method']}"
                raise ApiError(405, message, kind="method")
            body = await body_of(receive)
            model = model_of(body)
            if not model.startswith(PREFIX):
                upstream = self._upstream()
                if not upstream.url:
                    raise self._unknown(model, upstream)
                await self._relay.pass_on(scope, receive, send, body, upstream)
                return
            asked = self._shape.read(fields_of(body), {"model": model, **about(scope)})
        except ApiError as error:
            self._completing.counts.failures[error.kind] += 1
            await self._refuse(send, error)
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_gone, receive, nursery.cancel_scope)
            await self._answer(asked, send)
            nursery.cancel_scope.cancel()

    async def _answer(self, asked: Asked, send: Send) -> None:
        try:
            async with self._completing.begin(asked) as answer:
                if asked.stream:
                    await self._stream(answer, asked, send)
                else:
                    await self._whole(answer, asked, send)
        except ApiError as error:  # nothing was sent yet
            self._completing.counts.failures[error.kind] += 1
            await self._refuse(send, error)

    async def _whole(self, answer: Answer, asked: Asked, send: Send) -> None:
        async for _ in answer:
            pass
        if answer.problem is not None:
            await self._refuse(send, answer.error)
        else:
            await respond(send, 200, self._shape.whole(answer, asked), answer.headers)

    async def _stream(self, answer: Answer, asked: Asked, send: Send) -> None:
        stream = self._shape.stream(answer, asked)
        headers = [*sse.HEADERS, *answer.headers]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        head = stream.opening()  # goes out with the first piece: one write less to wait for
        async for piece in answer:
            if chunk := head + stream.piece(piece):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                head = b""
        end = stream.closing() if answer.problem is None else stream.broken(answer.error)
        await send({"type": "http.response.body", "body": head + end, "more_body": False})

    def _unknown(self, model: str, upstream: Upstream) -> ApiError:
        return no_such_model(
            f"there is no model {model[:100]!r}: this node answers as groove/auto, groove/chassis "
            f"and groove/LEAF, and {upstream.setting} in groove.toml names nobody who has others"
        )

    async def _refuse(self, send: Send, error: ApiError) -> None:
        headers = [(b"allow", b"POST")] if error.status == 405 else []
        if error.status == 429:
            headers.append((b"retry-after", b"1"))
        await respond(send, error.status, self._shape.error(error), headers)
