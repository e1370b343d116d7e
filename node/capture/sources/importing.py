"""Sessions of a source into the corpus: each once, whole, and again only what was missed.

A session's id and the ids of its records are hashes of the user, the source and the session's key.
A session counts as captured once its closing record is on disk. One that a kill left half-written
gets its missing records at the next import, so nothing is lost and nothing is there twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from leaves.ports import Progress, Report, silent
from node.capture.intake import Draft, Refusal, TrainingDataIntake
from node.capture.record import SESSION_CLOSE, ContentType, TrainingRecord
from node.capture.session import close_draft
from node.consent import Scope
from node.errors import OwnerError

CHUNK = 256  # sessions written and synced together
OUTCOME = "accepted"  # an answer that somebody keeps in a file is one that was good enough


class SourceError(OwnerError):
    """A source cannot be read."""


class ImportRefusedError(OwnerError):
    """Nothing may be imported now."""


@dataclass(frozen=True, slots=True)
class SourceSession:
    """One session as a source tells it, not yet scrubbed."""

    key: str  # unique in the source, and the same at every reading
    prompt: str = field(repr=False)
    completion: str = field(repr=False)
    group: str  # near-copies share it; empty if each session stands alone
    source_provider: str
    source_model: str
    terms_class: str
    timestamp: float | None = None  # None: the time of import


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What became of a source's sessions. `scrubbed` counts replaced values, not sessions."""

    added: int = 0
    skipped_known: int = 0
    refused: int = 0  # consent ended meanwhile
    dropped: dict[str, int] = field(default_factory=dict)  # by reason
    scrubbed: int = 0


@dataclass(frozen=True, slots=True)
class Selection:
    """Which part of a source is wanted; the same sessions on every machine.

    share: of the groups, by their hash: near-copies stay together. part: of the sessions that are
    left, by the hash of their key. Both are half-open intervals within [0, 1].
    """

    share: tuple[float, float] = (0.0, 1.0)
    part: tuple[float, float] = (0.0, 1.0)
    limit: int | None = None

    def __contains__(self, session: SourceSession) -> bool:
        group = _fraction(session.group or session.key)
        return (
            self.share[0] <= group < self.share[1]
            and self.part[0] <= _fraction(f"part/{session.key}") < self.part[1]
        )


ALL = Selection()


def parse_share(text: str) -> tuple[float, float]:
    """Parse "0.0:0.65". Raises ValueError that says what is wrong with it."""
    low, separator, high = text.partition(":")
    try:
        share = float(low), float(high)
    except ValueError:
        separator = ""
    if not separator or not 0 <= share[0] < share[1] <= 1:
        raise ValueError(f"a share is two numbers in [0, 1] such as 0.0:0.65, not {text!r}")
    return share


def import_sessions(
    sessions: Iterable[SourceSession],
    intake: TrainingDataIntake,
    user_id: str,
    source: str,
    *,
    select: Selection = ALL,
    report: Report = silent,
    dry_run: bool = False,
) -> ImportResult:
    """Bring sessions in; returns once all of them are durable.

    source: the importer's name, part of every id. dry_run: all but the writing.
    Raises ImportRefusedError without consent or while another import runs.
    """
    if not intake.allowed(user_id):
        raise ImportRefusedError(
            f"scope {Scope.CAPTURE.value!r} is not granted",
            unchanged="Nothing was imported.",
            next_step="groove-node consent grant capture",
        )
    with _alone(intake.corpus.root):
        importer = _Importer(intake, user_id, source, dry_run=dry_run)
        chunk: list[SourceSession] = []
        taken = 0
        for session in sessions:
            if session not in select:
                continue
            if select.limit is not None and taken >= select.limit:
                break
            chunk.append(session)
            taken += 1
            if len(chunk) == CHUNK:
                importer.take(chunk)
                report(Progress(f"import {source}", taken, 0))
                chunk = []
        importer.take(chunk)
        report(Progress(f"import {source}", taken, taken))
        return importer.result()


class _Importer:
    """One import: what the corpus holds already, and what became of each session."""

    def __init__(
        self, intake: TrainingDataIntake, user_id: str, source: str, *, dry_run: bool
    ) -> None:
        self._intake = intake
        self._user_id = user_id
        self._source = source
        self._dry_run = dry_run
        self._replaced_before = intake.replaced
        self._added = self._known = self._refused = 0
        self._dropped: Counter[str] = Counter()
        self._closed: set[str] = set()
        self._halves: defaultdict[str, set[str]] = defaultdict(set)
        for record in intake.corpus.records():
            if record.closes:
                self._closed.add(record.session_id)
                self._halves.pop(record.session_id, None)
            elif record.session_id not in self._closed:
                self._halves[record.session_id].add(record.record_id)

    def take(self, chunk: list[SourceSession]) -> None:
        """Write one chunk of sessions and wait until it is durable."""
        records: list[TrainingRecord] = []
        for session in chunk:
            session_id = _id(self._user_id, self._source, session.key)
            if session_id in self._closed:
                self._known += 1
                continue
            whole = self._records(session, session_id)
            if whole:
                records += whole
                self._closed.add(session_id)
                self._added += 1
        if self._dry_run or not records:
            return
        allowed = partial(self._intake.allowed, self._user_id)
        if not self._intake.corpus.add_records(records, allowed=allowed):
            self._added -= len(_sessions_of(records))
            self._refused += len(_sessions_of(records))  # consent ended while they were scrubbed

    def result(self) -> ImportResult:
        return ImportResult(
            self._added,
            self._known,
            self._refused,
            dict(self._dropped),
            self._intake.replaced - self._replaced_before,
        )

    def _records(self, session: SourceSession, session_id: str) -> list[TrainingRecord]:
        """The records that the corpus lacks of a session, the closing one last; [] if refused."""
        if not session.prompt.strip() or not session.completion.strip():
            self._dropped["empty"] += 1
            return []
        about: dict[str, Any] = {"source": self._source, "group": session.group}
        draft = Draft(
            self._user_id,
            session_id,
            session.prompt,
            ContentType.PROMPT,
            about,
            session.timestamp,
            _id(session_id, ContentType.PROMPT),
            session.source_provider,
            session.source_model,
            session.terms_class,
        )
        ask = self._admit(draft)
        answer = ask and self._admit(
            replace(
                draft,
                content=session.completion,
                content_type=ContentType.COMPLETION,
                record_id=_id(session_id, ContentType.COMPLETION),
                timestamp=ask.timestamp,
            )
        )
        if ask is None or answer is None:
            return []
        closing = close_draft(self._user_id, session_id, ask.content, outcome=OUTCOME, **about)
        close = self._admit(
            replace(
                closing,
                timestamp=ask.timestamp,
                record_id=_id(session_id, SESSION_CLOSE),
                terms_class=session.terms_class,
            )
        )
        known = self._halves.get(session_id, set())
        missed = [record for record in (ask, answer) if record.record_id not in known]
        return [*missed, close] if close else []

    def _admit(self, draft: Draft) -> TrainingRecord | None:
        before = self._intake.refused.copy()
        record = self._intake.admit(draft)
        if record is None:
            reason = next(iter(self._intake.refused - before))
            if reason is Refusal.NO_CONSENT:
                self._refused += 1
            else:
                self._dropped[reason.value] += 1
        return record


def _sessions_of(records: list[TrainingRecord]) -> set[str]:
    """The sessions that are closed by one of these records."""
    return {record.session_id for record in records if record.closes}


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Two imports at once would each miss what the other adds."""
    fd = os.open(root / ".import.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ImportRefusedError(
                f"another import into {root} is running",
                unchanged="Nothing was imported.",
                next_step="Wait until it is done, then import again.",
            ) from None
        yield
    finally:
        os.close(fd)


def _id(*parts: str) -> str:
    """A record or session id: 32 hex digits over the parts, which cannot run into each other."""
    framed = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.sha256(f"groove/capture/1 {framed}".encode()).hexdigest()[:32]


def _fraction(text: str) -> float:
    """The text's place in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
