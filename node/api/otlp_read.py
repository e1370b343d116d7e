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
PARTS_MAX = 300_000  # of one request: resources, scopes, and each record's attributes with theirs
OBJECTS_MAX = 500_000  # of JSON: a few bytes of it become a hundred in memory
FIELDS_MAX = 1_000_000  # of protobuf, of every depth; likewise
RESOURCE_CHARS_MAX = 4_096  # as long as a path may be: it is read once for every record
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


class _Room:
    """How much of a request is still to be read. What repeats costs every time it is used."""

    def __init__(self) -> None:
        self._parts, self._records = PARTS_MAX, RECORDS_MAX

    def part(self, parts: int = 1) -> None:
        self._parts -= parts
        if self._parts < 0:
            raise ValueError(f"more than {PARTS_MAX:,} attributes in one request")

    def about(self, resource: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
        """Of one more record."""
        self._records -= 1
        if self._records < 0:
            raise ValueError(f"more than {RECORDS_MAX:,} records in one request")
        self.part(1 + len(resource) + len(own))
        return {**resource, **own}


def check_objects(text: bytes | str) -> None:
    """Raises ValueError on JSON that would take too much memory."""
    count = text.count(b"{") + text.count(b"[") if isinstance(text, bytes) else 0
    count += text.count("{") + text.count("[") if isinstance(text, str) else 0
    if count > OBJECTS_MAX:
        raise ValueError(f"more than {OBJECTS_MAX:,} objects in one request")


def from_json(body: bytes, signal: Signal) -> list[Record]:
    """Raises ValueError."""
    check_objects(body)
    try:
        request = msgspec.json.decode(body, type=dict[str, Any])
        spans = signal == "traces"
        outer = request.get("resourceSpans" if spans else "resourceLogs") or ()
        room = _Room()
        read = _json_span if spans else _json_log
        return [read(room, resource, each) for resource, each in _within(room, outer, spans)]
    except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
        raise ValueError("not JSON of OTLP") from problem
    except (AttributeError, KeyError, TypeError, RecursionError) as problem:
        raise ValueError(f"not of OTLP's form: {type(problem).__name__}") from None


def from_protobuf(body: bytes, signal: Signal) -> list[Record]:
    """Raises ValueError."""
    from google.protobuf.message import DecodeError

    check_fields(body, signal)
    try:
        return _protobuf_spans(body) if signal == "traces" else _protobuf_logs(body)
    except (DecodeError, RecursionError) as problem:
        raise ValueError("not protobuf of OTLP") from problem


def _of_resource(about: dict[str, Any]) -> dict[str, Any]:
    """What may say who reports, and of which folder: no texts belong there."""
    return {
        name: value
        for name, value in about.items()
        if not isinstance(value, list | dict)
        and not (isinstance(value, str) and len(value) > RESOURCE_CHARS_MAX)
    }


# ---- JSON ----------------------------------------------------------------------------------------


def _within(room: _Room, outer: Iterable[Any], spans: bool) -> Iterator[tuple[dict[str, Any], Any]]:
    scopes, leaves = ("scopeSpans", "spans") if spans else ("scopeLogs", "logRecords")
    for each in outer:
        resource = _of_resource(_attributes((each.get("resource") or {}).get("attributes")))
        room.part(1 + len(resource))
        for scope in each.get(scopes) or ():
            room.part()
            for leaf in scope.get(leaves) or ():
                yield resource, leaf


def _json_span(room: _Room, resource: dict[str, Any], span: Mapping[str, Any]) -> Record:
    events = tuple(
        Event(str(each.get("name") or ""), _attributes(each.get("attributes")))
        for each in span.get("events") or ()
    )
    code = (span.get("status") or {}).get("code")
    return Record(
        str(span.get("name") or ""),
        room.about(resource, _attributes(span.get("attributes"))),
        None,
        events,
        f"{span.get('traceId', '')}/{span.get('spanId', '')}",
        code in (ERROR, "STATUS_CODE_ERROR"),
    )


def _json_log(room: _Room, resource: dict[str, Any], log: Mapping[str, Any]) -> Record:
    about = room.about(resource, _attributes(log.get("attributes")))
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


def check_fields(body: bytes, signal: Signal) -> None:
    """Count the fields of every depth before a message is made of each. Raises ValueError.

    It takes no memory for them, and stops at the limit.
    """
    from google.protobuf.descriptor import Descriptor

    if signal == "traces":
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces

        top: Descriptor = traces.ExportTraceServiceRequest.DESCRIPTOR
    else:
        from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs

        top = logs.ExportLogsServiceRequest.DESCRIPTOR
    inner: dict[Descriptor, dict[int, Descriptor]] = {}  # of each message, those that it holds
    fields, waiting = 0, [(top, 0, len(body))]
    while waiting:
        kind, at, end = waiting.pop()
        if kind not in inner:
            inner[kind] = {f.number: f.message_type for f in kind.fields if f.message_type}
        held = inner[kind]
        while at < end:
            fields += 1
            if fields > FIELDS_MAX:
                raise ValueError(f"more than {FIELDS_MAX:,} fields in one request")
            tag, at = _varint(body, at, end)
            match tag & 7:
                case 0:
                    _, at = _varint(body, at, end)
                case 1:
                    at += 8
                case 5:
                    at += 4
                case 2:
                    size, at = _varint(body, at, end)
                    if (message := held.get(tag >> 3)) and at + size <= end:
                        waiting.append((message, at, at + size))
                    at += size
                case _:
                    raise ValueError("not protobuf of OTLP")


def _varint(body: bytes, at: int, end: int) -> tuple[int, int]:
    """A number, and where what follows it begins. Raises ValueError if it is cut."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = body[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("not protobuf of OTLP")


def _protobuf_spans(body: bytes) -> list[Record]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    found: list[Record] = []
    room = _Room()
    for outer in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = _of_resource(_of_pairs(outer.resource.attributes))
        room.part(1 + len(resource) + len(outer.scope_spans))
        for span in (span for scope in outer.scope_spans for span in scope.spans):
            events = tuple(Event(each.name, _of_pairs(each.attributes)) for each in span.events)
            found.append(
                Record(
                    span.name,
                    room.about(resource, _of_pairs(span.attributes)),
                    None,
                    events,
                    f"{span.trace_id.hex()}/{span.span_id.hex()}",
                    span.status.code == ERROR,
                )
            )
    return found


def _protobuf_logs(body: bytes) -> list[Record]:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    found: list[Record] = []
    room = _Room()
    for outer in ExportLogsServiceRequest.FromString(body).resource_logs:
        resource = _of_resource(_of_pairs(outer.resource.attributes))
        room.part(1 + len(resource) + len(outer.scope_logs))
        for log in (log for scope in outer.scope_logs for log in scope.log_records):
            about = room.about(resource, _of_pairs(log.attributes))
            found.append(
                Record(
                    log.event_name or str(about.get("event.name") or ""),
                    about,
                    _of_any(log.body, 0),
                    (),
                    f"{log.trace_id.hex()}/{log.span_id.hex()}",
                )
            )
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
