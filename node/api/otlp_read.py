"""OTLP's spans and log records, from protobuf or JSON, as plain values.

protobuf's classes are imported at the first use. What does not fit the form raises ValueError; what
is missing is empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

RECORDS_MAX = 10_000  # of one request
DEPTH_MAX = 16  # of a value in values

Signal = Literal["traces", "logs"]
ERROR: Final = 2  # the status of a span that failed
_SCALARS: Final = ("stringValue", "boolValue", "intValue", "doubleValue")


@dataclass(frozen=True, slots=True)
class Event:
    """Something with a name and attributes: of a span, or of its own."""

    name: str
    about: Mapping[str, Any] = field(repr=False)
    body: Any = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Record:
    """A span or a log record. about: its attributes and its resource's; its own go first."""

    name: str
    about: Mapping[str, Any] = field(repr=False)
    body: Any = field(default=None, repr=False)
    events: tuple[Event, ...] = ()
    span: str = ""  # trace and span, to join what belongs together
    failed: bool = False


def from_json(body: bytes, signal: Signal) -> list[Record]:
    """Raises ValueError."""
    try:
        request = msgspec.json.decode(body, type=dict[str, Any])
        spans = signal == "traces"
        outer = request.get("resourceSpans" if spans else "resourceLogs") or ()
        found = []
        for resource, each in _within(outer, spans):
            found.append(_json_span(resource, each) if spans else _json_log(resource, each))
            _check_count(found)
        return found
    except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
        raise ValueError("not JSON of OTLP") from problem
    except (AttributeError, KeyError, TypeError, RecursionError) as problem:
        raise ValueError(f"not of OTLP's form: {type(problem).__name__}") from None


def from_protobuf(body: bytes, signal: Signal) -> list[Record]:
    """Raises ValueError."""
    from google.protobuf.message import DecodeError

    try:
        return _protobuf_spans(body) if signal == "traces" else _protobuf_logs(body)
    except (DecodeError, RecursionError) as problem:
        raise ValueError("not protobuf of OTLP") from problem


def _check_count(found: list[Record]) -> None:
    if len(found) > RECORDS_MAX:
        raise ValueError(f"more than {RECORDS_MAX:,} records in one request")


# ---- JSON ----------------------------------------------------------------------------------------


def _within(outer: Iterable[Any], spans: bool) -> Iterator[tuple[dict[str, Any], Any]]:
    scopes, leaves = ("scopeSpans", "spans") if spans else ("scopeLogs", "logRecords")
    for each in outer:
        resource = _attributes((each.get("resource") or {}).get("attributes"))
        for scope in each.get(scopes) or ():
            for leaf in scope.get(leaves) or ():
                yield resource, leaf


def _json_span(resource: dict[str, Any], span: Mapping[str, Any]) -> Record:
    events = tuple(
        Event(str(each.get("name") or ""), _attributes(each.get("attributes")))
        for each in span.get("events") or ()
    )
    code = (span.get("status") or {}).get("code")
    return Record(
        str(span.get("name") or ""),
        {**resource, **_attributes(span.get("attributes"))},
        None,
        events,
        f"{span.get('traceId', '')}/{span.get('spanId', '')}",
        code in (ERROR, "STATUS_CODE_ERROR"),
    )


def _json_log(resource: dict[str, Any], log: Mapping[str, Any]) -> Record:
    about = {**resource, **_attributes(log.get("attributes"))}
    return Record(
        str(log.get("eventName") or about.get("event.name") or ""),
        about,
        _value(log.get("body"), 0),
        (),
        f"{log.get('traceId', '')}/{log.get('spanId', '')}",
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {str(pair["key"]): _value(pair.get("value"), 0) for pair in pairs or ()}


def _value(given: Any, depth: int) -> Any:
    if depth > DEPTH_MAX:
        raise ValueError("values are nested too deeply")
    if not given:
        return None
    for name in _SCALARS:
        if name in given:
            return given[name]
    if "arrayValue" in given:
        return [_value(each, depth + 1) for each in given["arrayValue"].get("values") or ()]
    if "kvlistValue" in given:
        pairs = given["kvlistValue"].get("values") or ()
        return {str(pair["key"]): _value(pair.get("value"), depth + 1) for pair in pairs}
    return None  # bytes: no text


# ---- protobuf ------------------------------------------------------------------------------------


def _protobuf_spans(body: bytes) -> list[Record]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    found: list[Record] = []
    for outer in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = _of_pairs(outer.resource.attributes)
        for span in (span for scope in outer.scope_spans for span in scope.spans):
            events = tuple(Event(each.name, _of_pairs(each.attributes)) for each in span.events)
            found.append(
                Record(
                    span.name,
                    {**resource, **_of_pairs(span.attributes)},
                    None,
                    events,
                    f"{span.trace_id.hex()}/{span.span_id.hex()}",
                    span.status.code == ERROR,
                )
            )
            _check_count(found)
    return found


def _protobuf_logs(body: bytes) -> list[Record]:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    found: list[Record] = []
    for outer in ExportLogsServiceRequest.FromString(body).resource_logs:
        resource = _of_pairs(outer.resource.attributes)
        for log in (log for scope in outer.scope_logs for log in scope.log_records):
            about = {**resource, **_of_pairs(log.attributes)}
            found.append(
                Record(
                    log.event_name or str(about.get("event.name") or ""),
                    about,
                    _of_any(log.body, 0),
                    (),
                    f"{log.trace_id.hex()}/{log.span_id.hex()}",
                )
            )
            _check_count(found)
    return found


def _of_pairs(pairs: Iterable[Any], depth: int = 0) -> dict[str, Any]:
    return {pair.key: _of_any(pair.value, depth) for pair in pairs}


def _of_any(given: Any, depth: int) -> Any:
    if depth > DEPTH_MAX:
        raise ValueError("values are nested too deeply")
    match given.WhichOneof("value"):
        case "array_value":
            return [_of_any(each, depth + 1) for each in given.array_value.values]
        case "kvlist_value":
            return _of_pairs(given.kvlist_value.values, depth + 1)
        case None | "bytes_value":
            return None
        case name:
            return getattr(given, name)
