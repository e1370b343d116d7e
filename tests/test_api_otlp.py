"""OTLP over HTTP: every convention in both encodings, under consent, and hostile bytes."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from support_ingest import allow, posted, talks

from node import gate
from node.api import otlp, otlp_read
from node.api.errors import ApiError
from node.api.ingest import UNPACKED_BYTES_MAX, unpacked
from node.api.otlp_read import from_json, from_protobuf
from node.app import App
from node.tally import Tally

JSON = {"content-type": "application/json"}
PROTOBUF = {"content-type": "application/x-protobuf"}


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    monkeypatch.setenv("GROOVE_HOME", str(tmp_path / "home"))
    yield App.open(create=True)
    gate.close_gate(10)


def value(given: Any) -> dict[str, Any]:
    match given:
        case bool():
            return {"boolValue": given}
        case str():
            return {"stringValue": given}
        case int():
            return {"intValue": str(given)}
        case list():
            return {"arrayValue": {"values": [value(each) for each in given]}}
        case dict():
            return {"kvlistValue": {"values": pairs(given)}}
    raise AssertionError(given)


def pairs(about: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": name, "value": value(given)} for name, given in about.items()]


def span(
    about: dict[str, Any], events: dict[str, dict[str, Any]] | None = None, failed: bool = False
) -> dict[str, Any]:
    made: dict[str, Any] = {"name": "chat", "attributes": pairs(about)}
    made["events"] = [{"name": n, "attributes": pairs(a)} for n, a in (events or {}).items()]
    if failed:
        made["status"] = {"code": 2}
    return made


def traces(*spans: dict[str, Any], **resource: str) -> dict[str, Any]:
    scope = {"spans": list(spans)}
    return {"resourceSpans": [{"resource": {"attributes": pairs(resource)}, "scopeSpans": [scope]}]}


def log(name: str, about: dict[str, Any], body: Any = None) -> dict[str, Any]:
    made: dict[str, Any] = {"eventName": name, "attributes": pairs(about)}
    return made | ({"body": value(body)} if body is not None else {})


def logs(*records: dict[str, Any], **resource: str) -> dict[str, Any]:
    scope = {"logRecords": list(records)}
    return {"resourceLogs": [{"resource": {"attributes": pairs(resource)}, "scopeLogs": [scope]}]}


def message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": text}]}


ASKED = [message("user", "How do I sort?")]
SAID = [message("assistant", "Use sorted()")]
CONVENTIONS = {
    "structured": span({"gen_ai.input.messages": ASKED, "gen_ai.output.messages": SAID}),
    "json": span(
        {
            "gen_ai.operation.name": "chat",
            "gen_ai.input.messages": json.dumps(ASKED),
            "gen_ai.output.messages": json.dumps(SAID),
            "gen_ai.system_instructions": "You are terse",
        }
    ),
    "details": span(
        {"gen_ai.operation.name": "chat"},
        {
            "gen_ai.client.inference.operation.details": {
                "gen_ai.input.messages": json.dumps(ASKED),
                "gen_ai.output.messages": json.dumps(SAID),
            }
        },
    ),
    "events": span(
        {"gen_ai.system": "openai"},
        {
            "gen_ai.system.message": {"content": "You are terse"},
            "gen_ai.user.message": {"content": "How do I sort?"},
            "gen_ai.choice": {"message": json.dumps({"content": "Use sorted()"})},
        },
    ),
    "content events": span(
        {"gen_ai.system": "openai"},
        {
            "gen_ai.content.prompt": {
                "gen_ai.prompt": json.dumps([{"role": "user", "content": "How do I sort?"}])
            },
            "gen_ai.content.completion": {
                "gen_ai.completion": json.dumps([{"role": "assistant", "content": "Use sorted()"}])
            },
        },
    ),
    "openinference": span(
        {
            "openinference.span.kind": "LLM",
            "llm.input_messages.0.message.role": "system",
            "llm.input_messages.0.message.content": "You are terse",
            "llm.input_messages.1.message.role": "user",
            "llm.input_messages.1.message.content": "How do I sort?",
            "llm.output_messages.0.message.role": "assistant",
            "llm.output_messages.0.message.content": "Use sorted()",
        }
    ),
    "openllmetry": span(
        {
            "gen_ai.prompt.0.role": "user",
            "gen_ai.prompt.0.content": "How do I sort?",
            "gen_ai.completion.0.role": "assistant",
            "gen_ai.completion.0.content": "Use sorted()",
        }
    ),
}


def encoded(request: dict[str, Any], kind: str) -> tuple[bytes, dict[str, str]]:
    if kind == "json":
        return json.dumps(request).encode(), JSON
    message_type = (
        ExportTraceServiceRequest if "resourceSpans" in request else ExportLogsServiceRequest
    )
    return json_format.ParseDict(request, message_type()).SerializeToString(), PROTOBUF


@pytest.mark.parametrize("kind", ["json", "protobuf"])
def test_every_convention_gives_the_same_exchange(app: App, kind: str) -> None:
    allow(app, "otlp")
    body, headers = encoded(traces(*CONVENTIONS.values()), kind)
    (answer,) = posted(app, otlp.routes, "/v1/traces", body, headers=headers)
    assert (answer.status_code, answer.content) == (200, b"{}" if kind == "json" else b"")
    assert talks(app) == [["How do I sort?", "Use sorted()"]] * len(CONVENTIONS)
    assert {each.source for each in app.corpus.sessions()} == {"otlp"}


def test_a_conversation_over_several_requests_is_one_session(app: App) -> None:
    allow(app, "otlp")
    more = [*ASKED, *SAID, message("user", "No, backwards")]
    about = {"gen_ai.request.model": "gpt-4o"}
    first = span({**about, "gen_ai.input.messages": ASKED, "gen_ai.output.messages": SAID})
    second = span(
        {
            **about,
            "gen_ai.input.messages": more,
            "gen_ai.output.messages": [message("assistant", "reverse=True")],
        }
    )
    posted(
        app,
        otlp.routes,
        "/v1/traces",
        *(json.dumps(traces(each)).encode() for each in (first, second)),
        headers=JSON,
    )
    assert talks(app) == [["How do I sort?", "Use sorted()", "No, backwards", "reverse=True"]]
    (session,) = app.corpus.sessions()
    assert (session.terms_class, session.corrections) == ("restricted", 1)


def test_a_report_that_names_our_own_model_does_not_pass_for_our_answer(app: App) -> None:
    allow(app, "otlp")
    about = {"gen_ai.provider.name": "groove", "gen_ai.input.messages": ASKED}
    body = json.dumps(traces(span({**about, "gen_ai.output.messages": SAID}))).encode()
    posted(app, otlp.routes, "/v1/traces", body, headers=JSON)
    assert [each.terms_class for each in app.corpus.sessions()] == ["unknown"]


def test_agents_and_tools_are_not_counted_twice_and_the_rest_is_counted_and_skipped(
    app: App,
) -> None:
    allow(app, "otlp")
    said = {"gen_ai.input.messages": ASKED, "gen_ai.output.messages": SAID}
    body = json.dumps(
        traces(
            span({"gen_ai.operation.name": "invoke_agent", **said}),
            span({"gen_ai.operation.name": "chat", **said}),
            span({"http.request.method": "GET"}),
        )
    ).encode()
    posted(app, otlp.routes, "/v1/traces", body, headers=JSON)
    assert len(talks(app)) == 1
    assert Tally(app.home).read().sources["otlp"].unknown == {"span of something else": 1}


@pytest.mark.parametrize("kind", ["json", "protobuf"])
def test_without_consent_nothing_is_kept_and_the_sender_is_told(app: App, kind: str) -> None:
    allow(app, "endpoint")
    body, headers = encoded(traces(CONVENTIONS["json"]), kind)
    (answer,) = posted(app, otlp.routes, "/v1/traces", body, headers=headers)
    assert answer.status_code == 200
    if kind == "json":
        partial = answer.json()["partialSuccess"]
        rejected, why = int(partial["rejectedSpans"]), partial["errorMessage"]
    else:
        told = ExportTraceServiceResponse.FromString(answer.content).partial_success
        rejected, why = told.rejected_spans, told.error_message
    assert rejected == 0  # of a report that was not read nobody knows how many
    assert "groove-node consent grant capture --source otlp" in why
    assert list(app.corpus.records()) == []


def test_a_report_that_names_a_project_is_kept_if_that_was_named(app: App, tmp_path: Path) -> None:
    named, other = tmp_path / "named", tmp_path / "other"
    for each in (named, other):
        (each / "inside").mkdir(parents=True)
    allow(app, "otlp", folders=(str(named),))
    said = {"gen_ai.input.messages": ASKED, "gen_ai.output.messages": SAID}
    spans = (
        span({**said, "process.cwd": str(named / "inside")}),
        span({**said, "process.cwd": str(other)}),
        span({**said, "project.path": str(named), "process.cwd": str(other)}),
    )
    body = json.dumps(traces(*spans)).encode()
    (answer,) = posted(app, otlp.routes, "/v1/traces", body, headers=JSON)
    assert answer.json()["partialSuccess"]["rejectedSpans"] == "2"
    assert len(talks(app)) == 1
    assert str(tmp_path).encode() not in b"".join(
        p.read_bytes() for p in (app.home / "training_data").rglob("*") if p.is_file()
    )


def claude(event: str, **about: Any) -> dict[str, Any]:
    return log("", {"event.name": event, "session.id": "s", **about}, f"claude_code.{event}")


def test_claude_codes_prompts_and_answers_are_joined(app: App) -> None:
    allow(app, "otlp")
    whole = {"content": [{"type": "thinking"}, {"type": "text", "text": "Use sorted()"}]}
    one = {"prompt.id": "p1", "model": "claude-sonnet"}
    more = {"content": [{"type": "text", "text": "And done"}]}
    batches = (
        logs(
            claude("user_prompt", **{"prompt.id": "p1", "prompt": "How do I sort?"}),
            claude("api_request", **one),
            claude("tool_result", **one),
            **{"service.name": "claude-code"},
        ),
        logs(
            claude("api_response_body", **one, body=json.dumps(whole)),
            claude("api_response_body", **one, body=json.dumps(more)),
            claude("something_new", **one),
            **{"service.name": "claude-code"},
        ),
        logs(claude("user_prompt", **{"prompt.id": "p2", "prompt": "<REDACTED>"})),
    )
    bodies = [json.dumps(each).encode() for each in batches]
    posted(app, otlp.routes, "/v1/logs", *bodies, headers=JSON)
    assert talks(app) == [["How do I sort?", "Use sorted()\n\nAnd done"]]
    (session,) = app.corpus.sessions()
    assert session.terms_class == "restricted"
    assert Tally(app.home).read().sources["otlp"].unknown == {
        "claude_code.something_new": 1,
        "prompt that the tool keeps to itself": 1,
    }


@pytest.mark.parametrize("kind", ["json", "protobuf"])
def test_codexs_prompts_and_events_of_generative_ai_are_read_from_logs(app: App, kind: str) -> None:
    allow(app, "otlp")
    body, headers = encoded(
        logs(
            log("codex.user_prompt", {"prompt": "How do I sort?", "conversation.id": "c"}),
            log("codex.sse_event", {"conversation.id": "c"}),
            log("gen_ai.user.message", {}, {"content": "And backwards?"}),
            log("gen_ai.choice", {}, {"message": {"content": "reverse=True"}}),
        ),
        kind,
    )
    posted(app, otlp.routes, "/v1/logs", body, headers=headers)
    assert talks(app) == [["How do I sort?"], ["And backwards?", "reverse=True"]]


def test_logs_without_consent_are_told_of_in_protobuf(app: App) -> None:
    allow(app, "endpoint")
    body, headers = encoded(logs(log("codex.user_prompt", {"prompt": "Sort?"})), "protobuf")
    (answer,) = posted(app, otlp.routes, "/v1/logs", body, headers=headers)
    told = ExportLogsServiceResponse.FromString(answer.content).partial_success
    assert "--source otlp" in told.error_message


def test_packed_bodies_are_read_and_bombs_are_not_unpacked(app: App) -> None:
    allow(app, "otlp")
    packed = gzip.compress(json.dumps(traces(CONVENTIONS["json"])).encode())
    headers = {**JSON, "content-encoding": "gzip"}
    bomb = gzip.compress(bytes(UNPACKED_BYTES_MAX + 1))
    answers = posted(
        app, otlp.routes, "/v1/traces", packed, bomb, b"no gzip", packed[:40], headers=headers
    )
    assert [each.status_code for each in answers] == [200, 413, 400, 400]
    assert len(talks(app)) == 1
    with pytest.raises(ApiError):
        unpacked(b"", "br")


def test_what_is_not_otlp_is_refused(app: App) -> None:
    allow(app, "otlp")
    deep = b'{"resourceSpans":' + b"[" * 100_000
    answers = posted(app, otlp.routes, "/v1/traces", b"{", b"[]", deep, b"\xff", headers=JSON)
    assert {each.status_code for each in answers} == {400}
    (answer,) = posted(app, otlp.routes, "/v1/traces", b"\xff\xff", headers=PROTOBUF)
    assert answer.status_code == 400
    (answer,) = posted(app, otlp.routes, "/v1/traces", b"", headers={"content-type": "text/plain"})
    assert answer.status_code == 415


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["resourceSpans", "scopeSpans", "spans", "attributes", "key", "value", "arrayValue"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(_json)
def test_whatever_the_json_it_is_read_or_refused(given_: Any) -> None:
    with contextlib.suppress(ValueError):
        from_json(json.dumps({"resourceSpans": given_}).encode(), "traces")


@given(st.binary(max_size=200))
def test_whatever_the_bytes_they_are_read_or_refused(body: bytes) -> None:
    for read in (from_protobuf, from_json):
        with contextlib.suppress(ValueError):
            read(body, "logs")


def test_without_consent_a_report_is_not_even_unpacked_but_counted(app: App) -> None:
    allow(app, "endpoint")
    (answer,) = posted(
        app, otlp.routes, "/v1/traces", b"no gzip", headers={**JSON, "content-encoding": "gzip"}
    )
    assert answer.status_code == 200
    assert "--source otlp" in answer.json()["partialSuccess"]["errorMessage"]


@pytest.mark.parametrize("kind", ["json", "protobuf"])
def test_a_resource_that_many_spans_share_does_not_multiply(kind: str) -> None:
    shared = {f"k{n}": n for n in range(2_000)}
    body, _ = encoded(traces(*({} for _ in range(200)), **shared), kind)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="more than"):
        (from_json if kind == "json" else from_protobuf)(body, "traces")


def test_a_resource_holds_no_texts_that_every_span_would_repeat() -> None:
    texts = {"long": "x" * (4_096 + 1), "service.name": "me"}
    body, _ = encoded(traces({}, **texts), "json")
    (record,) = from_json(body, "traces")
    assert record.about == {"service.name": "me"}


def test_empty_parts_are_counted_before_they_take_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp_read, "FIELDS_MAX", 1_000)
    monkeypatch.setattr(otlp_read, "OBJECTS_MAX", 1_000)
    scopes = ExportTraceServiceRequest()
    resource = scopes.resource_spans.add()
    for _ in range(2_000):
        resource.scope_spans.add()
    for body in (b"\n\0" * 2_000, scopes.SerializeToString()):
        with pytest.raises(ValueError, match="fields"):
            otlp_read.check_fields(body, "traces")
    with pytest.raises(ValueError, match="objects"):
        from_json(b'{"resourceSpans":[' + b"{}," * 2_000 + b"{}]}", "traces")


def test_words_in_place_of_an_events_name_are_not_written_down(app: App) -> None:
    allow(app, "otlp")
    names = ("alice@example.com asked about her test", "codex.4111111111111111", "codex.new_thing")
    body = json.dumps(logs(*(log(each, {}) for each in names))).encode()
    posted(app, otlp.routes, "/v1/logs", body, headers=JSON)
    unknown = Tally(app.home).read().sources["otlp"].unknown
    assert unknown == {"(another name)": 2, "codex.new_thing": 1}


def test_json_within_a_text_of_protobuf_is_counted_too(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(app, "otlp")
    monkeypatch.setattr(otlp_read, "OBJECTS_MAX", 1_000)
    body, headers = encoded(
        traces(span({"gen_ai.input.messages": "[" + "{}," * 2_000})), "protobuf"
    )
    (answer,) = posted(app, otlp.routes, "/v1/traces", body, headers=headers)
    assert answer.status_code == 400
