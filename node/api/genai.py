"""What spans and log records say of exchanges with models: four conventions, one reading.

OpenTelemetry's for generative AI, as attributes (a structure, or its JSON) or as the events of its
earlier versions; OpenInference's numbered attributes; the log records of Claude Code and of Codex.
System prompts, reasoning and what tools said are not read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from .otlp_read import Event, Record, check_objects

MESSAGES_MAX = 10_000
_OPERATIONS: Final = ("chat", "text_completion", "generate_content")
# By the last parts of an attribute's name: in which project something was done.
_FOLDERS: Final = re.compile(
    r"(?:^|[._])(?:cwd|working_directory|working_dir|workdir|workspace|workspace_root"
    r"|project[._](?:dir|path|root|folder)|repo[._]path|folder)$"
)
_NUMBERED: Final = re.compile(
    r"(llm\.input_messages|llm\.output_messages|gen_ai\.prompt|gen_ai\.completion)\.(\d{1,5})"
    r"\.(?:message\.)?(role|content)$"
)
_REDACTED: Final = ("<REDACTED>", "[REDACTED]")
_EVENT_ROLES: Final = {"gen_ai.user.message": "user", "gen_ai.assistant.message": "assistant"}
_EVENTS_OF_TALK: Final = (
    *_EVENT_ROLES,
    *("gen_ai.choice", "gen_ai.system.message", "gen_ai.tool.message"),
)
_DETAILS: Final = "gen_ai.client.inference.operation.details"
# Of Claude Code and Codex: known, and without words of the owner or the model.
_SILENT: Final = re.compile(
    r"claude_code\.(?:api_request|tool_\w+|api_request_body|\w*mcp\w*|plugin\w*|skill\w*|hook\w*"
    r"|auth|internal_error|at_mention|compaction|permission_mode_changed|feedback_survey)"
    r"|codex\.(?:conversation_starts|api_request|sse_event|websocket\w*|tool_\w+|turn\w*|startup\w*)"
)


@dataclass(frozen=True, slots=True)
class Told:
    """An exchange, as far as it was reported."""

    messages: tuple[Mapping[str, str], ...] = field(repr=False)
    text: str = field(repr=False)
    failed: bool
    conversation: str | None = field(repr=False)
    model: str
    provider: str
    client: str
    folders: tuple[str, ...] = field(default=(), repr=False)
    id: str = ""  # the sender's own; empty if it gave none


@dataclass(slots=True)
class Report:
    """What was found in one request."""

    told: list[Told] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)


def read_spans(records: Sequence[Record]) -> Report:
    report = Report()
    for record in records:
        operation = record.about.get("gen_ai.operation.name")
        kind = record.about.get("openinference.span.kind")
        if (operation and operation not in _OPERATIONS) or (kind and kind != "LLM"):
            continue  # an agent or a tool: the calls that it made are spans of their own
        told = _of_attributes(record) or _of_numbered(record) or _of_events(record, record.events)
        if told is not None:
            report.told.append(told)
        elif any(name.startswith(("gen_ai.", "llm.")) for name in record.about):
            report.unknown["span without texts"] += 1
        else:
            report.unknown["span of something else"] += 1
    return report


def read_logs(records: Sequence[Record]) -> Report:
    report = Report()
    talks: dict[str, list[Record]] = {}
    answers: dict[tuple[str, str], Told] = {}
    for record in records:
        name = _event_name(record)
        if name in _EVENTS_OF_TALK:
            talks.setdefault(record.span, []).append(record)
        elif name == _DETAILS and (told := _of_attributes(record)):
            report.told.append(told)
        elif name in ("claude_code.user_prompt", "codex.user_prompt"):
            _prompted(record, report)
        elif name == "claude_code.api_response_body":
            _answered(record, report, answers)
        elif name in ("claude_code.api_error", "codex.api_error"):
            report.told.append(_told(record, (), "", failed=True))
        elif not _SILENT.fullmatch(name):
            report.unknown[name or "log record without a name"] += 1
    report.told += answers.values()
    for records_ in talks.values():
        events = [Event(_event_name(each), each.about, each.body) for each in records_]
        if told := _of_events(records_[0], events):
            report.told.append(told)
    return report


def _event_name(record: Record) -> str:
    """Claude Code's names stand whole in the body, and cut in the attribute."""
    body = record.body
    if isinstance(body, str) and body.startswith(("claude_code.", "codex.")) and len(body) < 80:
        return body
    name = record.name
    service = str(record.about.get("service.name") or "")
    if service == "claude-code" and name and not name.startswith(("claude_code.", "gen_ai.")):
        return f"claude_code.{name}"
    return name


def _prompted(record: Record, report: Report) -> None:
    prompt = record.about.get("prompt")
    if not isinstance(prompt, str) or prompt in _REDACTED or not prompt.strip():
        report.unknown["prompt that the tool keeps to itself"] += 1
        return
    report.told.append(_told(record, ({"role": "user", "content": prompt},), ""))


def _answered(record: Record, report: Report, answers: dict[tuple[str, str], Told]) -> None:
    """Claude Code's answers: those to one prompt are one."""
    check_objects(str(record.about.get("body") or ""))
    try:
        whole = msgspec.json.decode(str(record.about.get("body") or ""), type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        report.unknown["answer that is cut or kept in a file"] += 1
        return
    text = text_of(whole.get("content"))
    if not text:
        return
    key = _conversation(record) or "", str(record.about.get("prompt.id") or record.span)
    before = answers.get(key)
    told = _told(record, (), f"{before.text}\n\n{text}" if before else text)
    answers[key] = told


# ---- the conventions -----------------------------------------------------------------------------


def _of_attributes(record: Record) -> Told | None:
    """gen_ai.input.messages and gen_ai.output.messages, of the record or of an event of it."""
    for about in (record.about, *(each.about for each in record.events if each.name == _DETAILS)):
        asked = messages_of(about.get("gen_ai.input.messages"))
        said = messages_of(about.get("gen_ai.output.messages"))
        if asked or said:
            text = "\n".join(each["content"] for each in said if each["role"] == "assistant")
            return _told(record, asked, text)
    return None


def _of_numbered(record: Record) -> Told | None:
    """OpenInference's llm.input_messages.N.message.content, and what OpenLLMetry wrote before."""
    found: dict[tuple[bool, int], dict[str, str]] = {}
    for name, value in record.about.items():
        if (match := _NUMBERED.match(name)) and isinstance(value, str):
            said = match[1] in ("llm.output_messages", "gen_ai.completion")
            found.setdefault((said, int(match[2])), {})[match[3]] = value
    if not found:
        return None
    ordered = [(said, found[said, n]) for said, n in sorted(found)]
    asked = tuple(
        {"role": each.get("role", "user"), "content": each.get("content", "")}
        for said, each in ordered
        if not said
    )
    text = "\n".join(each.get("content", "") for said, each in ordered if said)
    return _told(record, asked, text)


def _of_events(record: Record, events: Iterable[Event]) -> Told | None:
    """The events gen_ai.user.message and the like, or gen_ai.content.prompt of before."""
    asked: list[Mapping[str, str]] = []
    said: list[str] = []
    for event in events:
        body = event.body if isinstance(event.body, dict) else event.about
        if role := _EVENT_ROLES.get(event.name):
            asked.append({"role": role, "content": text_of(body.get("content"))})
        elif event.name == "gen_ai.choice":
            message = _decoded(body.get("message"))
            said.append(text_of(message.get("content") if isinstance(message, dict) else message))
        elif event.name == "gen_ai.content.prompt":
            asked += messages_of(event.about.get("gen_ai.prompt"))
        elif event.name == "gen_ai.content.completion":
            said += [each["content"] for each in messages_of(event.about.get("gen_ai.completion"))]
    if not asked and not said:
        return None
    return _told(record, tuple(asked), "\n".join(filter(None, said)))


def _told(
    record: Record, asked: tuple[Mapping[str, str], ...], text: str, *, failed: bool = False
) -> Told:
    about = record.about
    model = _first(
        about, "gen_ai.response.model", "gen_ai.request.model", "llm.model_name", "model"
    )
    provider = _first(about, "gen_ai.provider.name", "gen_ai.system", "llm.provider")
    folders = (v for k, v in about.items() if _FOLDERS.search(k) and isinstance(v, str) and v)
    return Told(
        asked,
        text,
        failed or (record.failed and not text),
        _conversation(record),
        model,
        provider,
        _first(about, "service.name")[:60],
        tuple(dict.fromkeys(folders)),
    )


def _conversation(record: Record) -> str | None:
    names = ("gen_ai.conversation.id", "conversation.id", "session.id")
    return _first(record.about, *names) or None


def _first(about: Mapping[str, Any], *names: str) -> str:
    return next((v for name in names if isinstance(v := about.get(name), str) and v), "")


# ---- messages ------------------------------------------------------------------------------------


def messages_of(given: Any) -> tuple[Mapping[str, str], ...]:
    """Messages as a structure or as its JSON; each with a role and the text of its parts."""
    given = _decoded(given)
    if isinstance(given, str) and given.strip():
        return ({"role": "user", "content": given},)
    if not isinstance(given, list):
        return ()
    found = []
    for each in given[:MESSAGES_MAX]:
        if isinstance(each, dict):
            text = text_of(each.get("parts", each.get("content")))
            found.append({"role": str(each.get("role") or "user"), "content": text})
    return tuple(each for each in found if each["content"])


def _decoded(given: Any) -> Any:
    if not isinstance(given, str) or not given.lstrip().startswith(("[", "{")):
        return given
    check_objects(given)  # protobuf's own count does not look into a text
    try:
        return msgspec.json.decode(given)
    except (msgspec.MsgspecError, RecursionError):
        return given


def text_of(content: Any) -> str:
    """The text of a message: itself, or its parts that are text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = []
    for part in content:
        match part:
            case str():
                texts.append(part)
            case {"type": "text", "content": str() as text} | {
                "type": "text",
                "text": str() as text,
            }:
                texts.append(text)
    return "\n".join(texts)
