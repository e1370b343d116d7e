"""The log of Simon Willison's `llm`: one SQLite database of all prompts and answers.

Two generations of tables, of which a database may hold either or both. Until 0.31, `responses`:
one row per call with prompt and response as text, grouped by `conversation_id`. From 0.32, `turns`
in `threads`: a turn's input and output are stretches of a tree of `messages`, whose texts are in
`parts`; a text that was given as a fragment (a file, mostly) is there by reference only, and is
left out here as it is in `responses`. For a while both were written, under the same ids.

The database is only ever read, also while the tool writes. Its folder is not told: `llm` keeps
none.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec
import platformdirs

from node.capture.record import ContentType

from .asks import ATTACHMENT, CONTEXT, OUTPUT, Course, Sign, human_ask, sign_of
from .source import ParseCounts, Reading, SourceSession, Turn
from .transcript import (
    THINKING,
    TOOL_CALL,
    Usage,
    beneath,
    by_age,
    count_unknown,
    fields,
    items,
    key_of,
    opened,
    plain,
    provider_of,
    seconds,
    unreadable,
    word,
)

SOURCE = "llm"
PARSER = "llm/1"  # raised whenever the same database would give other turns
_FILE = "logs.db"
WAIT_S = 5.0  # for a writer to finish
CHAIN_MAX = 100  # messages of one turn; a damaged tree could be a ring
VALUE_BYTES_MAX = 64 * 2**20  # a column that is computed may be of any length
_ROW_NAMES = ("rowid", "_rowid_", "oid")  # a column may have one of them, and any value
# A position is the last row of both tables: that of `turns` above these bits.
_ROW_BITS = 31
_ROW_MASK = (1 << _ROW_BITS) - 1
_ROWS_RECENT = 50
_PLACE = "groove_row"  # the row's number, beside its columns
_MARKED: Final = {
    "reasoning": THINKING,
    "tool_call": TOOL_CALL,
    "tool_result": OUTPUT,
    "attachment": ATTACHMENT,
}


@dataclass(slots=True)
class _Call:
    """One call of a model, of either generation."""

    id: str
    conversation: str
    prompt: str = field(repr=False)
    response: str = field(repr=False)
    model: str
    timestamp: float | None
    usage: Usage
    failed_tools: int


class LlmLogs:
    """Reads the log database of `llm`."""

    @property
    def name(self) -> str:
        return SOURCE

    def roots(self) -> list[Path]:
        configured = os.environ.get("LLM_USER_PATH")
        folder = (
            Path(configured).expanduser()
            if configured
            else platformdirs.user_config_path("io.datasette.llm", appauthor=False, roaming=True)
        )
        return [path for path in [folder / _FILE] if path.is_file()]

    def files(self, root: Path) -> Iterator[Path]:
        if root.is_file():
            yield root
        else:
            yield from by_age(beneath(root, lambda name: name == _FILE))

    def read(self, path: Path, start: int = 0, *, growing: bool = False) -> Reading:
        """Read the calls after a position. A row is written when its answer is whole, so there is
        nothing to hold back; each row gives at most one ask and one answer.

        A position behind the last row means that the tables were rebuilt: then all is read.
        """
        counts = ParseCounts()
        conversations: dict[str, _Conversation] = {}
        try:
            with closing(_opened(path)) as database:
                log = _Log(database, counts)
                position = log.last()
                if (start & _ROW_MASK) > (position & _ROW_MASK) or start > position:
                    start = 0
                for call in log.calls(start):
                    told = conversations.setdefault(call.conversation, _Conversation(start > 0))
                    told.take(call, counts)
        except (sqlite3.Error, OSError, ValueError, OverflowError) as problem:
            raise unreadable(path, problem) from None
        sessions = (told.session(key) for key, told in conversations.items() if told.turns)
        return Reading(tuple(sessions), position, counts)

    def recent(self, path: Path, budget: int) -> int:
        """A position that leaves some newest rows; how many bytes they are is not known."""
        try:
            with closing(_opened(path)) as database:
                last = _Log(database, ParseCounts()).last()
        except (sqlite3.Error, OSError, ValueError, OverflowError) as problem:
            raise unreadable(path, problem) from None
        turns, responses = last >> _ROW_BITS, last & _ROW_MASK
        return max(0, turns - _ROWS_RECENT) << _ROW_BITS | max(0, responses - _ROWS_RECENT)

    def expiry_days(self) -> int | None:
        return None


def _opened(path: Path) -> sqlite3.Connection:
    opened(path).close()  # refuses what is no regular file
    database = sqlite3.connect(
        f"file:{quote(str(path))}?mode=ro", uri=True, timeout=WAIT_S, isolation_level=None
    )
    database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, VALUE_BYTES_MAX)
    database.row_factory = sqlite3.Row
    database.text_factory = lambda raw: raw.decode("utf-8", "replace")
    database.execute("BEGIN")  # one state of both tables, whatever is written meanwhile
    return database


class _Log:
    """The tables of one database, as far as they are there."""

    def __init__(self, database: sqlite3.Connection, counts: ParseCounts) -> None:
        self._database = database
        self._counts = counts
        names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        self._tables = {str(row["name"]) for row in names}
        self._columns_of: dict[str, frozenset[str]] = {}
        self._rows_of: dict[tuple[str, str], dict[object, list[int]] | None] = {}

    def last(self) -> int:
        turns, responses = (self._last_row(table) for table in ("turns", "responses"))
        return turns << _ROW_BITS | responses

    def calls(self, start: int) -> Iterator[_Call]:
        yield from self._responses(start & _ROW_MASK)
        yield from self._turns(start >> _ROW_BITS)

    def _last_row(self, table: str) -> int:
        if table not in self._tables:
            return 0
        name = self._row_name(table)
        row = self._database.execute(f"SELECT max({name}) FROM {table}").fetchone()  # constants
        return max(0, min(int(row[0] or 0), _ROW_MASK))

    def _row_name(self, table: str) -> str:
        columns = {name.lower() for name in self._columns(table)}
        return next((name for name in _ROW_NAMES if name not in columns), _ROW_NAMES[0])

    def _rows(self, table: str, after: int) -> Iterator[dict[str, Any]]:
        if table in self._tables:
            name = self._row_name(table)
            rows = self._database.execute(
                f"SELECT *, {name} AS {_PLACE} FROM {table} WHERE {name} > ? ORDER BY {name}",
                (after,),
            )
            for row in rows:
                self._counts.lines += 1
                yield dict(row)

    def _of(self, table: str, column: str, value: object) -> list[dict[str, Any]]:
        """The rows of a table that belong to something; none if there is no such table."""
        if table not in self._tables or column not in self._columns(table):
            return []
        rows = self._by_value(table, column)
        if rows is None:
            found = self._database.execute(f"SELECT * FROM {table} WHERE {column} = ?", (value,))
            return [dict(row) for row in found]
        query = f"SELECT * FROM {table} WHERE {self._row_name(table)} = ?"
        return [dict(self._database.execute(query, (n,)).fetchone()) for n in rows.get(value, ())]

    def _by_value(self, table: str, column: str) -> dict[object, list[int]] | None:
        """Where the values of a column stand, read once; None if the table has an index for it."""
        if (table, column) not in self._rows_of:
            found: dict[object, list[int]] | None = None
            if not self._is_indexed(table, column):
                found = {}
                name = self._row_name(table)
                for value, row in self._database.execute(f"SELECT {column}, {name} FROM {table}"):
                    found.setdefault(value, []).append(row)
            self._rows_of[table, column] = found
        return self._rows_of[table, column]

    def _is_indexed(self, table: str, column: str) -> bool:
        for index in self._database.execute(f"PRAGMA index_list({table})").fetchall():
            name = str(index["name"]).replace('"', '""')
            first = self._database.execute(f'PRAGMA index_info("{name}")').fetchone()
            if first is not None and first["name"] == column and not index["partial"]:
                return True
        return False

    def _per_response(self, table: str, where: str = "") -> dict[object, int]:
        """How many rows a table has for each response; one query, for not all are indexed."""
        columns = self._columns(table)
        if "response_id" not in columns or (where and where not in columns):
            return {}
        chosen = f"WHERE {where} IS NOT NULL" if where else ""
        return dict(
            self._database.execute(
                f"SELECT response_id, count(*) FROM {table} {chosen} GROUP BY response_id"
            ).fetchall()
        )

    def _columns(self, table: str) -> frozenset[str]:
        if table not in self._columns_of:
            rows = self._database.execute(f"PRAGMA table_info({table})")
            self._columns_of[table] = frozenset(str(row["name"]) for row in rows)
        return self._columns_of[table]

    def _responses(self, after: int) -> Iterator[_Call]:
        if "logs" in self._tables:
            count_unknown(self._counts, "table/logs")  # of 2023; never written since
        beside = {
            OUTPUT: self._per_response("tool_results"),
            TOOL_CALL: self._per_response("tool_calls"),
            ATTACHMENT: self._per_response("prompt_attachments"),
            CONTEXT: self._per_response("prompt_fragments"),
        }
        failed = self._per_response("tool_results", "exception")
        for row in self._rows("responses", after):
            own = key_of(row.get("id"), str(row[_PLACE]))
            for kind, numbers in beside.items():
                self._counts.left_out[kind] += numbers.get(row.get("id"), 0)
            yield _Call(
                own,
                word(row.get("conversation_id")) or own,
                plain(row.get("prompt")),
                plain(row.get("response")),
                word(row.get("resolved_model")) or word(row.get("model")),
                seconds(row.get("datetime_utc")),
                _usage(row),
                failed.get(row.get("id"), 0),
            )

    def _turns(self, after: int) -> Iterator[_Call]:
        for row in self._rows("turns", after):
            own = key_of(row.get("id"), str(row[_PLACE]))
            if self._of("responses", "id", row.get("id")):
                continue  # written to both generations, and read there
            parent, tip = row.get("parent_message_hash"), row.get("tip_message_hash")
            asked = list(self._chain(parent, until=None, roles=("user", "tool")))
            said = list(self._chain(tip, until=parent, roles=None))
            prompt, failed = self._text(each for each in asked if each.get("role") == "user")
            _, failed_tools = self._text(each for each in asked if each.get("role") == "tool")
            response, _ = self._text(said)
            yield _Call(
                own,
                word(row.get("thread_id")) or own,
                prompt,
                response,
                word(row.get("resolved_model")) or word(row.get("model")),
                seconds(row.get("datetime_utc")),
                _usage(row),
                failed + failed_tools,
            )

    def _chain(
        self, tip: object, *, until: object, roles: tuple[str, ...] | None
    ) -> Iterator[dict[str, Any]]:
        """Yield a stretch of messages, the oldest first: back to one message, or while of roles."""
        found: list[dict[str, Any]] = []
        while tip is not None and tip != until and len(found) < CHAIN_MAX:
            rows = self._of("messages", "hash", tip)
            if not rows or (roles is not None and rows[0].get("role") not in roles):
                break
            found.append(rows[0])
            tip = rows[0].get("parent_hash")
        yield from reversed(found)

    def _text(self, messages: Iterable[dict[str, Any]]) -> tuple[str, int]:
        """The texts of messages without what was borrowed, and how many tools failed in them."""
        texts: list[str] = []
        failed = 0
        for message in messages:
            parts = self._of("parts", "message_hash", message.get("hash"))
            for part in sorted(parts, key=_position):
                kind, payload = part.get("type"), _payload(part.get("payload"))
                if kind == "text":
                    texts.append(plain(part.get("text")))
                    for piece in map(fields, items(payload.get("text_ref"))):
                        texts.append(plain(piece.get("literal")))
                        self._counts.left_out[CONTEXT] += "fragment" in piece
                elif isinstance(kind, str) and kind in _MARKED:
                    self._counts.left_out[_MARKED[kind]] += 1
                    failed += bool(payload.get("exception"))
                else:
                    count_unknown(self._counts, f"part/{kind}")
        return "".join(texts), failed


def _position(part: dict[str, Any]) -> float:
    position = part.get("position")
    return position if isinstance(position, int | float) else 0


def _payload(value: object) -> dict[str, Any]:
    try:
        return fields(msgspec.json.decode(value)) if isinstance(value, str | bytes) else {}
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return {}


def _usage(row: dict[str, Any]) -> Usage:
    usage = Usage()
    usage.add("", row.get("input_tokens"), row.get("output_tokens"))
    return usage


class _Conversation:
    """What one conversation gave in a reading."""

    def __init__(self, continued: bool) -> None:
        self.turns: list[Turn] = []
        self._course = Course(continued)
        self._keys: set[str] = set()

    def take(self, call: _Call, counts: ParseCounts) -> None:
        if call.id in self._keys:
            return
        self._keys.add(call.id)
        ask = human_ask(call.prompt)
        counts.left_out.update(ask.left_out)
        for _ in range(call.failed_tools):
            self._course.note(0, Sign.FAILED)
        if ask.text:
            self._course.note(0, sign_of(ask.text))
            key = f"{call.id}/ask"
            self.turns.append(Turn(key, ContentType.PROMPT, ask.text, call.timestamp))
        if answer := call.response.strip():
            self._course.note(0, Sign.ANSWERED)
            usage = call.usage.total()
            self.turns.append(
                Turn(
                    f"{call.id}/answer",
                    ContentType.COMPLETION,
                    answer,
                    call.timestamp,
                    provider_of(call.model),
                    call.model,
                    metadata={"usage": usage} if usage else {},
                )
            )

    def session(self, key: str) -> SourceSession:
        standing = self._course.standing()
        return SourceSession(
            key,
            tuple(self.turns),
            outcome=standing.outcome,
            corrections=standing.corrections,
            errors=standing.errors,
            metadata={"parser": PARSER},
        )
