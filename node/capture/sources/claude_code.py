"""Claude Code's transcripts: `projects/<folder>/<session>.jsonl`, one JSON object a line.

What is known of the format was learned by others from files; nothing of it is promised.
- The folder's name has lost what was between its letters; only `cwd` in the lines says where.
- Sub-runs tell again what their parent tells: lines with `isSidechain`, files `agent-*.jsonl`,
  folders `<session>/subagents/`. They are left out.
- A resumed conversation begins with a copy of what it resumes: other file, other `sessionId`, same
  `uuid`s, or in a fork the first ones under `forkedFrom`. So a session's key is the `uuid` of its
  first message, which copies share: what was taken in of one file is known again in the other.
- One message of the model is several lines with the same `message.id`: one a block, and in some
  versions the same block again when it has grown. The tool's calls split an answer further.
- The tool deletes its transcripts, after 30 days unless its settings say otherwise.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from .asks import CONTEXT, OUTPUT, SUMMARY, Sign, human_ask, sign_of
from .source import ParseCounts, Reading
from .transcript import (
    DUPLICATE,
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
    fields,
    items,
    key_of,
    near_end,
    opened,
    plain,
    provider_of,
    seconds,
    text_of,
    time_key,
    word,
)

SOURCE = "claude-code"
PARSER = "claude-code/1"  # raised whenever the same file would give other turns
SELLER = "anthropic"
EXPIRY_DAYS = 30  # the tool's default
_SETTINGS_BYTES_MAX = 2**20
_HEAD_LINES_MAX = 1_000
_SUB_RUNS = "subagents"  # the folder, beside a transcript, of those of its sub-runs
_UUID: Final = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_SYNTHETIC = "<synthetic>"  # the tool's own words in the model's place
# Kinds of line that hold nothing of the conversation.
_ASIDE: Final = frozenset(
    {
        "summary",
        "ai-title",
        "custom-title",
        "agent-name",
        "agent-color",
        "agent-setting",
        "last-prompt",
        "queue-operation",
        "file-history-snapshot",
        "progress",
        "mode",
        "permission-mode",
        "pr-link",
        "tag",
        "worktree-state",
        "cost-state",
    }
)
_SETTLED: Final = frozenset({"turn_duration", "stop_hook_summary", "away_summary"})
_THINKING: Final = frozenset({"thinking", "redacted_thinking"})
_CALLS: Final = frozenset({"tool_use", "server_tool_use", "mcp_tool_use"})
_PICTURES: Final = frozenset({"image", "document", "file"})
# How the tool words the owner's refusal of a call.
_REFUSALS: Final = ("The user doesn't want to", "The user does not want to", "[Request interrupted")


class _Line(msgspec.Struct, rename="camel"):
    """The fields that are read. The others, often whole files, are skipped without being held."""

    type: Any = None
    subtype: Any = None
    uuid: Any = None
    session_id: Any = None
    timestamp: Any = None
    cwd: Any = None
    version: Any = None
    is_sidechain: Any = None
    is_meta: Any = None
    is_compact_summary: Any = None
    is_visible_in_transcript_only: Any = None
    is_api_error_message: Any = None
    forked_from: Any = None
    message: Any = None
    attachment: Any = None


_decoder = msgspec.json.Decoder(_Line)


class ClaudeCode:
    """Reads what Claude Code keeps. tool_output: keep calls of tools and what they gave back."""

    def __init__(self, *, tool_output: bool = False) -> None:
        self._tool_output = tool_output

    @property
    def name(self) -> str:
        return SOURCE

    def roots(self) -> list[Path]:
        return [root for home in _homes() if (root := home / "projects").is_dir()]

    def files(self, root: Path) -> Iterator[Path]:
        found = beneath(root, lambda name: name.endswith(".jsonl"), without=_SUB_RUNS)
        yield from by_age([path for path in found if not path.name.startswith("agent-")])

    def read(self, path: Path, start: int = 0, *, growing: bool = False) -> Reading:
        """Read one transcript. `growing` holds back the last answer unless a later line ends it:
        the next ask, an interruption, an error of the provider, or the tool's account of the turn.
        """
        counts = ParseCounts()
        head = _head(path)
        reader = LineReader(path, start, counts)
        start = reader.position
        told = _Transcript(counts, continued=start > 0, tool_output=self._tool_output)
        told.session.folders.seen(head.cwd)
        told.version = word(head.version)
        for place, line in reader:
            record = decode(_decoder, line, counts)
            if record is not None:
                told.take(place, record)
        answer = told.session.answer
        held = answer.place if growing and answer is not None and not told.settled else None
        key = key_of(head.uuid or head.session_id, path.stem)
        sessions = told.session.told(key, held, tool_version=told.version, parser=PARSER)
        position = reader.position if held is None else held
        held_back = int(held is not None)
        return Reading(sessions, position, counts, held_back, start)

    def recent(self, path: Path, budget: int) -> int:
        return near_end(path, budget)

    def expiry_days(self) -> int | None:
        for home in _homes():
            try:
                with opened(home / "settings.json") as file:
                    days = fields(msgspec.json.decode(file.read(_SETTINGS_BYTES_MAX)))
            except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
                continue
            period = days.get("cleanupPeriodDays")
            if isinstance(period, int) and not isinstance(period, bool) and period >= 0:
                return period
        return EXPIRY_DAYS


def _homes() -> list[Path]:
    configured = os.environ.get("CLAUDE_CONFIG_DIR")
    if configured:
        return [Path(configured).expanduser()]
    return [Path(home).expanduser() for home in ("~/.claude", "~/.config/claude")]


def _head(path: Path) -> _Line:
    """Return the first message of the conversation; an empty line if there is none yet.

    What a hook or the tool itself writes on top is written anew at each resumption.
    """
    for number, (_, line) in enumerate(LineReader(path, 0, ParseCounts())):
        if number >= _HEAD_LINES_MAX:
            break
        record = decode(_decoder, line, ParseCounts())
        if record is None or record.is_sidechain is True or record.is_meta is True:
            continue
        record.uuid = _first_id(record)
        if record.uuid and record.type in ("user", "assistant"):
            return record
    return _Line()


def _first_id(line: _Line) -> str:
    """The id that the message had where it was first written."""
    return word(fields(line.forked_from).get("messageUuid")) or word(line.uuid)


def _is_uuid(id_: str) -> bool:
    """True if no other message anywhere has this id; a version might only number them."""
    return _UUID.fullmatch(id_) is not None


class _Transcript:
    """One reading's way through the lines of a conversation."""

    def __init__(self, counts: ParseCounts, *, continued: bool, tool_output: bool) -> None:
        self.session = Session(continued=continued)
        self.settled = False  # a line has ended the answer
        self.version = ""
        self._counts = counts
        self._left_out = counts.left_out
        self._tool_output = tool_output
        self._seen: set[str] = set()
        self._message = ""  # the model's message that the last line was of
        self._message_parts: set[str] = set()  # the parts of the answer that are of it

    def take(self, place: int, line: _Line) -> None:
        if not isinstance(line.type, str) or line.type in _ASIDE:
            if not isinstance(line.type, str):
                count_unknown(self._counts, line.type)
            return
        if line.is_sidechain is True:
            self._left_out[SUB_RUN] += 1
            return
        line.uuid = _first_id(line)
        self.session.folders.seen(line.cwd)
        self.version = word(line.version) or self.version
        match line.type:
            case "user" | "assistant" | "attachment" if line.uuid and self._is_copy(line.uuid):
                return
            case "user":
                self._user(place, line)
            case "assistant":
                self._assistant(place, line)
            case "attachment":
                self._attachment(place, line)
            case "system":
                self.settled = self.settled or word(line.subtype) in _SETTLED
            case _:
                count_unknown(self._counts, line.type)

    def _is_copy(self, key: str) -> bool:
        """True, and counted, if a line, or a text without an id, was met before in this reading.

        Met in another reading, it has the same key and is known in the corpus.
        """
        if key in self._seen:
            self._left_out[DUPLICATE] += 1
            return True
        self._seen.add(key)
        return False

    def _user(self, place: int, line: _Line) -> None:
        if line.is_compact_summary is True or line.is_visible_in_transcript_only is True:
            self._left_out[SUMMARY] += 1
            return
        if line.is_meta is True:
            self._left_out[CONTEXT] += 1
            return
        content = fields(line.message).get("content")
        texts, results = [plain(content)] if isinstance(content, str) else [], 0
        for index, block in enumerate(items(content)):
            block = fields(block)
            match block.get("type"):
                case "text":
                    texts.append(plain(block.get("text")))
                case "tool_result":
                    results += 1
                    self._tool_result(place, line, index, block)
                case kind if isinstance(kind, str) and kind in _PICTURES:
                    self._left_out[IMAGE] += 1
                case kind:
                    self._count_block(kind)
        self._ask(place, line, texts, by_owner=not results)

    def _ask(self, place: int, line: _Line, texts: list[str], *, by_owner: bool) -> None:
        """by_owner: False for texts beside a tool's result, which are the tool's as well."""
        asks = [human_ask(text) for text in texts]
        for ask in asks:
            self._left_out.update(ask.left_out)
        if any(ask.stopped for ask in asks):
            self.session.course.note(place, Sign.STOPPED)
            self.settled = True
        text = "\n\n".join(ask.text for ask in asks if ask.text)
        if text and not by_owner:
            self._left_out[CONTEXT] += 1
        elif text:
            key = key_of(line.uuid, time_key(line.timestamp), text)
            if not line.uuid and self._is_copy(key):
                return
            at, own = seconds(line.timestamp), _is_uuid(line.uuid)
            self.session.ask(place, key, text, at, sign_of(text), unique=own)
            self.settled = False
            self._message = ""

    def _tool_result(self, place: int, line: _Line, index: int, block: dict[str, Any]) -> None:
        failed = block.get("is_error") is True
        text = text_of(block.get("content")) if failed or self._tool_output else ""
        refused = failed and text.startswith(_REFUSALS)
        sign = Sign.STOPPED if refused else Sign.FAILED if failed else Sign.WORKED
        self.session.came_back(place, block.get("tool_use_id"), sign)
        if self._tool_output and text:
            key = f"{key_of(line.uuid, str(place))}/{index}"
            own = _is_uuid(line.uuid)
            self.session.tool(place, key, "", "TOOL_OUTPUT", text, line.timestamp, unique=own)
        else:
            self._left_out[OUTPUT] += 1

    def _attachment(self, place: int, line: _Line) -> None:
        """A message that the owner sent while an answer was being given stands in an attachment."""
        attached = fields(line.attachment)
        prompt = plain(attached.get("prompt"))
        by_owner = attached.get("commandMode") in (None, "prompt")
        if attached.get("type") != "queued_command" or not prompt or not by_owner:
            self._left_out[CONTEXT] += 1
            return
        self._ask(place, line, [prompt], by_owner=True)

    def _assistant(self, place: int, line: _Line) -> None:
        message = fields(line.message)
        model = word(message.get("model"))
        if line.is_api_error_message is True:
            self.session.course.note(place, Sign.BROKE)
            self.settled = True
            return
        if model == _SYNTHETIC:
            self._left_out[CONTEXT] += 1
            return
        self.settled = False
        call = key_of(message.get("id"), str(place))
        usage = fields(message.get("usage"))
        taken, cached = usage.get("input_tokens"), usage.get("cache_read_input_tokens")
        self.session.usage.add(call, taken, usage.get("output_tokens"), cached)
        content = message.get("content")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else items(content)
        for index, block in enumerate(blocks):
            block = fields(block)
            match block.get("type"):
                case "text":
                    self._say(place, line, call, plain(block.get("text")).strip())
                case kind if isinstance(kind, str) and kind in _CALLS:
                    self._tool_call(place, line, index, block)
                case kind if isinstance(kind, str) and kind in _THINKING:
                    self._left_out[THINKING] += 1
                case kind if isinstance(kind, str) and kind.endswith("_tool_result"):
                    self._left_out[OUTPUT] += 1
                case kind if isinstance(kind, str) and kind in _PICTURES:
                    self._left_out[IMAGE] += 1
                case kind:
                    self._count_block(kind)
        if (answer := self.session.answer) is not None:
            answer.model = model or answer.model
            ours = not model or "claude" in model  # else another's, behind a proxy
            answer.provider = provider_of(model) or (SELLER if ours else "")
            answer.finish = word(message.get("stop_reason")) or answer.finish

    def _say(self, place: int, line: _Line, call: str, text: str) -> None:
        if not text:
            return
        if call != self._message or self.session.answer is None:
            self._message, self._message_parts = call, set()
        elif self._message_parts:
            parts = self.session.answer.parts
            if text in self._message_parts:
                return
            if text.startswith(parts[-1]):  # the same block, grown
                self._message_parts.discard(parts[-1])
                self._message_parts.add(text)
                parts[-1] = text
                return
        key = key_of(line.uuid, time_key(line.timestamp), text)
        if not line.uuid and self._is_copy(key):
            return
        at, own = seconds(line.timestamp), _is_uuid(line.uuid)
        self.session.say(place, key, text, at, unique=own)
        self._message_parts.add(text)

    def _tool_call(self, place: int, line: _Line, index: int, block: dict[str, Any]) -> None:
        self.session.called(block.get("id"), block.get("name"), block.get("input"))
        text = text_of(block.get("input")) if self._tool_output else ""
        if not text:
            self._left_out[TOOL_CALL] += 1
            return
        key = f"{key_of(line.uuid, str(place))}/{index}"
        name = word(block.get("name"))
        own = _is_uuid(line.uuid)
        self.session.tool(place, key, name, "TOOL_CALL", text, line.timestamp, unique=own)

    def _count_block(self, kind: object) -> None:
        count_unknown(self._counts, f"block/{kind}" if isinstance(kind, str) else kind)
