"""OTLP over HTTP: `/v1/traces` and `/v1/logs`, for programs that are instrumented already.

A source of its own for consent, off until the owner allows it. Whatever is not kept is said in the
answer as OTLP has it: a partial success, with a count and the reason; a sender must not try again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from node.tally import Tally

from .errors import ApiError, encoded
from .genai import Told, read_logs, read_spans
from .ingest import Taken, allowed_of, count_unknown, hand_over, not_allowed, unpacked
from .otlp_read import Signal, from_json, from_protobuf
from .recording import Recorder

if TYPE_CHECKING:
    from node.app import App

SOURCE = "otlp"
PROTOBUF, JSON = "application/x-protobuf", "application/json"

_Kept = list[tuple[Told, str | None]]


def routes(recorder: Recorder, app: App) -> list[Route]:
    """Both paths, each named for the counts."""
    turn = trio.Lock()  # one report is read at a time: each may take many times its own size
    signals: tuple[Signal, ...] = "traces", "logs"
    return [
        Route(f"/v1/{each}", _receiver(recorder, app, each, turn), methods=["POST"], name=each)
        for each in signals
    ]


def _receiver(
    recorder: Recorder, app: App, signal: Signal, turn: trio.Lock
) -> Callable[[Request], Awaitable[Response]]:
    async def receive(request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in (PROTOBUF, JSON):
            return Response(f"content-type must be {PROTOBUF} or {JSON}", 415)
        body = await request.body()
        encoding = request.headers.get("content-encoding", "")

        def read() -> tuple[_Kept, Taken]:
            if not recorder.allows(SOURCE):  # before a byte is unpacked: how many is not known
                return [], Taken(0, not_allowed(SOURCE))
            whole = unpacked(body, encoding)
            records = (from_json if kind == JSON else from_protobuf)(whole, signal)
            report = (read_spans if signal == "traces" else read_logs)(records)
            count_unknown(Tally(app.home), SOURCE, report.unknown)
            return allowed_of(recorder, SOURCE, report.told)

        try:
            async with turn:
                kept, taken = await app.adapters.in_thread(read)
        except ApiError as error:
            return Response(error.message, error.status)
        except ValueError as problem:
            return Response(str(problem), 400)
        return _answer(signal, kind, hand_over(recorder, SOURCE, kept, taken))

    return receive


def _answer(signal: Signal, kind: str, taken: Taken) -> Response:
    if kind == JSON:
        rejected = "rejectedSpans" if signal == "traces" else "rejectedLogRecords"
        partial = {rejected: str(taken.rejected), "errorMessage": taken.why}  # int64: a string
        return Response(encoded({"partialSuccess": partial} if taken.why else {}), media_type=JSON)
    return Response(_protobuf_answer(signal, taken), media_type=PROTOBUF)


def _protobuf_answer(signal: Signal, taken: Taken) -> bytes:
    from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces

    if not taken.why:
        return b""  # of either: nothing is set
    if signal == "traces":
        spans = traces.ExportTracePartialSuccess(
            rejected_spans=taken.rejected, error_message=taken.why
        )
        return traces.ExportTraceServiceResponse(partial_success=spans).SerializeToString()
    records = logs.ExportLogsPartialSuccess(
        rejected_log_records=taken.rejected, error_message=taken.why
    )
    return logs.ExportLogsServiceResponse(partial_success=records).SerializeToString()
