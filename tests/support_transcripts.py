"""Transcripts in the real formats of several versions of each tool, made in code.

Every text is made up here. The shapes follow what the tools write: see the parsers' docstrings.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

BEGIN = datetime(2026, 4, 26, 12, 0, tzinfo=UTC)
FOLDER = "/home/ada/projects/kettle"
CLAUDE, GPT = "claude-sonnet-4-5-20250929", "gpt-5.2-codex"

Row = dict[str, Any]


def stamp(step: int) -> str:
    return (BEGIN + timedelta(seconds=step)).isoformat(timespec="milliseconds")[:-6] + "Z"


def lines_of(rows: Iterable[Row]) -> bytes:
    return b"".join(json.dumps(row, separators=(",", ":")).encode() + b"\n" for row in rows)


def written(path: Path, rows: Iterable[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lines_of(rows))
    return path


@dataclass
class ClaudeChat:
    """Makes the lines of one Claude Code session; each call is one line."""

    session_id: str = "0f3c2a10-1111-4222-8333-444455556666"
    version: str = "2.0.14"
    cwd: str = FOLDER
    prefix: str = "u"
    rows: list[Row] = field(default_factory=list)

    def line(self, kind: str, **more: Any) -> Row:
        number = len(self.rows)
        row: Row = {
            "parentUuid": f"{self.prefix}-{number - 1:04}" if number else None,
            "isSidechain": False,
            "userType": "external",
            "cwd": self.cwd,
            "sessionId": self.session_id,
            "version": self.version,
            "gitBranch": "main",
            "type": kind,
            "uuid": f"{self.prefix}-{number:04}",
            "timestamp": stamp(number),
            **more,
        }
        self.rows.append(row)
        return row

    def ask(self, content: object, **more: Any) -> Row:
        return self.line("user", message={"role": "user", "content": content}, **more)

    def say(self, *blocks: Row, message_id: str = "", **more: Any) -> Row:
        message = {
            "id": message_id or f"msg_{len(self.rows):04}",
            "type": "message",
            "role": "assistant",
            "model": more.pop("model", CLAUDE),
            "content": list(blocks),
            "stop_reason": more.pop("stop_reason", "end_turn"),
            "usage": {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 100},
        }
        return self.line("assistant", message=message, requestId="req_1", **more)

    def text(self, text: str, **more: Any) -> Row:
        return self.say({"type": "text", "text": text}, **more)

    def call(self, tool: str = "Bash", **given: Any) -> Row:
        block = {"type": "tool_use", "id": f"toolu_{len(self.rows)}", "name": tool, "input": given}
        return self.say(block, stop_reason="tool_use")

    def result(self, content: object, *, is_error: bool = False) -> Row:
        block = {
            "type": "tool_result",
            "tool_use_id": f"toolu_{len(self.rows) - 1}",
            "content": content,
        }
        if is_error:
            block["is_error"] = True
        return self.ask([block], toolUseResult={"stdout": str(content), "stderr": ""})

    def aside(self, kind: str, **more: Any) -> Row:
        row = {"type": kind, **more}
        self.rows.append(row)
        return row


def claude_path(home: Path, name: str = "0f3c2a10-1111-4222-8333-444455556666") -> Path:
    return home / "projects" / "-home-ada-projects-kettle" / f"{name}.jsonl"


@dataclass
class Rollout:
    """Makes the lines of one Codex session of the era of envelopes."""

    session_id: str = "019a5c5a-eb02-7ff0-90af-653b66eba9f4"
    cwd: str = FOLDER
    events: bool = True  # the user's and the model's words come as events, too
    turn_ids: bool = True
    tasks: bool = True
    rows: list[Row] = field(default_factory=list)
    turn: int = 0

    def line(self, kind: str, payload: Row) -> Row:
        row = {"timestamp": stamp(len(self.rows)), "type": kind, "payload": payload}
        self.rows.append(row)
        return row

    def meta(self, **more: Any) -> Row:
        return self.line(
            "session_meta",
            {
                "id": self.session_id,
                "timestamp": stamp(0),
                "cwd": self.cwd,
                "originator": "codex_cli_rs",
                "cli_version": "0.144.3",
                "source": "cli",
                "model_provider": "openai",
                **more,
            },
        )

    def event(self, kind: str, **more: Any) -> Row:
        return self.line("event_msg", {"type": kind, **more})

    def item(self, kind: str, **more: Any) -> Row:
        return self.line("response_item", {"type": kind, **more})

    def message(self, role: str, *texts: str) -> Row:
        kind = "output_text" if role == "assistant" else "input_text"
        return self.item(
            "message", role=role, content=[{"type": kind, "text": text} for text in texts]
        )

    def begin(self) -> None:
        """What stands before an ask: the task, and the turn's context."""
        self.turn += 1
        turn: Row = {"turn_id": f"turn-{self.turn}"} if self.turn_ids else {}
        if self.tasks:
            self.event("task_started", **turn)
        self.line("turn_context", {**turn, "cwd": self.cwd, "model": GPT, "summary": "auto"})

    def ask(self, text: str, *, begin: bool = True) -> None:
        if begin:
            self.begin()
        self.message("user", text)
        if self.events:
            self.event("user_message", message=text, images=[])

    def text(self, text: str) -> None:
        if self.events:
            self.event("agent_message", message=text)
        self.message("assistant", text)

    def call(self, output: object) -> None:
        call = f"call_{len(self.rows)}"
        self.item("function_call", name="shell", arguments='{"cmd":"make"}', call_id=call)
        self.item("function_call_output", call_id=call, output=output)

    def end(self, last: str | None = None) -> None:
        usage = {"input_tokens": 50, "cached_input_tokens": 20, "output_tokens": 7}
        self.event("token_count", info={"last_token_usage": usage}, rate_limits=None)
        if self.tasks:
            self.event("task_complete", turn_id=f"turn-{self.turn}", last_agent_message=last)

    def exchange(self, ask: str, answer: str) -> None:
        self.ask(ask)
        self.text(answer)
        self.end(answer)


def rollout_path(home: Path, name: str = "019a5c5a-eb02-7ff0-90af-653b66eba9f4") -> Path:
    day = home / "sessions" / "2026" / "04" / "26"
    return day / f"rollout-2026-04-26T12-00-00-{name}.jsonl"


def bare_rollout() -> list[Row]:
    """A Codex file of August 2025: no envelopes, no times."""
    context = (
        f"<environment_context>\nCurrent working directory: {FOLDER}\n"
        "Approval policy: never\n</environment_context>"
    )

    def message(role: str, text: str) -> Row:
        kind = "output_text" if role == "assistant" else "input_text"
        content = [{"type": kind, "text": text}]
        return {"type": "message", "id": None, "role": role, "content": content}

    return [
        {"id": "c3c4b301", "timestamp": stamp(0), "instructions": None, "git": {"branch": "main"}},
        {"record_type": "state"},
        message("user", context),
        message("user", "Which port does the kettle use?"),
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "xx"},
        {"type": "function_call", "name": "shell", "arguments": "{}", "call_id": "c1"},
        {"type": "function_call_output", "call_id": "c1", "output": "Exit code: 0\nok"},
        {"record_type": "state"},
        message("assistant", "It uses port 8080."),
        message("user", "yes"),
        message("assistant", "Good."),
        message("user", "yes"),
        message("assistant", "Still good."),
    ]


OLD_LLM = """
CREATE TABLE conversations (id TEXT PRIMARY KEY, name TEXT, model TEXT);
CREATE TABLE responses (id TEXT PRIMARY KEY, model TEXT, prompt TEXT, system TEXT,
  prompt_json TEXT, options_json TEXT, response TEXT, response_json TEXT,
  conversation_id TEXT REFERENCES conversations(id), duration_ms INTEGER, datetime_utc TEXT,
  input_tokens INTEGER, output_tokens INTEGER, token_details TEXT, resolved_model TEXT);
CREATE TABLE tool_calls (id INTEGER PRIMARY KEY, response_id TEXT, name TEXT, arguments TEXT);
CREATE TABLE tool_results (id INTEGER PRIMARY KEY, response_id TEXT, name TEXT, output TEXT,
  exception TEXT);
"""
NEW_LLM = """
CREATE TABLE messages (hash TEXT PRIMARY KEY, parent_hash TEXT, role TEXT, provider_metadata TEXT);
CREATE TABLE parts (id INTEGER PRIMARY KEY, message_hash TEXT, position INTEGER, type TEXT,
  tool_name TEXT, text TEXT, payload TEXT);
CREATE TABLE threads (id TEXT PRIMARY KEY, name TEXT, tip_message_hash TEXT, forked_from TEXT,
  datetime_utc TEXT);
CREATE TABLE turns (id TEXT PRIMARY KEY, thread_id TEXT, parent_message_hash TEXT,
  tip_message_hash TEXT, model TEXT, resolved_model TEXT, options_json TEXT, schema_id TEXT,
  input_tokens INTEGER, output_tokens INTEGER, token_details TEXT, duration_ms INTEGER,
  datetime_utc TEXT);
"""


class LlmLog:
    """Writes the database of `llm` as the tool would, of either generation."""

    def __init__(self, path: Path, schema: str = OLD_LLM + NEW_LLM) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.database = sqlite3.connect(path, isolation_level=None)
        self.database.executescript(schema)
        self._tips: dict[str, str] = {}

    def insert(self, table: str, **values: Any) -> None:
        marks = ",".join("?" * len(values))
        self.database.execute(
            f"INSERT INTO {table} ({','.join(values)}) VALUES ({marks})", list(values.values())
        )

    def response(self, key: str, prompt: str, answer: str, conversation: str = "c1") -> None:
        self.insert(
            "responses",
            id=key,
            model="gpt-4o-mini",
            prompt=prompt,
            system="Be brief.",
            response=answer,
            conversation_id=conversation,
            datetime_utc="2026-04-26T12:00:00.123456",
            input_tokens=9,
            output_tokens=4,
        )

    def turn(self, key: str, prompt: str, answer: str, thread: str = "t1") -> None:
        parent = self.message(f"{key}-in", self._tips.get(thread), "user", ("text", prompt))
        tip = self.message(f"{key}-out", parent, "assistant", ("reasoning", "hm"), ("text", answer))
        self._tips[thread] = tip
        self.insert(
            "turns",
            id=key,
            thread_id=thread,
            parent_message_hash=parent,
            tip_message_hash=tip,
            model="claude-3.5-haiku",
            datetime_utc="2026-04-26 12:00:01+00:00",
            input_tokens=9,
            output_tokens=4,
        )

    def message(self, key: str, parent: str | None, role: str, *parts: tuple[str, str]) -> str:
        self.insert("messages", hash=key, parent_hash=parent, role=role)
        for position, (kind, text) in enumerate(parts):
            self.insert("parts", message_hash=key, position=position, type=kind, text=text)
        return key
