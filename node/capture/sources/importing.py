"""Sessions of a source into the corpus: each record once, however and however often it is read.

The id of a session is a hash of the user, the source and the session's key; that of a record adds
the turn's key, or is of that alone if it is unique in the source. A record is missing or it is
there, so an import that was killed, a session that went on and a watcher that reads a file in
pieces all come to the same corpus. A session ends with a closing record; one that goes on after
that gets another when it ends again, and the last counts.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from leaves.ports import Progress, Report, silent
from node.capture.intake import Draft, Refusal, TrainingDataIntake
from node.capture.record import SESSION_CLOSE, ContentType, TrainingRecord, day_of
from node.capture.session import close_draft
from node.capture.terms import Terms, trainable
from node.consent import Scope
from node.errors import OwnerError

from .held import ANSWERS, HeldRecords, answer_mark
from .source import SourceError, SourceSession, Turn

__all__ = [
    "ImportRefusedError",
    "ImportResult",
    "Selection",
    "SourceError",
    "SourceSession",
    "Taker",
    "import_sessions",
    "parse_share",
]

CHUNK_SESSIONS = 256  # written and synced together, unless CHUNK_TURNS are reached before
CHUNK_TURNS = 1_024
AHEAD_S = 86_400.0  # a turn dated later than that after now has a wrong date
Since = Callable[[SourceSession], float | None]
_ASKS = frozenset({ContentType.PROMPT, ContentType.CONVERSATION})


class ImportRefusedError(OwnerError):
    """Nothing may be imported now."""


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What became of a source's sessions. `scrubbed` counts replaced values, not sessions."""

    added: int = 0  # sessions of which nothing was known
    grown: int = 0  # known ones that had gone on
    records: int = 0  # written for both, closing records apart
    skipped_known: int = 0
    not_allowed: int = 0  # sessions of folders that are not marked
    refused: int = 0  # sessions: consent ended meanwhile
    dropped: dict[str, int] = field(default_factory=dict)  # turns, by reason
    scrubbed: int = 0
    folders: dict[str, int] = field(default_factory=dict, repr=False)  # not allowed, sessions each
    untrainable: dict[str, int] = field(default_factory=dict)  # sessions; "": terms unknown


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
        if self.share == self.part == (0.0, 1.0):
            return True
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
    since: float | None = None,
    report: Report = silent,
    dry_run: bool = False,
) -> ImportResult:
    """Bring sessions in; returns once all of them are durable.

    source: the importer's name, part of every id. since: Unix seconds; turns dated earlier are left
    out, those without a date are not. dry_run: all but the writing.
    Raises ImportRefusedError without consent or while another import runs.
    """
    if intake.version(user_id) is None:
        raise ImportRefusedError(
            f"scope {Scope.CAPTURE.value!r} is not granted",
            unchanged="Nothing was imported.",
            next_step="groove-node consent grant capture",
        )
    with _alone(intake.corpus.root):
        taker = Taker(
            intake,
            user_id,
            source,
            HeldRecords(intake.corpus),
            since=lambda session: since,
            dry_run=dry_run,
        )
        chunk: list[SourceSession] = []
        taken = turns = 0
        try:
            for session in sessions:
                if session not in select:
                    continue
                if select.limit is not None and taken >= select.limit:
                    break
                chunk.append(session)
                taken, turns = taken + 1, turns + len(session.turns)
                if len(chunk) == CHUNK_SESSIONS or turns >= CHUNK_TURNS:
                    taker.take(chunk)
                    report(Progress(f"import {source}", taken, 0))
                    chunk, turns = [], 0
        except SourceError as problem:
            taker.take(chunk)
            raise _broken_off(problem, taker.result(), dry_run) from None
        taker.take(chunk)
        report(Progress(f"import {source}", taken, taken))
        return taker.result()


def _broken_off(problem: SourceError, so_far: ImportResult, dry_run: bool) -> SourceError:
    """The same, with what the reading until then came to."""
    kept = so_far.added + so_far.grown
    unchanged = (
        "Nothing was imported of it."
        if not kept
        else (f"What was read before it is in the corpus ({kept:,} of its sessions).")
    )
    return SourceError(
        problem.what,
        unchanged="Nothing was written: a dry run." if dry_run else unchanged,
        next_step=problem.next_step,
    )


class Ended(NamedTuple):
    """How a reading ended: with which session, and whether its last ask was dropped.

    Then what answers it is dropped as well, though it may come with the next reading.
    """

    session_id: str
    lost_ask: bool


@dataclass(slots=True)
class _Plan:
    """What is to be written of one session. `started`: something of it was there before."""

    folders: tuple[str, ...]
    started: bool
    answered: bool  # an answer was there before: the session's terms are known
    records: list[TrainingRecord]


class Taker:
    """Takes sessions of one source into the corpus, and counts what became of them."""

    def __init__(
        self,
        intake: TrainingDataIntake,
        user_id: str,
        source: str,
        held: HeldRecords,
        *,
        since: Since = lambda session: None,
        undated_s: float = math.inf,
        dry_run: bool = False,
        stopping: Callable[[], bool] = lambda: False,
        ended: Ended | None = None,
    ) -> None:
        """since: Unix seconds; what was said before is left out. undated_s: at least when turns
        that have no date, nor any before them, were said.
        stopping: asked between two turns; once it is true nothing more is written.
        ended: as the reading before this one left it.
        """
        self._intake = intake
        self._user_id = user_id
        self._source = source
        self._held = held
        self._since = since
        self.undated_s = undated_s
        self._dry_run = dry_run
        self._stopping = stopping
        self._replaced_before = intake.replaced
        self._counts: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._folders: Counter[str] = Counter()
        self._untrainable: Counter[str] = Counter()
        self.ended = ended

    def take(self, sessions: Sequence[SourceSession], *, only_close: bool = False) -> bool:
        """Write what the corpus lacks of some sessions and wait until it is durable.

        only_close: of turns nothing, only the closing record where one is due. Returns False if it
        was stopped: then nothing of these sessions was written. Raises CorpusError.
        """
        if not sessions:
            return True
        self._held.catch_up()
        version = self._intake.version(self._user_id)
        allowed: dict[tuple[str, ...], bool] = {}
        plans: dict[str, _Plan] = {}
        for session in sessions:
            if session.folders not in allowed:
                for folder in session.folders or (None,):
                    self._intake.look_into(folder)  # also of those that are left out
                allowed[session.folders] = version is not None and self._allows(session.folders)
            if version is None:
                self._counts["refused"] += 1
            elif not allowed[session.folders]:
                self._leave_out(session)
            elif not self._plan(session, version, plans, only_close):
                return False
        if self._stopping():  # the last text may have been given up
            return False
        self._write(plans)
        return True

    def result(self) -> ImportResult:
        counts = self._counts
        return ImportResult(
            added=counts["added"],
            grown=counts["grown"],
            records=counts["records"],
            skipped_known=counts["known"],
            not_allowed=counts["not allowed"],
            refused=counts["refused"],
            dropped=dict(self._dropped),
            scrubbed=self._intake.replaced - self._replaced_before,
            folders=dict(self._folders),
            untrainable=dict(self._untrainable),
        )

    def _allows(self, folders: tuple[str, ...]) -> bool:
        """True if every folder is allowed: what was said in one may be about another."""
        return all(map(self._allows_one, folders or (None,)))

    def _allows_one(self, folder: str | None) -> bool:
        return self._intake.allowed(self._user_id, self._source, folder)

    def _leave_out(self, session: SourceSession) -> None:
        self._counts["not allowed"] += 1
        self._folders.update([each for each in session.folders if not self._allows_one(each)][:1])

    # ---- what is missing -------------------------------------------------------------------------

    def _plan(
        self, session: SourceSession, version: str, plans: dict[str, _Plan], only_close: bool
    ) -> bool:
        """Prepare the missing records of a session; False if it was stopped.

        An ask that is dropped takes its answers with it, for they answer what nobody will see; so
        a session begins with the first ask that can be kept. Answers that a reading begins with
        belong to the ask that an earlier reading ended with.
        """
        session_id = record_id(self._user_id, self._source, session.key)
        if self._was_deleted(session, session_id):
            self._dropped["deleted by the owner"] += len(session.turns)
            return True
        plan = plans.get(session_id)  # a source may tell a session in pieces
        if plan is None:
            started, answered = session_id in self._held, answer_mark(session_id) in self._held
            plan = _Plan(session.folders, started, answered, [])
        planned = {record.record_id for record in plan.records}
        answering, at = plan.started or bool(planned), None
        if self.ended is not None and self.ended.session_id == session_id:
            answering = not self.ended.lost_ask
        first: Turn | None = None  # the ask that the session begins with
        since = self._since(session)
        turns: list[Turn] = []
        for turn in self._wanted(session):
            if self._stopping():
                return False
            id_ = self._id_of(turn, session_id)
            at = self._date(turn, at)
            known = id_ in planned or id_ in self._held
            if since is not None and (self.undated_s if at is None else at) < since:
                answering = known if turn.kind in _ASKS else answering
                continue
            turns.append(turn)
            if known or only_close:
                if turn.kind in _ASKS:
                    answering, first = True, first or (turn if known else None)
                continue
            if turn.kind not in _ASKS and not answering:
                self._dropped["without its ask"] += 1
                continue
            record = self._admit(self._draft(session, session_id, turn, id_, at), version)
            if turn.kind in _ASKS:
                answering, first = record is not None, first or (turn if record else None)
            if record is not None:
                plan.records.append(record)
                planned.add(id_)
        begun = plan.started or bool(plan.records)
        if begun and session.closed and turns:
            self._close(session, session_id, turns[-1], first, at, version, plan)
        if begun or turns:
            plans[session_id] = plan
        if session.turns and not only_close:
            self.ended = Ended(session_id, not answering)
        return True

    def _id_of(self, turn: Turn, session_id: str) -> str:
        """A key that is unique in the source keeps its record known in whatever session it is."""
        if turn.unique:
            return record_id(self._user_id, self._source, "turn", turn.key)
        return record_id(session_id, turn.key)

    def _was_deleted(self, session: SourceSession, session_id: str) -> bool:
        """True if the owner has deleted this session, or one that it was a part of.

        A tool that cuts off the head of a transcript makes another session of the rest.
        """
        corpus = self._intake.corpus
        if corpus.was_deleted(session_id):
            return True
        if not any(t.unique and self._id_of(t, "") in corpus.deleted for t in session.turns):
            return False
        if not self._dry_run:
            corpus.bury([session_id])  # the next reading may begin after what tells it
        return True

    def _wanted(self, session: SourceSession) -> list[Turn]:
        wanted = []
        for turn in session.turns:
            if not turn.text.strip():
                self._dropped["empty"] += 1
                continue
            wanted.append(turn)
        return wanted

    def _date(self, turn: Turn, before: float | None) -> float | None:
        """A turn's own date if it can be true, else that of the turn before it."""
        if turn.timestamp is None or not math.isfinite(turn.timestamp):
            return before
        return turn.timestamp if 0 < turn.timestamp < self._intake.now_s() + AHEAD_S else before

    def _draft(
        self, session: SourceSession, session_id: str, turn: Turn, id_: str, at: float | None
    ) -> Draft:
        return Draft(
            self._user_id,
            session_id,
            turn.text,
            turn.kind,
            dict(turn.metadata),
            at,
            id_,
            turn.source_provider,
            turn.source_model,
            turn.terms_class,
            source=self._source,
            own=self._about(session),
        )

    def _about(self, session: SourceSession) -> dict[str, Any]:
        if not session.group:
            return {"source": self._source}
        return {"source": self._source, "group": record_id("group", session.group)[:16]}

    def _close(
        self,
        session: SourceSession,
        session_id: str,
        last: Turn,
        first: Turn | None,
        at: float | None,
        version: str,
        plan: _Plan,
    ) -> None:
        """Plan the closing record. Its id holds the last turn: one that went on closes anew."""
        id_ = record_id(session_id, SESSION_CLOSE, last.key)
        if id_ in self._held or any(record.record_id == id_ for record in plan.records):
            return
        draft = close_draft(
            self._user_id,
            session_id,
            self._ask_of(first, plan),
            outcome=session.outcome,
            corrections=session.corrections,
            errors=session.errors,
            encoder=self._intake.encoder,
            source=self._source,
            group=self._about(session).get("group", ""),
            metadata=session.metadata,
            stated=session.quality,
        )
        record = self._admit(
            replace(draft, timestamp=at, record_id=id_, terms_class=last.terms_class), version
        )
        if record is not None:
            plan.records.append(record)

    def _ask_of(self, first: Turn | None, plan: _Plan) -> str:
        """The scrubbed text of the first ask."""
        prepared = next((r.content for r in plan.records if r.content_type in _ASKS), None)
        if not plan.started and prepared is not None:
            return prepared
        return (first and self._intake.clean(first.text)) or ""

    def _admit(self, draft: Draft, version: str) -> TrainingRecord | None:
        record = self._intake.prepare(draft, ContentType(draft.content_type), version)
        if record is None:
            self._dropped[self._intake.last_refusal or Refusal.SCRUB] += 1
        return record

    # ---- writing ---------------------------------------------------------------------------------

    def _write(self, plans: dict[str, _Plan]) -> None:
        if not any(plan.records for plan in plans.values()):
            self._count(plans, frozenset())
            return
        if self._dry_run:
            every = [record for plan in plans.values() for record in plan.records]
            self._held.note(id_ for r in every for id_ in (r.record_id, r.session_id))
            self._held.note(answer_mark(r.session_id) for r in every if r.content_type in ANSWERS)
            self._count(plans, {record.record_id for record in every})
            return
        with self._held.turn():
            written = self._written(plans)
        self._count(plans, written)

    def _written(self, plans: dict[str, _Plan]) -> set[str]:
        """Write all plans whose folders are still allowed; the ids of what was written."""
        while plans:
            records = [
                record
                for plan in plans.values()
                for record in plan.records
                if record.record_id not in self._held  # another process may have been first
            ]
            folders = {plan.folders for plan in plans.values()}
            # Each day has a file of its own: going to and fro between them would cost a sync each.
            records.sort(key=lambda record: day_of(record.timestamp))
            allowed = self._intake.corpus.add_records(
                records,
                allowed=lambda: all(map(self._allows, folders)),  # noqa: B023
            )
            if allowed or not records:
                return {record.record_id for record in records}
            ended = {each for each in folders if not self._allows(each)} or folders
            for session_id in [id_ for id_, plan in plans.items() if plan.folders in ended]:
                self._counts["refused"] += bool(plans.pop(session_id).records)
        return set()

    def _count(self, plans: dict[str, _Plan], written: frozenset[str] | set[str]) -> None:
        for plan in plans.values():
            done = [record for record in plan.records if record.record_id in written]
            turns = sum(not record.closes for record in done)
            self._counts["records"] += turns
            answer = next((record for record in done if record.content_type in ANSWERS), None)
            if answer is not None and not plan.answered and not trainable(answer.terms_class):
                restricted = answer.terms_class == Terms.RESTRICTED
                self._untrainable[(restricted and answer.source_provider) or ""] += 1
            if not plan.records and not plan.started:
                continue  # nothing of it could be kept: its turns are counted
            if not done:
                self._counts["known"] += 1
            elif not plan.started:
                self._counts["added"] += 1
            else:
                self._counts["grown"] += 1


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Two imports at once would each do the other's work; a watcher beside one is no matter."""
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


def record_id(*parts: str) -> str:
    """A record or session id: 32 hex digits over the parts, which cannot run into each other."""
    framed = "".join(f"{len(part)}:{part}" for part in parts)
    data = f"groove/capture/1 {framed}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(data).hexdigest()[:32]


def _fraction(text: str) -> float:
    """The text's place in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
