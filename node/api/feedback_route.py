"""`POST /v1/feedback`: what the owner made of an answer, told by the program that showed it."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .errors import ApiError, encoded, openai_error
from .recording import SIGNALS, Feedback, Recorder

EXCHANGE_CHARS_MAX = 128

_SAID = {
    Feedback.UNKNOWN: (404, "unknown", "no exchange of this id was captured by this node"),
    Feedback.OVER: (410, "over", "the session of this exchange is closed; nothing was changed"),
    Feedback.NOT_LAST: (
        409,
        "not_last",
        "other answers have followed in this talk: only its last one can be marked",
    ),
    Feedback.BUSY: (503, "busy", "there is no room for it now; nothing was changed: try again"),
}


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    exchange: str
    signal: str
    text: str | None = None


def routes(recorder: Recorder) -> list[Route]:
    async def feedback(request: Request) -> Response:
        try:
            marked = _marked(recorder, _read(await request.body()))
        except ApiError as error:
            return _json(error.status, openai_error(error))
        return _json(202, marked)

    return [Route("/v1/feedback", feedback, methods=["POST"], name="feedback")]


def _read(body: bytes) -> _Body:
    try:
        said = msgspec.json.decode(body, type=_Body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ApiError(
            400, 'expected {"exchange": ID, "signal": "accepted|modified|rejected", "text": ...}'
        ) from None
    if said.signal not in SIGNALS:
        raise ApiError(400, f"signal must be one of {', '.join(SIGNALS)}", param="signal")
    if said.signal != "modified" and said.text:
        raise ApiError(400, "text goes with the signal modified alone", param="text")
    if len(said.exchange) > EXCHANGE_CHARS_MAX:
        raise ApiError(400, "exchange is no id of an exchange", param="exchange")
    return said


def _marked(recorder: Recorder, said: _Body) -> dict[str, Any]:
    became = recorder.mark(said.exchange, said.signal, said.text)
    if became is Feedback.TAKEN:
        return {"object": "groove.feedback", "exchange": said.exchange, "signal": said.signal}
    status, code, message = _SAID[became]
    raise ApiError(status, message, kind=f"feedback_{code}", code=code, param="exchange")


def _json(status: int, value: object) -> Response:
    return Response(encoded(value), status, media_type="application/json")
