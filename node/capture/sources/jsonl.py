"""Sessions from JSON Lines, plain or gzipped: `prompt` and `completion`, or `messages`.

A row is a session. Its key is the row's own id if it has one, so that a conversation that is longer
in the next file goes on where it was; else it is a hash of its texts. How good it was is what the
row says of itself:

| field      | values                                                                      |
|------------|-----------------------------------------------------------------------------|
| `outcome`  | one of `node.capture.quality.Outcome`                                       |
| `accepted` | true or false; read if there is no outcome                                  |
| `rating`   | a word of `_RATINGS`, or a number; read if there is neither. A 1 says       |
|            |   nothing: it is the thumb up of one scale and the worst of another         |
| `quality`  | 0 to 100; stands beside the outcome                                         |

A row that says none of these has no tier: that somebody keeps it is no evidence. A `check` says
what a right answer is (`leaves.training.answers.parse_check`); it is kept with the session, and
scrubbed as all else.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Final, cast

import msgspec

from leaves.training.checks import parse_check
from node.capture.quality import Outcome
from node.capture.record import ContentType, is_date
from node.capture.terms import Terms, terms_of

from .source import SourceError, SourceSession, Turn

SOURCE = "jsonl"
LINE_BYTES_MAX = 16 * 2**20
PLACES_MAX = 5  # lines without a session that are named
_GZIP = b"\x1f\x8b"
_KNOWN_TERMS = frozenset(terms.value for terms in Terms)
_OUTCOMES = frozenset(outcome.value for outcome in Outcome)
_IDS = ("session_id", "conversation_id")  # a plain `id` often only numbers the rows of a file
_KINDS = {
    "user": ContentType.PROMPT,
    "human": ContentType.PROMPT,
    "assistant": ContentType.COMPLETION,
    "gpt": ContentType.COMPLETION,
}
_RATINGS: Final = {
    **dict.fromkeys(("up", "thumbs_up", "good", "positive", 4, 5), Outcome.ACCEPTED),
    **dict.fromkeys(("down", "thumbs_down", "bad", "negative", -1, 2), Outcome.REJECTED),
}
_NO_JSON, _NO_OBJECT = "no JSON", "no JSON object"
_NO_TEXTS = "neither prompt and completion nor messages of both user and assistant"


class JsonlSource:
    """Reads one file, or a pipe. After a reading, `problems` says what held none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.sessions = 0
        self.problems: Counter[str] = Counter()  # lines without a session, by reason
        self.places: list[tuple[int, str]] = []  # the first of them: line numbers and reasons

    @property
    def name(self) -> str:
        return str(self._path)

    @property
    def malformed(self) -> int:
        return self.problems.total()

    def __iter__(self) -> Iterator[SourceSession]:
        """Yield the sessions in the file's order. Raises SourceError if it cannot be read."""
        self.sessions = 0
        self.problems.clear()
        self.places.clear()
        number = 0
        try:
            with opened(self._path) as lines:
                while line := lines.readline(LINE_BYTES_MAX):
                    number += 1
                    if not line.strip():
                        continue
                    session = _session(line)
                    if isinstance(session, str):
                        self._note(number, session)
                    else:
                        self.sessions += 1
                        yield session
        except (OSError, EOFError, zlib.error) as problem:
            raise SourceError(
                f"{self.name} cannot be read: {_reason(problem)}",
                next_step="Give a JSON Lines file, plain or .gz, that you may read.",
            ) from None

    def _note(self, number: int, reason: str) -> None:
        self.problems[reason] += 1
        if len(self.places) < PLACES_MAX:
            self.places.append((number, reason))


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, unpacked if it is gzipped. Opened once: a pipe cannot be read again."""
    with path.open("rb", buffering=2**16) as file:
        if cast(BufferedReader, file).peek(2).startswith(_GZIP):
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield cast(IO[bytes], unpacked)
        else:
            yield file


def _reason(problem: Exception) -> str:
    if isinstance(problem, gzip.BadGzipFile | zlib.error | EOFError):
        return "damaged gzip data"
    return getattr(problem, "strerror", None) or type(problem).__name__


def _session(line: bytes) -> SourceSession | str:
    """The session of a line, or why there is none; the reason holds nothing of the line."""
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _NO_JSON
    if not isinstance(row, dict):
        return _NO_OBJECT
    texts = _texts(row)
    if {kind for kind, _ in texts} != {ContentType.PROMPT, ContentType.COMPLETION}:
        return _NO_TEXTS
    provider, model = str(row.get("source_provider", "")), str(row.get("source_model", ""))
    terms, timestamp = _terms(row, provider, model), _timestamp(row.get("timestamp"))
    first = next(text for kind, text in texts if kind is ContentType.PROMPT)
    return SourceSession(
        key=_key(row, texts),
        turns=tuple(
            Turn(f"{number}:{_digest(text)[:16]}", kind, text, timestamp, provider, model, terms)
            for number, (kind, text) in enumerate(texts)
        ),
        group=str(row.get("group") or _digest(" ".join(first.lower().split()))[:16]),
        outcome=_outcome(row),
        quality=_quality(row.get("quality")),
        metadata={"check": row["check"]} if parse_check(row.get("check")) else {},
    )


def holds_texts(row: dict[str, Any]) -> bool:
    """True if a row has the fields of a session."""
    return bool(_texts(row))


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


def _outcome(row: dict[str, Any]) -> str:
    outcome, accepted, rating = row.get("outcome"), row.get("accepted"), row.get("rating")
    if isinstance(outcome, str) and outcome in _OUTCOMES:
        return outcome
    if isinstance(accepted, bool):
        return Outcome.ACCEPTED if accepted else Outcome.REJECTED
    if isinstance(rating, str):
        return _RATINGS.get(rating.strip().lower().replace(" ", "_"), "")
    if isinstance(rating, int | float) and not isinstance(rating, bool):
        return _RATINGS.get(rating, "")
    return ""


def _quality(value: object) -> int | None:
    """A number of 0 to 100; a fraction might be of another scale, so it states nothing."""
    valid = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 100
    return value if valid else None  # type: ignore[return-value]


def _timestamp(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not is_date(value):
        return None
    return float(value)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
