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
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import msgspec

from node.capture.record import ContentType
from node.home import dated

from .asks import Course, Sign
from .source import ParseCounts, SourceError, SourceSession, Turn

log = logging.getLogger(__name__)

LINE_BYTES_MAX = 16 * 2**20  # longer ones hold pictures; they are skipped and counted
NAMES_MAX, NAME_CHARS_MAX = 64, 40  # of kinds unknown: a name is a stranger's text, and is shown
OTHER = "(other)"
KEY_CHARS_MAX = 128
MODEL_CHARS_MAX = 128
FOLDER_CHARS_MAX = 4096
FOLDERS_MAX = 64  # of one session
TOOL_TEXT_CHARS_MAX = 2**20  # of one call or its output, if they are kept at all
TOO_LONG, DUPLICATE, SUB_RUN = "lines too long", "copied messages", "sub-runs"
TOOL_CALL, TOOL_OUTPUT, THINKING, IMAGE = "tool calls", "tool output", "thinking", "images"

# Small words and nothing that could be drawn: no digits, no capitals, no long run of letters.
_KIND: Final = re.compile(r"[a-z]{1,16}(?:[_/.-][a-z]{1,16}){0,5}", re.ASCII)

T = TypeVar("T")


def opened(path: Path) -> IO[bytes]:
    """A regular file's bytes. Raises OSError for anything else: a pipe would wait for a writer."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(0, "it is no regular file")
        return os.fdopen(fd, "rb", buffering=2**20)
    except BaseException:
        os.close(fd)
        raise


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
            self._file = opened(path)
            self.position = self._sane(start, os.fstat(self._file.fileno()).st_size)
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
        reason=reason,
    )


def decode(decoder: msgspec.json.Decoder[T], line: bytes, counts: ParseCounts) -> T | None:
    """Return the line's record; None, and counted, if it is none."""
    try:
        return decoder.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass
    try:
        # A tool that cuts strings leaves half a surrogate pair, which msgspec refuses.
        if b"\\ud" in line or b"\\uD" in line:
            return msgspec.convert(json.loads(line), decoder.type)
    except (msgspec.MsgspecError, ValueError, RecursionError):
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
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not 0 < value < 2**63 or not math.isfinite(value):  # a whole number may have any length
        return None
    time_s = value / 1000 if value > 2**36 else value  # as seconds, that would be after 4147
    return float(time_s) if 0 < time_s < 2**32 else None


def time_key(value: object) -> str:
    """Return a date as it stands in a key: a tool's own words for it, else its seconds."""
    return plain(value)[:KEY_CHARS_MAX] or str(seconds(value))


def key_of(value: object, *parts: str) -> str:
    """Return the tool's own id of a message, or if it has none the digest of its parts."""
    return word(value, KEY_CHARS_MAX) or digest(*parts)


def digest(*parts: str) -> str:
    framed = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.sha256(framed.encode("utf-8", "replace")).hexdigest()[:32]


def count_unknown(counts: ParseCounts, kind: object) -> None:
    """Count a kind of record by its name if it looks like one, for it may be any text."""
    name = kind if isinstance(kind, str) else f"({type(kind).__name__})"
    if isinstance(kind, str) and not (len(kind) <= NAME_CHARS_MAX and _KIND.fullmatch(kind)):
        name = OTHER
    if name not in counts.unknown and len(counts.unknown) >= NAMES_MAX:
        name = OTHER
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
    """All folders that a session was in, for consent: one that left what is allowed must not pass.

    They are kept as they are told: what `..` and links in them come to, only the disk knows.
    """

    def __init__(self) -> None:
        self._last: object = None
        self._all: dict[str, None] = {}

    @property
    def all(self) -> tuple[str, ...]:
        """Each once, in order; with the root, which nobody may allow, if they are too many."""
        return tuple(self._all)

    def seen(self, value: object) -> None:
        if value == self._last:
            return
        self._last = value
        text = plain(value)
        if not text.startswith("/") and text[1:3] not in (":\\", ":/"):
            return
        if "\0" in text or len(text) > FOLDER_CHARS_MAX:
            return
        if text not in self._all:
            self._all[text if len(self._all) < FOLDERS_MAX else os.sep] = None


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
    unique: bool = False  # as a turn's


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
        self._calls: dict[str, str] = {}  # of tools: by id what was called, as a digest
        self._red: set[str] = set()  # what failed when it was called last

    def ask(
        self,
        place: int,
        key: str,
        text: str,
        timestamp: float | None,
        sign: Sign,
        *,
        unique: bool = False,
    ) -> str:
        """Add an ask, which ends the answer before it; return the key that it got."""
        self.finish_answer()
        self.course.note(place, sign)
        key = self._unique(key)
        asked = Turn(key, ContentType.PROMPT, text, timestamp, unique=unique)
        self._turns.append((place, asked))
        return key

    def say(
        self, place: int, key: str, text: str, timestamp: float | None, *, unique: bool = False
    ) -> Answer:
        """Add what was said to the answer, which begins here if none is being given."""
        self.course.note(place, Sign.ANSWERED)
        if self.answer is None:
            self.answer = Answer(place, self._unique(key), timestamp, unique=unique)
        self.answer.parts.append(text)
        return self.answer

    def tool(
        self,
        place: int,
        key: str,
        name: str,
        event: str,
        text: str,
        at: object,
        *,
        unique: bool = False,
    ) -> None:
        """Keep a call of a tool, or what it gave back."""
        about = {"event": event, **({"tool": name} if name else {})}
        kept = Turn(
            self._unique(key),
            ContentType.WORKFLOW,
            text,
            seconds(at),
            metadata=about,
            unique=unique,
        )
        self._turns.append((place, kept))

    def called(self, id_: object, name: object, given: object) -> None:
        """Remember what a call of a tool was, so that the same one is known again."""
        if key := word(id_):
            self._calls[key] = digest(word(name), text_of(given))

    def came_back(self, place: int, id_: object, sign: Sign) -> None:
        """Note how a call went."""
        call = self._calls.pop(word(id_), "")
        if sign is Sign.FAILED and call:
            self._red.add(call)
        elif sign is Sign.WORKED and call in self._red:
            self._red.remove(call)
            sign = Sign.MENDED
        self.course.note(place, sign)

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
            unique=answer.unique,
        )
        self._turns.append((answer.place, said))

    def turns(self, before: int | None = None) -> tuple[Turn, ...]:
        """The turns by the place of their first line; only those before a place if one is given."""
        self.finish_answer()
        self._turns.sort(key=lambda turn: turn[0])
        return tuple(turn for place, turn in self._turns if before is None or place < before)

    def told(
        self, key: str, held: int | None, *, tool_version: str, parser: str
    ) -> tuple[SourceSession, ...]:
        """The session as far as it was read, up to the place that is held back; or none."""
        turns = self.turns(held)
        standing = self.course.standing(held)
        session = SourceSession(
            key,
            turns,
            folders=self.folders.all,
            outcome=standing.outcome,
            corrections=standing.corrections,
            errors=standing.errors,
            metadata={"tool_version": tool_version, "parser": parser},
        )
        return (session,) if turns else ()

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
        with opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size <= budget:
                return 0
            file.seek(size - budget)
            line = file.readline(budget)
            return size - budget + len(line) if line.endswith(b"\n") else size
    except (OSError, ValueError) as problem:
        raise unreadable(path, problem) from None


def beneath(folder: Path, wanted: Callable[[str], bool], *, without: str = "") -> list[Path]:
    """The files of a folder at any depth whose names are wanted; links to folders not followed.

    without: the name of folders that are not entered.
    """

    def unreadable(problem: OSError) -> None:
        log.warning("transcripts unreadable reason=%s", problem.strerror)  # the path is private

    found: list[Path] = []
    for inner, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if name != without]
        found += (Path(inner) / name for name in names if wanted(name))
    return [path for path in found if path.is_file()]


def by_age(paths: list[Path]) -> list[Path]:
    """Sort files, the oldest change first; those that are gone meanwhile are left out."""
    return [path for _, path in sorted(dated(paths))]
