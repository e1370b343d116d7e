"""Codex's transcripts: `sessions/YYYY/MM/DD/rollout-*.jsonl`, and flat in `archived_sessions/`.

The tool promises nothing of the format and has changed it often. What is read here:
- until September 2025 bare lines: a first one `{id, timestamp, instructions}`, then items without
  time or folder; the folder stands in the text of the first `<environment_context>`;
- then `{timestamp, type, payload}`: `session_meta`, `turn_context` (folder and model, each turn),
  `response_item` (what the model saw and gave), `event_msg` (what the user saw);
- from 2026 `instructions` is `base_instructions`, turns have ids, sub-agents have files of their
  own (`source: {subagent: …}`, left out), a fork begins with a copy of what it was forked from;
- in "paginated" files the user's and the model's words stand in `item_completed` events.

One message is told twice, as an item and as an event, and either may be missing: answers are
matched by their text; asks are taken from events wherever a file has events of the user's words,
for an item in the user's place that has no event was injected.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from .asks import CONTEXT, OUTPUT, SUMMARY, Sign, human_ask, sign_of
from .source import ParseCounts, Reading
from .transcript import (
    IMAGE,
    SUB_RUN,
    THINKING,
    TOOL_CALL,
    LineReader,
    Session,
    beneath,
    by_age,
    count_unknown,
    decode,
    digest,
    fields,
    items,
    key_of,
    near_end,
    plain,
    seconds,
    text_of,
    time_key,
    word,
)

SOURCE = "codex"
PARSER = "codex/1"  # raised whenever the same file would give other turns
SELLER = "openai"
_HEAD_LINES_MAX = 200
_FOLDER_TAG, _FOLDER_END = "<cwd>", "</cwd>"
_OLD_FOLDER = "Current working directory: "
_CALLS: Final = frozenset(
    {
        "function_call",
        "custom_tool_call",
        "local_shell_call",
        "web_search_call",
        "tool_search_call",
        "image_generation_call",
    }
)
_OUTPUTS: Final = frozenset(
    {
        "function_call_output",
        "custom_tool_call_output",
        "tool_search_output",
        "mcp_tool_call_output",
    }
)
_SUMMARIES: Final = frozenset({"compaction", "compaction_summary", "context_compaction"})
_ASIDE_ITEMS: Final = frozenset({"ghost_snapshot", "agent_message", "compaction_trigger", "other"})
_ASIDE_LINES: Final = frozenset(
    {
        "session_meta",
        "world_state",
        "inter_agent_communication",
        "inter_agent_communication_metadata",
        "security_risk_score",
        "token_usage_record",
    }
)
# Events that say nothing of the conversation, or say again what an item says.
_ASIDE_EVENTS: Final = frozenset(
    {
        "thread_name_updated",
        "thread_settings_applied",
        "thread_goal_updated",
        "entered_review_mode",
        "exited_review_mode",
        "exec_command_begin",
        "exec_command_end",
        "patch_apply_begin",
        "patch_apply_end",
        "mcp_tool_call_begin",
        "mcp_tool_call_end",
        "web_search_begin",
        "web_search_end",
        "image_generation_end",
        "view_image_tool_call",
        "sub_agent_activity",
        "guardian_assessment",
        "dynamic_tool_call_request",
        "dynamic_tool_call_response",
        "plan_update",
        "turn_diff",
        "background_event",
        "warning",
    }
)
_EXIT: Final = re.compile(r'(?:[Ee]xit[_ ][Cc]ode"?:|exited with code)\s{0,4}(-?\d{1,6})')
_REFUSED: Final = "rejected by user"
_ENDS_CHARS = 400  # of a tool's output, in which the tool tells how the call went


class _Line(msgspec.Struct):
    timestamp: Any = None
    type: Any = None
    payload: Any = None
    # The rest is of bare lines, which are their own payload.
    record_type: Any = None
    id: Any = None
    role: Any = None
    content: Any = None
    name: Any = None
    arguments: Any = None
    input: Any = None
    action: Any = None
    output: Any = None
    call_id: Any = None
    encrypted_content: Any = None


_decoder = msgspec.json.Decoder(_Line)


class Codex:
    """Reads what Codex keeps. tool_output: keep calls of tools and what they gave back."""

    def __init__(self, *, tool_output: bool = False) -> None:
        self._tool_output = tool_output

    @property
    def name(self) -> str:
        return SOURCE

    def roots(self) -> list[Path]:
        home = Path(os.environ.get("CODEX_HOME") or "~/.codex").expanduser()
        folders = (home / "sessions", home / "archived_sessions")
        return [folder for folder in folders if folder.is_dir()]

    def files(self, root: Path) -> Iterator[Path]:
        found = beneath(root, lambda n: n.startswith("rollout-") and n.endswith(".jsonl"))
        yield from by_age(found)

    def read(self, path: Path, start: int = 0, *, growing: bool = False) -> Reading:
        """Read one transcript. `growing` holds back the last exchange, from its ask on, unless it
        was ended by the tool's word or the next ask: the turn's id and model stand before the ask,
        and keys are made of them.

        Bare files are always read whole: their lines have no time that would tell them apart.
        """
        counts = ParseCounts()
        head = _head(path)
        reader = LineReader(path, 0 if head.bare else start, counts)
        if head.sub_run:
            counts.left_out[SUB_RUN] += sum(1 for _ in reader)
            return Reading((), reader.position, counts)
        start = reader.position
        told = _Rollout(head, counts, start > 0, self._tool_output)
        for place, line in reader:
            record = decode(_decoder, line, counts)
            if record is not None:
                told.take(place, record)
        held = told.held() if growing else None
        key = head.root or path.stem
        sessions = told.session.told(key, held, tool_version=head.version, parser=PARSER)
        position = reader.position if held is None else held
        held_back = int(held is not None and told.exchange.answered)
        return Reading(sessions, position, counts, held_back, start)

    def recent(self, path: Path, budget: int) -> int:
        return near_end(path, budget)

    def expiry_days(self) -> int | None:
        return None


@dataclass(slots=True)
class _Head:
    """What the first lines tell of the whole file."""

    root: str = ""  # the session's id; a fork's is that of what it was forked from
    folder: object = None
    version: str = ""
    provider: str = SELLER
    model: str = ""
    timestamp: object = None
    bare: bool = False
    sub_run: bool = False
    events: bool = False  # the user's words stand in events too

    def meta(self, payload: dict[str, Any], *, first: bool) -> None:
        """Take a `session_meta`. A fork has its own first, then copies: its parent's, and so on."""
        own = word(payload.get("id")) or word(payload.get("session_id"))
        self.root = word(payload.get("forked_from_id")) or own or self.root
        if not first:
            return
        self.folder = payload.get("cwd")
        self.version = word(payload.get("cli_version"))
        self.provider = word(payload.get("model_provider")) or SELLER
        self.timestamp = payload.get("timestamp")
        source = fields(payload.get("source"))
        self.sub_run = bool({"subagent", "sub_agent", "internal"} & source.keys()) or (
            payload.get("thread_source") == "subagent"
        )


def _head(path: Path) -> _Head:
    head = _Head()
    first = leading = True
    for number, (_, line) in enumerate(LineReader(path, 0, ParseCounts())):
        record = decode(_decoder, line, ParseCounts())
        if number >= _HEAD_LINES_MAX or (head.events and head.model):
            break
        if record is None:
            continue
        payload = fields(record.payload)
        if record.type == "session_meta" and leading:
            head.meta(payload, first=first)
            first = False
            continue
        if first and record.payload is None:
            head.bare = True
            if record.type is None and word(record.id):
                head.root, head.timestamp, first = word(record.id), record.timestamp, False
        leading = False
        if record.type == "turn_context":
            head.model = head.model or word(payload.get("model"))
            head.folder = head.folder or payload.get("cwd")
        elif record.type == "event_msg" and _told_by_user(payload) is not None:
            head.events = True
    return head


def _told_by_user(event: dict[str, Any]) -> str | None:
    """The user's words in an event; None if it is of something else."""
    match event.get("type"):
        case "user_message":
            return plain(event.get("message"))
        case "item_completed":
            item = fields(event.get("item"))
            return _joined(item) if _kind(item) == "usermessage" else None
    return None


def _kind(item: dict[str, Any]) -> str:
    """The kind of a turn's item, which versions spell UserMessage, userMessage, user_message."""
    kind = item.get("type")
    return kind.replace("_", "").lower() if isinstance(kind, str) else ""


def _joined(item: dict[str, Any]) -> str:
    content = item.get("content")
    if isinstance(content, str):
        return plain(content)
    return "\n".join(filter(None, (plain(fields(block).get("text")) for block in items(content))))


@dataclass(slots=True)
class _Exchange:
    """One turn in Codex' sense: what the user asked, until the model is done with it."""

    place: int = 0
    open: bool = False
    answered: bool = False
    asked: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    said: set[str] = field(default_factory=set)


class _Rollout:
    """One reading's way through the lines of a rollout."""

    def __init__(
        self, head: _Head, counts: ParseCounts, continued: bool, tool_output: bool
    ) -> None:
        self.session = Session(continued=continued)
        self.session.folders.seen(head.folder)
        self.exchange = _Exchange()
        self._head = head
        self._counts = counts
        self._left_out = counts.left_out
        self._tool_output = tool_output
        self._model = head.model
        self._turn = ""  # id of the turn, from early 2026 on
        self._events = head.events
        self._in_task = False
        self._context: int | None = None  # place of a turn's context before its ask

    def take(self, place: int, line: _Line) -> None:
        payload = fields(line.payload)
        if line.payload is None and line.type is None:
            if line.record_type is None and line.id is None:
                count_unknown(self._counts, line.type)
            return
        match line.type:
            case "turn_context":
                self._turn_context(place, payload)
            case "response_item":
                self._item(place, line, payload)
            case "event_msg":
                self._event(place, line, payload)
            case "compacted":
                self._left_out[SUMMARY] += 1
            case kind if isinstance(kind, str) and kind in _ASIDE_LINES:
                pass
            case _ if line.payload is None:
                self._item(place, line, msgspec.structs.asdict(line))
            case kind:
                count_unknown(self._counts, kind)

    def held(self) -> int | None:
        """Where what is not finished begins; None if all is."""
        return self.exchange.place if self.exchange.open else self._context

    def _begin(self, place: int) -> None:
        place = place if self._context is None else self._context
        self.exchange = _Exchange(place, open=True)
        self._context = None

    def _turn_context(self, place: int, payload: dict[str, Any]) -> None:
        self.session.folders.seen(payload.get("cwd"))
        self._model = word(payload.get("model")) or self._model
        if not self._in_task and self._context is None:
            self._context = place
        self._turn = word(payload.get("turn_id")) or self._turn

    def _event(self, place: int, line: _Line, event: dict[str, Any]) -> None:
        if (told := _told_by_user(event)) is not None:
            self._events = True
            self._left_out[IMAGE] += len(items(event.get("images")))
            self._ask(place, line, [told], "event")
            return
        match event.get("type"):
            case "agent_message":
                self._say(place, line, plain(event.get("message")))
            case "item_completed":
                if _kind(item := fields(event.get("item"))) == "agentmessage":
                    self._say(place, line, _joined(item))
            case "task_started" | "turn_started":
                self._turn = word(event.get("turn_id"))
                self._begin(place)
                self._in_task = True
            case "task_complete" | "turn_complete":
                self._say(place, line, plain(event.get("last_agent_message")))
                self._end()
            case "turn_aborted":
                self.session.course.note(place, Sign.STOPPED)
                self._end()
            case "thread_rolled_back":
                self.session.course.note(place, Sign.STOPPED)
            case "error" | "stream_error" | "turn_failed":
                self.session.course.note(place, Sign.BROKE)
            case "token_count":
                self._usage(place, fields(fields(event.get("info")).get("last_token_usage")))
            case "agent_reasoning" | "agent_reasoning_raw_content":
                self._left_out[THINKING] += 1
            case "context_compacted":
                self._left_out[SUMMARY] += 1
            case kind if not isinstance(kind, str) or kind not in _ASIDE_EVENTS:
                count_unknown(self._counts, f"event_msg/{kind}" if isinstance(kind, str) else kind)

    def _end(self) -> None:
        self._in_task = self.exchange.open = False
        self._context = None

    def _usage(self, place: int, usage: dict[str, Any]) -> None:
        taken, cached = usage.get("input_tokens"), usage.get("cached_input_tokens")
        self.session.usage.add(str(place), taken, usage.get("output_tokens"), cached)

    def _item(self, place: int, line: _Line, item: dict[str, Any]) -> None:
        match item.get("type"):
            case "message":
                self._message(place, line, item)
            case "reasoning":
                self._left_out[THINKING] += 1
            case kind if isinstance(kind, str) and kind in _CALLS:
                self._tool_call(place, line, item)
            case kind if isinstance(kind, str) and kind in _OUTPUTS:
                self._tool_output_of(place, line, item)
            case kind if isinstance(kind, str) and kind in _SUMMARIES:
                self._left_out[SUMMARY] += 1
            case kind if not isinstance(kind, str) or kind not in _ASIDE_ITEMS:
                count_unknown(self._counts, f"item/{kind}" if isinstance(kind, str) else kind)

    def _message(self, place: int, line: _Line, item: dict[str, Any]) -> None:
        content = item.get("content")
        texts = [plain(content)] if isinstance(content, str) else []
        for block in map(fields, items(content)):
            match block.get("type"):
                case "input_text" | "output_text" | "text":
                    texts.append(plain(block.get("text")))
                case "input_image" | "image":
                    self._left_out[IMAGE] += 1
                case kind:
                    count_unknown(self._counts, f"block/{kind}" if isinstance(kind, str) else kind)
        match item.get("role"):
            case "user":
                for text in texts:
                    self.session.folders.seen(_folder_in(text))
                # A picture is framed by texts of its own: <image name=…>, </image>.
                self._ask(place, line, [t for t in texts if not _frames_image(t)], "item")
            case "assistant":
                self._say(place, line, "\n\n".join(filter(None, texts)))
            case _:
                self._left_out[CONTEXT] += 1

    def _ask(self, place: int, line: _Line, texts: list[str], channel: str) -> None:
        asks = [human_ask(text) for text in texts]
        if any(ask.stopped for ask in asks):
            self.session.course.note(place, Sign.STOPPED)
        text = "\n\n".join(ask.text for ask in asks if ask.text)
        if channel == "item":
            for ask in asks:
                self._left_out.update(ask.left_out)
        if not text or (channel == "item" and self._events):
            return
        if not self._in_task and (not self.exchange.open or self.exchange.answered):
            self._begin(place)
        same = digest(" ".join(text.split()))
        times = self.exchange.asked[same]
        times[channel] += 1
        if times[channel] <= max((n for other, n in times.items() if other != channel), default=0):
            return  # told by the other channel already
        key = digest(self._turn or word(line.timestamp), "ask", same, str(times[channel]))
        self.session.ask(place, key, text, self._time(line), sign_of(text))

    def _say(self, place: int, line: _Line, text: str) -> None:
        text = text.strip()
        same = digest(" ".join(text.split()))
        if not text or same in self.exchange.said:
            return
        if not self.exchange.open and not self._in_task:
            self._begin(place)
        self._context = None
        self.exchange.said.add(same)
        self.exchange.answered = True
        key = digest(self._turn or word(line.timestamp), "answer", same)
        answer = self.session.say(place, key, text, self._time(line))
        answer.model, answer.provider = self._model, self._head.provider

    def _time(self, line: _Line) -> float | None:
        return seconds(line.timestamp) or seconds(self._head.timestamp)

    def _tool_call(self, place: int, line: _Line, item: dict[str, Any]) -> None:
        given = item.get("arguments") or item.get("input") or item.get("action")
        self.session.called(item.get("call_id"), item.get("name"), given)
        text = text_of(given) if self._tool_output else ""
        if not text:
            self._left_out[TOOL_CALL] += 1
            return
        key = f"call/{key_of(item.get('call_id'), time_key(line.timestamp), text)}"
        name = word(item.get("name"))
        self.session.tool(place, key, name, "TOOL_CALL", text, line.timestamp)

    def _tool_output_of(self, place: int, line: _Line, item: dict[str, Any]) -> None:
        output = item.get("output")
        told = fields(output)
        text = text_of(told.get("content", told.get("output", told))) if told else text_of(output)
        sign = _verdict(told, text)
        if sign is not None:
            self.session.came_back(place, item.get("call_id"), sign)
        if self._tool_output and text:
            key = f"output/{key_of(item.get('call_id'), time_key(line.timestamp), text)}"
            self.session.tool(place, key, "", "TOOL_OUTPUT", text, line.timestamp)
        else:
            self._left_out[OUTPUT] += 1


def _verdict(told: dict[str, Any], text: str) -> Sign | None:
    """How a call went, as far as its output tells; None if it does not."""
    ends = text[:_ENDS_CHARS] + text[-_ENDS_CHARS:]
    if _REFUSED in ends[:_ENDS_CHARS]:
        return Sign.STOPPED
    if isinstance(told.get("success"), bool):
        return Sign.WORKED if told["success"] else Sign.FAILED
    code = _EXIT.search(ends)
    if code is None:
        return None
    return Sign.WORKED if int(code.group(1)) == 0 else Sign.FAILED


def _frames_image(text: str) -> bool:
    bare = text.strip()
    return len(bare) < _ENDS_CHARS and (bare.startswith("<image") or bare == "</image>")


def _folder_in(text: str) -> str | None:
    """The folder that an `<environment_context>` tells, in its newer and its older wording."""
    if "<environment_context>" not in text[:_ENDS_CHARS]:
        return None
    _, found, after = text.partition(_FOLDER_TAG)
    if found:
        return after.partition(_FOLDER_END)[0].strip()
    _, found, after = text.partition(_OLD_FOLDER)
    return after.partition("\n")[0].strip() if found else None
