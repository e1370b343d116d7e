"""`POST /ingest/litellm`: what LiteLLM's generic callback reports, its StandardLoggingPayload.

One object, an array of them, or one a line (`log_format: ndjson`). A source of its own for consent.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from node.tally import Tally

from .errors import ApiError, encoded
from .genai import Report, Told, messages_of, text_of
from .ingest import Taken, allowed_of, count_unknown, hand_over, not_allowed, unpacked
from .otlp_read import RECORDS_MAX, check_objects
from .recording import Recorder

if TYPE_CHECKING:
    from node.app import App

SOURCE = "litellm"
SEEN_MAX = 5_000  # reports
_CALLS = ("completion", "acompletion", "text_completion", "atext_completion", "anthropic_messages")


def routes(recorder: Recorder, app: App) -> list[Route]:
    seen = _Seen()
    turn = trio.Lock()  # one report is read at a time

    async def receive(request: Request) -> Response:
        body = await request.body()
        encoding = request.headers.get("content-encoding", "")

        def read() -> tuple[list[tuple[Told, str | None]], Taken, int]:
            if not recorder.allows(SOURCE):  # before a byte is unpacked: how many is not known
                return [], Taken(0, not_allowed(SOURCE)), 0
            report = read_payloads(unpacked(body, encoding))
            count_unknown(Tally(app.home), SOURCE, report.unknown)
            told = [each for each in report.told if not (each.id and seen.has(each))]
            kept, taken = allowed_of(recorder, SOURCE, told)
            if twice := len(report.told) - len(told):
                taken = Taken(taken.rejected + twice, taken.why or "reported before")
            return kept, taken, len(report.told)

        try:
            async with turn:
                kept, taken, total = await app.adapters.in_thread(read)
        except ApiError as error:
            return _json(error.status, {"error": error.message})
        except ValueError as problem:
            return _json(400, {"error": str(problem)})
        taken = hand_over(recorder, SOURCE, kept, taken)
        # 200 also if nothing may be kept: LiteLLM would send it again and again.
        told = {"accepted": total - taken.rejected, "rejected": taken.rejected}
        return _json(200, told | ({"message": taken.why} if taken.why else {}))

    return [Route("/ingest/litellm", receive, methods=["POST"], name="litellm_log")]


class _Seen:
    """What the last reports were: LiteLLM sends again what it had no answer to."""

    def __init__(self) -> None:
        self._ids: OrderedDict[int, None] = OrderedDict()

    def has(self, told: Told) -> bool:
        """Whether it was reported before; from now on it was."""
        # With a hash of the texts: a small server may give all its answers one id.
        given = hash((told.id, told.messages[-1]["content"], told.text))
        known = given in self._ids
        self._ids[given] = None
        self._ids.move_to_end(given)
        if len(self._ids) > SEEN_MAX:
            self._ids.popitem(last=False)
        return known


def read_payloads(body: bytes) -> Report:
    """Raises ValueError on what is no JSON."""
    report = Report(unknown=Counter())
    for payload in _payloads(body):
        if told := _told(payload, report.unknown):
            report.told.append(told)
    return report


def _payloads(body: bytes) -> Iterator[Any]:
    check_objects(body)
    try:
        whole = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        lines = [line for line in body.split(b"\n", RECORDS_MAX + 1) if line.strip()]
        try:
            whole = [msgspec.json.decode(line) for line in lines]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise ValueError("not JSON, nor one JSON object a line") from None
    found = whole if isinstance(whole, list) else [whole]
    if len(found) > RECORDS_MAX:
        raise ValueError(f"more than {RECORDS_MAX:,} payloads in one request")
    yield from found


def _told(payload: Any, unknown: Counter[str]) -> Told | None:
    if not isinstance(payload, dict) or "call_type" not in payload:
        unknown["not a StandardLoggingPayload"] += 1
        return None
    call = payload["call_type"]
    if not isinstance(call, str) or call not in _CALLS:
        unknown[f"call_type {call if isinstance(call, str) else '(no word)'}"] += 1
        return None
    asked = messages_of(payload.get("messages"))
    failed = payload.get("status") == "failure"
    text = "" if failed else _answer(payload.get("response"))
    if not asked:
        unknown["messages that LiteLLM keeps to itself"] += 1
        return None
    about = payload.get("metadata")
    return Told(
        asked,
        text,
        failed,
        _conversation(payload, about if isinstance(about, dict) else {}),
        str(payload.get("model") or ""),
        str(payload.get("custom_llm_provider") or ""),
        "litellm",
        id=given if isinstance(given := payload.get("id"), str) and len(given) <= 200 else "",
    )


def _conversation(payload: Mapping[str, Any], about: Mapping[str, Any]) -> str | None:
    """Where the caller gave one. A trace is one request, unless the caller says otherwise."""
    own = about.get("requester_metadata")
    for given in (about, own if isinstance(own, dict) else {}):
        for name in ("conversation_id", "session_id"):
            if isinstance(value := given.get(name), str) and value:
                return value
    return None


def _answer(response: Any) -> str:
    match response:
        case str():
            return response
        case {"choices": [{"message": {"content": content}}, *_]}:
            return text_of(content)
        case {"choices": [{"text": str() as text}, *_]}:
            return text
        case {"content": content}:
            return text_of(content)
        case _:
            return ""


def _json(status: int, value: object) -> Response:
    return Response(encoded(value), status, media_type="application/json")
