"""Sessions from a JSON Lines file, plain or gzipped: `prompt` and `completion`, or `messages`.

A row is a session. Its key is the row's own id if it has one, so that a conversation that is longer
in the next file goes on where it was; else it is a hash of its texts.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from node.capture.quality import Outcome
from node.capture.record import ContentType, is_date
from node.capture.terms import Terms, terms_of

from .source import SourceError, SourceSession, Turn

log = logging.getLogger(__name__)

SOURCE = "jsonl"
LINE_BYTES_MAX = 16 * 2**20
_KNOWN_TERMS = frozenset(terms.value for terms in Terms)
_OUTCOMES = frozenset(outcome.value for outcome in Outcome)
_IDS = ("session_id", "conversation_id")  # a plain `id` often only numbers the rows of a file
_KINDS = {
    "user": ContentType.PROMPT,
    "human": ContentType.PROMPT,
    "assistant": ContentType.COMPLETION,
    "gpt": ContentType.COMPLETION,
}


class JsonlSource:
    """Reads one file. `malformed` counts the lines that hold no session, after a reading."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.malformed = 0

    def __iter__(self) -> Iterator[SourceSession]:
        """Yield the sessions in the file's order. Raises SourceError if it cannot be read."""
        self.malformed = 0
        try:
            with _opened(self._path) as lines:
                while line := lines.readline(LINE_BYTES_MAX):
                    if not line.strip():
                        continue
                    session = _session(line)
                    if session is None:
                        self.malformed += 1
                    else:
                        yield session
        except (OSError, EOFError, zlib.error) as problem:
            raise SourceError(
                f"{self._path} cannot be read: {_reason(problem)}",
                unchanged="What was read before is in the corpus; an import again adds the rest.",
                next_step="Give a JSON Lines file, plain or .gz, that you may read.",
            ) from None
        if self.malformed:
            log.warning("lines without a session file=%s lines=%d", self._path, self.malformed)


def _opened(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path)) if packed else path.open("rb")


def _reason(problem: Exception) -> str:
    if isinstance(problem, gzip.BadGzipFile | zlib.error | EOFError):
        return "damaged gzip data"
    return getattr(problem, "strerror", None) or type(problem).__name__


def _session(line: bytes) -> SourceSession | None:
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    texts = _texts(row)
    if {kind for kind, _ in texts} != {ContentType.PROMPT, ContentType.COMPLETION}:
        return None
    provider, model = str(row.get("source_provider", "")), str(row.get("source_model", ""))
    terms, timestamp = _terms(row, provider, model), _timestamp(row.get("timestamp"))
    first = next(text for kind, text in texts if kind is ContentType.PROMPT)
    outcome = row.get("outcome")
    return SourceSession(
        key=_key(row, texts),
        turns=tuple(
            Turn(f"{number}:{_digest(text)[:16]}", kind, text, timestamp, provider, model, terms)
            for number, (kind, text) in enumerate(texts)
        ),
        group=str(row.get("group") or _digest(" ".join(first.lower().split()))[:16]),
        # An answer that somebody keeps in a file is one that was good enough.
        outcome=outcome if outcome in _OUTCOMES else Outcome.ACCEPTED,
    )


def _texts(row: dict[str, Any]) -> list[tuple[ContentType, str]]:
    """All asks and answers with a text, in order; system messages and tools' are left out."""
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        said = [(ContentType.PROMPT, prompt), (ContentType.COMPLETION, completion)]
    else:
        messages = row.get("messages")
        said = [
            (_KINDS[message["role"]], _text(message.get("content")))
            for message in (messages if isinstance(messages, list) else [])
            if isinstance(message, dict) and message.get("role") in tuple(_KINDS)
        ]
    return [(kind, text) for kind, text in said if text.strip()]


def _text(content: object) -> str:
    """A message's text: a string, or the texts of its parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))


def _key(row: dict[str, Any], texts: list[tuple[ContentType, str]]) -> str:
    for name in _IDS:
        value = row.get(name)
        if isinstance(value, str) and value:
            return f"{name}:{value}"
    return _digest("".join(f"{len(text)}:{text}" for _, text in texts))


def _terms(row: dict[str, Any], provider: str, model: str) -> str:
    """What the row says; else by who made it; else the owner, by importing it, vouches for it."""
    stated = row.get("terms_class")
    if isinstance(stated, str) and stated in _KNOWN_TERMS:
        return stated
    return terms_of(provider, model).value if provider or model else Terms.OWN.value


def _timestamp(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not is_date(value):
        return None
    return float(value)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
