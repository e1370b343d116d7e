"""Which source a file is of, by its first lines: so that a wrong name is told, not imported.

A transcript that the wrong parser reads is nothing but unknown kinds of lines, which looks like a
tool that changed its format. No parser asks here: only who chose the file, and who must say why
nothing came of it.
"""

from __future__ import annotations

import sqlite3
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from . import claude_code, codex, jsonl, llm_logs
from .source import Reading, SourceError, TranscriptFormat

_SQLITE = b"SQLite format 3\0"
_TABLES = frozenset({"responses", "turns", "logs"})
_LINES_MAX = 100  # looked at; the first that tells decides
_LINE_BYTES_MAX = 2**20
_CLAUDE = frozenset({"sessionId", "isSidechain", "parentUuid", "leafUuid"})
_BARE_CODEX = frozenset({"id", "timestamp", "instructions"})


def kind_of(path: Path) -> str:
    """The source that a file is of: claude-code, codex, llm, jsonl; "" if nothing tells."""
    try:
        if not path.is_file():
            return ""  # a pipe would wait for its writer
        with jsonl.opened(path) as file:
            begun = file.readline(_LINE_BYTES_MAX)
            if begun.startswith(_SQLITE):
                return _database(path)
            for _ in range(_LINES_MAX):
                if not begun:
                    break
                if kind := _line(begun):
                    return kind
                begun = file.readline(_LINE_BYTES_MAX)
    except (OSError, EOFError, zlib.error):
        return ""
    return ""


def is_stranger(format_: TranscriptFormat, path: Path) -> bool:
    """True if a file that the owner named is no transcript of this tool.

    One that nothing tells of may be of a version that is not known: what can be read of it decides.
    """
    kind = kind_of(path)
    if kind == format_.name:
        return False
    try:
        return not format_.read(path).sessions
    except SourceError:
        return bool(kind)
    except Exception:
        return False  # a fault in the parser says nothing of the file; the reading tells of it


def drifts(format_: TranscriptFormat, path: Path, reading: Reading) -> bool:
    """True if what a reading did not know says that the tool has changed its format.

    It does not if the file is another source's, which lies among the tool's own by mistake.
    """
    return bool(reading.counts.unknown) and (
        bool(reading.sessions) or kind_of(path) in ("", format_.name)
    )


def _line(line: bytes) -> str:
    try:
        row: Any = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    if not isinstance(row, dict):
        return ""
    if isinstance(row.get("payload"), dict) and isinstance(row.get("type"), str):
        return codex.SOURCE
    if "record_type" in row or row.keys() >= _BARE_CODEX:
        return codex.SOURCE
    if isinstance(row.get("type"), str) and not _CLAUDE.isdisjoint(row):
        return claude_code.SOURCE
    return jsonl.SOURCE if jsonl.holds_texts(row) else ""


def _database(path: Path) -> str:
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as database:
            names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            tables = {str(name) for (name,) in names}
    except sqlite3.Error:
        return ""
    return "" if tables.isdisjoint(_TABLES) else llm_logs.SOURCE
