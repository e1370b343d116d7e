"""Sessions from a JSON Lines file, plain or gzipped: `prompt` and `completion`, or `messages`."""

from __future__ import annotations

import gzip
import hashlib
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from node.capture.terms import Terms, terms_of

from .importing import SourceError, SourceSession

log = logging.getLogger(__name__)

SOURCE = "jsonl"
LINE_BYTES_MAX = 16 * 2**20
_KNOWN_TERMS = frozenset(terms.value for terms in Terms)


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
    prompt, completion = _texts(row)
    if not prompt.strip() or not completion.strip():
        return None
    provider, model = str(row.get("source_provider", "")), str(row.get("source_model", ""))
    return SourceSession(
        key=_digest(f"{len(prompt)}:{prompt}{completion}"),
        prompt=prompt,
        completion=completion,
        group=str(row.get("group") or _digest(" ".join(prompt.lower().split()))[:16]),
        source_provider=provider,
        source_model=model,
        terms_class=_terms(row, provider, model),
        timestamp=_timestamp(row.get("timestamp")),
    )


def _texts(row: dict[str, Any]) -> tuple[str, str]:
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt, completion
    messages = row.get("messages")
    said: dict[str, str] = {}
    for message in messages if isinstance(messages, list) else []:
        if isinstance(message, dict) and isinstance(message.get("content"), str):
            said.setdefault(str(message.get("role")), message["content"])
    return said.get("user", ""), said.get("assistant", "")


def _terms(row: dict[str, Any], provider: str, model: str) -> str:
    """What the row says; else by who made it; else the owner, by importing it, vouches for it."""
    stated = row.get("terms_class")
    if isinstance(stated, str) and stated in _KNOWN_TERMS:
        return stated
    return terms_of(provider, model).value if provider or model else Terms.OWN.value


def _timestamp(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < 2**32 else None  # false of what is no number, too


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
