"""From lines to sessions: one task each, with its first ask, its answer and how it ended.

A position lets a daily round over a large corpus read only what is new. It remembers where the
records of unfinished sessions stand, so that a session is given whole once it closes.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from leaves.ports import Check
from leaves.training.checks import parse_check

from . import quality as scores
from .record import LINE_BYTES_MAX, ContentType, TrainingRecord, decode_line, read_lines
from .tagger import GENERAL
from .terms import Terms

IDLE_S = 86_400.0  # a session without a closing record counts as over after so long
PENDING_MAX = 10_000  # unfinished sessions that a position remembers
LIVE = "live"
_ROLES = {ContentType.PROMPT.value: "user", ContentType.COMPLETION.value: "assistant"}


@dataclass(frozen=True, slots=True)
class Session:
    """One task of one user, from the records that share its id. All text is scrubbed."""

    session_id: str
    user_id: str
    opened: float  # Unix seconds of the first record
    last: float  # of the last one
    prompt: str = field(repr=False)  # the first human ask; empty if none was captured
    completion: str = field(repr=False)  # the first answer to it; empty if none was captured
    domain: str  # of the ask
    source: str  # "live", or the importer's name
    group: str  # near-copies share it; empty if nothing is known
    terms_class: str  # of the completion
    closed: bool
    outcome: str
    quality: int | None  # 0 to 100; None if nothing is known of how it went
    tier: str = ""  # A, B or C; empty without a quality
    workflow_type: str = ""  # what the caller said it was about, where it said so
    corrections: int = 0  # asks that corrected the answer before
    errors: int = 0  # answers and calls of tools that failed
    edited: str = field(default="", repr=False)  # what the owner made of the last answer
    edited_from: str = field(default="", repr=False)  # that answer
    edited_ask: str = field(default="", repr=False)  # the ask before it
    edited_terms: str = ""  # and its terms class
    check: Check | None = None  # what a right answer is, where the source says so


class Place(Struct, frozen=True, array_like=True):
    """Where one line stands."""

    file: str
    offset: int


class Mark(Struct, frozen=True, array_like=True):
    """How far a file was read, and the end of the line before: a replaced file does not fit it."""

    offset: int
    seal: str


class Position(Struct, frozen=True):
    """How far the corpus was read. Plain JSON by `msgspec.json`; holds no text."""

    files: dict[str, Mark] = {}
    pending: dict[str, tuple[Place, ...]] = {}


@dataclass(frozen=True, slots=True)
class SessionBatch:
    """What one reading found: finished sessions, and where to go on."""

    sessions: tuple[Session, ...]
    position: Position


class _Key(Struct):
    session_id: str


_key_decoder = msgspec.json.Decoder(_Key)


def sessions(files: Sequence[Path], only: Collection[str] | None = None) -> Iterator[Session]:
    """Yield every session once, in the order in which they were completed.

    only: ids of the sessions wanted; all by default. Two passes over the files; memory holds the
    ids, and the texts of sessions whose records are not all met yet.
    """
    for records in grouped(files, only):
        yield session_of(records)


def grouped(
    files: Sequence[Path], only: Collection[str] | None = None
) -> Iterator[list[TrainingRecord]]:
    """Yield the records of each session together, as `sessions` does; at least one of each."""
    remaining = _counts(files, frozenset(only) if only is not None else None)
    waiting: defaultdict[str, list[TrainingRecord]] = defaultdict(list)
    for path in files:
        for _, line in read_lines(path, 0):
            session_id = _session_id(line)
            if session_id not in remaining:
                continue
            remaining[session_id] -= 1
            if record := decode_line(line):
                waiting[session_id].append(record)
            if remaining[session_id] == 0 and (records := waiting.pop(session_id, [])):
                yield records
    yield from waiting.values()  # a writer or a deletion was at work meanwhile


def read_sessions(
    files: Sequence[Path], since: Position | None, *, idle_before: float
) -> SessionBatch:
    """Read on from a position; `TrainingCorpus.read_sessions` says what is given when."""
    since = since or Position()
    reading = _Reading({path.name: path for path in files}, since.pending)
    marks = {path.name: reading.read(path, since.files.get(path.name)) for path in files}
    found, pending = reading.finished(idle_before)
    return SessionBatch(tuple(found), Position(marks, pending))


class _Reading:
    """One reading: what was met, by session, with what earlier readings left unfinished."""

    def __init__(self, files: Mapping[str, Path], pending: Mapping[str, tuple[Place, ...]]) -> None:
        self._files = files
        self._places = defaultdict(list, {key: list(places) for key, places in pending.items()})
        self._records: defaultdict[str, list[TrainingRecord]] = defaultdict(list)
        self._closed: set[str] = set()

    def read(self, path: Path, mark: Mark | None) -> Mark:
        if mark is not None and not _fits(path, mark):
            self._forget(path.name)
            mark = None
        end, seal = (mark.offset, mark.seal) if mark else (0, "")
        for offset, line in read_lines(path, end):
            end, seal = offset + len(line), _seal(line)
            if record := decode_line(line):
                self._places[record.session_id].append(Place(path.name, offset))
                self._records[record.session_id].append(record)
                if record.closes:
                    self._closed.add(record.session_id)
        return Mark(end, seal)

    def finished(self, idle_before: float) -> tuple[list[Session], dict[str, tuple[Place, ...]]]:
        """The sessions that are over, and the places of the others."""
        too_many = len(self._places) - len(self._closed) - PENDING_MAX
        found: list[Session] = []
        late: set[str] = set()
        left: dict[str, tuple[Place, ...]] = {}
        for key, places in self._places.items():
            if not (records := self._all_of(key, places)):
                continue
            session = session_of(records)
            closed = key in self._closed
            if not closed and session.last > idle_before and too_many <= 0:
                left[key] = tuple(places)
            elif session.prompt:
                found.append(session)
            else:
                late.add(key)  # its ask was given with an earlier reading
            too_many -= not closed
        if late:
            found += sessions(list(self._files.values()), only=late)
        return found, left

    def _all_of(self, key: str, places: list[Place]) -> list[TrainingRecord]:
        fresh = self._records[key]
        earlier = [self._at(place) for place in places[: len(places) - len(fresh)]]
        return [record for record in earlier if record is not None] + fresh

    def _at(self, place: Place) -> TrainingRecord | None:
        path = self._files.get(place.file)
        if path is None:
            return None
        with path.open("rb") as file:
            file.seek(place.offset)
            return decode_line(file.readline(LINE_BYTES_MAX))

    def _forget(self, file: str) -> None:
        """Drop places in a file that was replaced: it is read again from its beginning."""
        for key, places in list(self._places.items()):
            self._places[key] = [place for place in places if place.file != file]


def session_of(records: Iterable[TrainingRecord]) -> Session:
    """Return the session that these records, at least one, make; a repeated record counts once."""
    unique = list({record.record_id: record for record in records}.values())
    ask = _first(unique, ContentType.PROMPT)
    answer = _first(unique, ContentType.COMPLETION)
    talk = _first(unique, ContentType.CONVERSATION)
    close = next((record for record in reversed(unique) if record.closes), None)
    prompt, completion = first_turns(talk.content) if talk and not (ask and answer) else ("", "")
    opening = ask or talk or unique[0]
    answered = answer or talk
    about: dict[str, Any] = {**opening.metadata, **(close.metadata if close else {})}
    quality = quality_of(about)
    edit = _edit(unique)
    return Session(
        session_id=opening.session_id,
        user_id=opening.user_id,
        opened=min(record.timestamp for record in unique),
        last=max(record.timestamp for record in unique),
        prompt=ask.content if ask else prompt,
        completion=answer.content if answer else completion,
        domain=opening.domain or GENERAL,
        source=str(about.get("source", LIVE)),
        group=str(about.get("group", "")),
        terms_class=answered.terms_class if answered else Terms.UNKNOWN,
        closed=close is not None,
        outcome=str(about.get("outcome", "")),
        quality=quality,
        tier=scores.tier(quality),
        workflow_type=str(about.get("workflow_type") or ""),
        corrections=_count(about, "corrections"),
        errors=_count(about, "errors"),
        edited=edit.edited,
        edited_from=edit.answer,
        edited_ask=edit.ask,
        edited_terms=edit.terms,
        check=parse_check(close.metadata.get("check")) if close else None,
    )


def quality_of(about: Mapping[str, Any]) -> int | None:
    """The quality that a closing record states, or else what its outcome is worth."""
    stated = about.get("quality")
    if isinstance(stated, int) and not isinstance(stated, bool):
        return min(100, max(0, stated))
    return scores.score(
        str(about.get("outcome", "")),
        corrections=_count(about, "corrections"),
        errors=_count(about, "errors"),
    )


def _count(about: Mapping[str, Any], name: str) -> int:
    value = about.get(name)
    return value if isinstance(value, int) and value > 0 else 0


@dataclass(frozen=True, slots=True)
class _Edit:
    """What the owner made of an answer; all empty if no answer was edited."""

    edited: str = field(default="", repr=False)
    answer: str = field(default="", repr=False)
    ask: str = field(default="", repr=False)
    terms: str = ""


def _edit(records: Iterable[TrainingRecord]) -> _Edit:
    """The last edit of an answer to an ask."""
    ask = ""
    answer: TrainingRecord | None = None
    found = _Edit()
    for record in records:
        if record.content_type == ContentType.PROMPT:
            ask, answer = record.content, None
        elif record.content_type == ContentType.COMPLETION:
            answer = record
        elif record.edits and ask and answer is not None:
            found = _Edit(record.content, answer.content, ask, answer.terms_class)
    return found


def turns_of(records: Iterable[TrainingRecord]) -> list[dict[str, str]]:
    """A session's messages: of its asks and answers, or else of its conversation."""
    unique = list({record.record_id: record for record in records}.values())
    said = [
        {"role": _ROLES[record.content_type], "content": record.content}
        for record in unique
        if record.content_type in _ROLES
    ]
    talk = _first(unique, ContentType.CONVERSATION)
    if talk and {message["role"] for message in said} != {"user", "assistant"}:
        return [
            {"role": str(message["role"]), "content": message["content"]}
            for message in _messages(talk.content)
            if message.get("role") in ("system", "user", "assistant")
        ]
    return said


def _first(records: list[TrainingRecord], kind: ContentType) -> TrainingRecord | None:
    return next((record for record in records if record.content_type == kind), None)


def first_turns(content: str) -> tuple[str, str]:
    """The first ask and the first answer of a conversation's messages."""
    said: dict[str, str] = {}
    for message in _messages(content):
        said.setdefault(str(message.get("role")), message["content"])
    return said.get("user", ""), said.get("assistant", "")


def _messages(content: str) -> list[dict[str, Any]]:
    """Those messages of a conversation that have a text."""
    try:
        messages = json.loads(content)
    except ValueError:
        return []
    if not isinstance(messages, list):
        return []
    return [
        message
        for message in messages
        if isinstance(message, dict) and isinstance(message.get("content"), str)
    ]


def _counts(files: Sequence[Path], only: frozenset[str] | None) -> Counter[str]:
    counts: Counter[str] = Counter()
    for path in files:
        counts.update(
            session_id
            for _, line in read_lines(path, 0)
            if (session_id := _session_id(line)) and (only is None or session_id in only)
        )
    return counts


def _session_id(line: bytes) -> str:
    """The session of a line, without decoding the rest of it; empty if the line is damaged."""
    try:
        return _key_decoder.decode(line).session_id
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def _seal(line: bytes) -> str:
    return line[-12:].decode("latin-1")


def _fits(path: Path, mark: Mark) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, mark.offset - 12))
        return _seal(file.read(min(12, mark.offset))) == mark.seal
