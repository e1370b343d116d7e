"""What the parsers of transcripts share: whole lines, tolerant values, the turns of a session.

No tool documents its transcripts and all change them silently, so nothing here trusts a field:
a value of the wrong type is as good as none, a kind that nobody knows is counted by its name, a
line that is no record is counted, and a line that is not finished yet is left for the next
reading. Files of hundreds of megabytes are read line by line.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import msgspec

from node.capture.record import ContentType

from .asks import Course, Sign
from .source import ParseCounts, SourceError, Turn

log = logging.getLogger(__name__)

LINE_BYTES_MAX = 16 * 2**20  # longer ones hold pictures; they are skipped and counted
NAMES_MAX, NAME_CHARS_MAX = 64, 64  # of kinds unknown: a name is a stranger's text, and is shown
KEY_CHARS_MAX = 128
MODEL_CHARS_MAX = 128
FOLDER_CHARS_MAX = 4096
TOOL_TEXT_CHARS_MAX = 2**20  # of one call or its output, if they are kept at all
TOO_LONG, DUPLICATE, SUB_RUN = "lines too long", "copied messages", "sub-runs"
TOOL_CALL, TOOL_OUTPUT, THINKING, IMAGE = "tool calls", "tool output", "thinking", "images"

T = TypeVar("T")


class LineReader:
    """The whole lines of a file from a position on, each with its place.

    `position` is just after the last whole line that was yielded or skipped. A position that is
    no beginning of a line, or lies behind the end, means another file than was read before:
    then it is read from its beginning.
    """

    def __init__(self, path: Path, start: int, counts: ParseCounts) -> None:
        self._path = path
        self._counts = counts
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):
                raise OSError(0, "it is no regular file")
            self._file: IO[bytes] = path.open("rb", buffering=2**20)
            self.position = self._sane(start, found.st_size)
        except (OSError, ValueError) as problem:
            raise unreadable(path, problem) from None

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        try:
            with self._file as file:
                file.seek(self.position)
                while line := file.readline(LINE_BYTES_MAX):
                    place, length = self.position, len(line)
                    whole = line.endswith(b"\n")
                    if not whole and length == LINE_BYTES_MAX:
                        rest, whole = _skip_line(file)
                        length, line = length + rest, b""
                    if not whole:
                        return  # torn: the tool has not written the rest yet
                    self.position += length
                    self._counts.lines += 1
                    if not line:
                        self._counts.left_out[TOO_LONG] += 1
                    elif not line.isspace():
                        yield place, line
        except OSError as problem:
            raise unreadable(self._path, problem) from None

    def _sane(self, start: int, size: int) -> int:
        if not 0 < start <= size:
            return 0
        self._file.seek(start - 1)
        return start if self._file.read(1) == b"\n" else 0


def _skip_line(file: IO[bytes]) -> tuple[int, bool]:
    """Read to the end of a line without holding it: its length, and whether it ended."""
    skipped = 0
    while chunk := file.readline(2**20):
        skipped += len(chunk)
        if chunk.endswith(b"\n"):
            return skipped, True
    return skipped, False


def unreadable(path: Path, problem: Exception) -> SourceError:
    reason = getattr(problem, "strerror", None) or type(problem).__name__
    return SourceError(
        f"{path} cannot be read: {reason}",
        unchanged="What was read before is kept; nothing of this file was taken.",
        next_step="Check that the file is there and yours to read, then import again.",
    )


def decode(decoder: msgspec.json.Decoder[T], line: bytes, counts: ParseCounts) -> T | None:
    """Return the line's record; None, and counted, if it is none."""
    try:
        return decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        # A tool that cuts strings leaves half a surrogate pair, which msgspec refuses.
        if b"\\ud" in line or b"\\uD" in line:
            return msgspec.convert(json.loads(line), decoder.type)
    except (ValueError, RecursionError):
        pass
    counts.malformed += 1
    return None


def plain(value: object) -> str:
    """Return a string that every encoder takes; "" for what is none."""
    if not isinstance(value, str):
        return ""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "replace").decode()
    return value


def word(value: object, chars_max: int = MODEL_CHARS_MAX) -> str:
    """Return a short name such as a model's or a version; "" for anything else."""
    text = plain(value)
    return text if 0 < len(text) <= chars_max and text.isprintable() else ""


def fields(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def items(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def seconds(value: object) -> float | None:
    """Return Unix seconds of an ISO 8601 text, of seconds or of milliseconds; None if neither."""
    if isinstance(value, str):
        if not 10 <= len(value) <= 40:
            return None
        try:
            moment = datetime.fromisoformat(value)
            value = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    time_s = value / 1000 if value > 2**36 else value  # as seconds, that would be after 4147
    return float(time_s) if 0 < time_s < 2**32 else None


def key_of(value: object, *parts: str) -> str:
    """Return the tool's own id of a message, or if it has none the digest of its parts."""
    return word(value, KEY_CHARS_MAX) or digest(*parts)


def digest(*parts: str) -> str:
    framed = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.sha256(framed.encode("utf-8", "replace")).hexdigest()[:32]


def count_unknown(counts: ParseCounts, kind: object) -> None:
    """Count a kind of record by its name, which may be anything: long, binary, ever another."""
    text = kind if isinstance(kind, str) else f"({type(kind).__name__})"
    name = "".join(
        char if char.isascii() and (char.isalnum() or char in "_-./()") else "?"
        for char in text[:NAME_CHARS_MAX]
    )
    if name not in counts.unknown and len(counts.unknown) >= NAMES_MAX:
        name = "(other)"
    counts.unknown[name] += 1


def text_of(value: object) -> str:
    """Return what a tool was given or gave back as text: a string, blocks of text, or JSON."""
    if isinstance(value, str):
        return plain(value)[:TOOL_TEXT_CHARS_MAX]
    if isinstance(value, list):  # of blocks; those of pictures have no text
        texts = (plain(fields(block).get("text")) for block in value)
        return "\n".join(text for text in texts if text)[:TOOL_TEXT_CHARS_MAX]
    if value is None:
        return ""
    try:
        return plain(json.dumps(value, ensure_ascii=False))[:TOOL_TEXT_CHARS_MAX]
    except (TypeError, ValueError, RecursionError):
        return ""


class Folders:
    """The folder that everything of a session lies in, for consent.

    A session that moved about is about the narrowest folder that holds all its places: one that
    left an allowed folder must not pass for one that stayed there.
    """

    def __init__(self) -> None:
        self._last: object = None
        self.common: str | None = None
        self._apart = False

    def seen(self, value: object) -> None:
        if value == self._last:
            return
        self._last = value
        text = plain(value)
        if not text.startswith("/") and text[1:3] not in (":\\", ":/"):
            return
        if "\0" in text or len(text) > FOLDER_CHARS_MAX or self._apart:
            return
        path = os.path.normpath(text)
        try:
            self.common = os.path.commonpath([self.common, path]) if self.common else path
        except ValueError:  # on two drives
            self.common, self._apart = None, True


_PROVIDERS: Final = (
    ("anthropic", ("claude", "anthropic")),
    ("openai", ("gpt-", "chatgpt", "o1", "o3", "o4", "codex-", "openai", "text-davinci")),
    ("google", ("gemini", "google")),
    ("mistral", ("mistral", "codestral", "ministral", "pixtral", "magistral", "devstral")),
    ("xai", ("grok", "xai", "x-ai")),
    ("cohere", ("command-", "cohere")),
)


def provider_of(model: str) -> str:
    """Return who makes a model, by an id such as "openrouter/anthropic/claude-…", or ""."""
    for part in reversed(model.lower().split("/")):
        for provider, openings in _PROVIDERS:
            if part.startswith(openings):
                return provider
    return ""


class Usage:
    """Tokens of the calls that made one answer. A call that is told twice counts once."""

    _NAMES = ("input_tokens", "output_tokens", "cached_tokens")

    def __init__(self) -> None:
        self._calls: dict[str, tuple[int, int, int]] = {}

    def add(self, call: str, taken: object, given: object, cached: object = 0) -> None:
        self._calls[call] = (_tokens(taken), _tokens(given), _tokens(cached))

    def total(self) -> dict[str, int]:
        sums = (sum(column) for column in zip(*self._calls.values(), strict=True))
        return {name: tokens for name, tokens in zip(self._NAMES, sums, strict=False) if tokens}


def _tokens(value: object) -> int:
    valid = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40
    return value if valid else 0  # type: ignore[return-value]


@dataclass(slots=True)
class Answer:
    """What was said between two asks, as far as it has been read."""

    place: int
    key: str
    timestamp: float | None
    parts: list[str] = field(default_factory=list, repr=False)
    provider: str = ""
    model: str = ""
    finish: str = ""


class Session:
    """The turns of one session, gathered in order while its lines go by.

    The texts said between two asks are one answer; its key is that of the first of them, so it
    stays when more is said. Each turn keeps the place of its first line: what is not finished
    can be held back from there on.
    """

    def __init__(self, *, continued: bool) -> None:
        self.course = Course(continued)
        self.folders = Folders()
        self.usage = Usage()
        self.answer: Answer | None = None
        self._turns: list[tuple[int, Turn]] = []
        self._keys: Counter[str] = Counter()

    def ask(self, place: int, key: str, text: str, timestamp: float | None, sign: Sign) -> str:
        """Add an ask, which ends the answer before it; return the key that it got."""
        self.finish_answer()
        self.course.note(place, sign)
        key = self._unique(key)
        self._turns.append((place, Turn(key, ContentType.PROMPT, text, timestamp)))
        return key

    def say(self, place: int, key: str, text: str, timestamp: float | None) -> Answer:
        """Add what was said to the answer, which begins here if none is being given."""
        self.course.note(place, Sign.ANSWERED)
        if self.answer is None:
            self.answer = Answer(place, self._unique(key), timestamp)
        self.answer.parts.append(text)
        return self.answer

    def tool(self, place: int, key: str, name: str, event: str, text: str, at: object) -> None:
        """Keep a call of a tool, or what it gave back."""
        about = {"event": event, **({"tool": name} if name else {})}
        kept = Turn(self._unique(key), ContentType.WORKFLOW, text, seconds(at), metadata=about)
        self._turns.append((place, kept))

    def finish_answer(self) -> None:
        answer, self.answer = self.answer, None
        usage, self.usage = self.usage.total(), Usage()
        if answer is None:
            return
        about: dict[str, Any] = {"usage": usage} if usage else {}
        if answer.finish:
            about["finish_reason"] = answer.finish
        said = Turn(
            answer.key,
            ContentType.COMPLETION,
            "\n\n".join(answer.parts),
            answer.timestamp,
            answer.provider,
            answer.model,
            metadata=about,
        )
        self._turns.append((answer.place, said))

    def turns(self, before: int | None = None) -> tuple[Turn, ...]:
        """The turns by the place of their first line; only those before a place if one is given."""
        self.finish_answer()
        self._turns.sort(key=lambda turn: turn[0])
        return tuple(turn for place, turn in self._turns if before is None or place < before)

    def _unique(self, key: str) -> str:
        """Two messages of one id, of which no tool should write, keep keys apart."""
        self._keys[key] += 1
        return key if self._keys[key] == 1 else f"{key}/{self._keys[key]}"


def near_end(path: Path, budget: int) -> int:
    """Return the beginning of the first line within the last `budget` bytes of a file.

    0 if the file is no longer than that; its end if a single line fills the budget.
    Raises SourceError if it cannot be read.
    """
    try:
        size = path.stat().st_size
        if size <= budget:
            return 0
        with path.open("rb") as file:
            file.seek(size - budget)
            line = file.readline(budget)
            return size - budget + len(line) if line.endswith(b"\n") else size
    except (OSError, ValueError) as problem:
        raise unreadable(path, problem) from None


def by_age(paths: list[Path]) -> list[Path]:
    """Sort files, the oldest change first; those that are gone meanwhile are left out."""
    dated: list[tuple[float, Path]] = []
    for path in paths:
        try:
            dated.append((path.stat().st_mtime, path))
        except OSError:
            log.debug("transcript gone while listing file=%s", path)
    return [path for _, path in sorted(dated)]
