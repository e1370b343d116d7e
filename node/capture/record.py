"""One line of the corpus: what it holds, and how it is proved whole.

A line is one JSON object whose last member is "crc32": eight lower-case hex digits of CRC-32 over
all bytes of the line before the comma that precedes that member. A line that was cut, merged with
another or changed on disk does not prove itself and is never used.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from .terms import Terms

SESSION_CLOSE = "SESSION_CLOSE"
EDIT = "EDIT"  # the event of a workflow record that holds what the owner made of an answer
LINE_BYTES_MAX = 64 * 2**20  # a longer one is damage: the intake refuses far shorter texts
READ_BYTES = 2**20
TIME_END_S = 253_402_300_800.0  # year 10000: a time from here on, or before 1970, is no date
_SEAL = b',"crc32":"'
_SEAL_BYTES = len(_SEAL) + 8 + len(b'"}')


class ContentType(StrEnum):
    """What a record is of."""

    PROMPT = "prompt"
    COMPLETION = "completion"
    CONVERSATION = "conversation"
    WORKFLOW = "workflow"


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """One scrubbed text and what is known of it. `metadata` is scrubbed too."""

    record_id: str  # 32 hex digits
    user_id: str
    session_id: str
    timestamp: float  # Unix seconds; its UTC day names the file
    domain: str
    content_type: str
    content: str = field(repr=False)
    metadata: dict[str, Any] = field(repr=False)
    consent_version: str
    source_provider: str = ""
    source_model: str = ""
    terms_class: str = Terms.UNKNOWN.value

    @property
    def closes(self) -> bool:
        """True for the record that ends a session; it is not counted as captured."""
        return self._is_event(SESSION_CLOSE)

    @property
    def edits(self) -> bool:
        """True if the content is what the owner made of the answer before it."""
        return self._is_event(EDIT)

    def _is_event(self, event: str) -> bool:
        return self.content_type == ContentType.WORKFLOW and self.metadata.get("event") == event


_decoder = msgspec.json.Decoder(TrainingRecord)


def encode_line(record: TrainingRecord) -> bytes:
    """Return the record's line, with its seal and the newline."""
    body = msgspec.json.encode(record)[:-1]
    return b'%b%b%08x"}\n' % (body, _SEAL, zlib.crc32(body))


def decode_line(line: bytes) -> TrainingRecord | None:
    """Return the record of a line (with or without its newline), or None if it is damaged."""
    line = line.rstrip(b"\n")
    body, seal = line[:-_SEAL_BYTES], line[-_SEAL_BYTES:]
    if seal != b'%b%08x"}' % (_SEAL, zlib.crc32(body)):
        return None
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def is_date(timestamp: float) -> bool:
    """True if a time has a day that a file can be named by; NaN and infinities have none."""
    return 0 <= timestamp < TIME_END_S


def day_of(timestamp: float) -> str:
    """The UTC day, as YYYY-MM-DD; raises ValueError if it is no date."""
    if not is_date(timestamp):
        raise ValueError(f"{timestamp!r} is no Unix time between 1970 and 9999")
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d")


def export_line(record: TrainingRecord) -> bytes:
    """Return the record as plain JSON, in the form of the specification's §4."""
    return msgspec.json.encode(record) + b"\n"


def read_lines(path: Path, offset: int) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, line with its newline) from an offset on; a tail without newline is left out.

    A file that is gone, because a deletion removed it meanwhile, has no lines.
    """
    try:
        file = path.open("rb", buffering=READ_BYTES)
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        while line := file.readline(LINE_BYTES_MAX):
            if line.endswith(b"\n"):
                yield offset, line
            offset += len(line)
