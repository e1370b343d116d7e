"""Between the hot path and the corpus: one bounded queue, one thread, and no exception.

`offer` only puts. Consent, scrubbing and writing happen on the worker's thread, so a slow disk
costs captured texts and never a caller's time. What does not fit is dropped and counted. The worker
takes what waits as one batch: one question to consent, one turn to write, one sync.

A process that ends without `close` waits for the worker for a moment: a thread that the interpreter
stops inside the scrubber's C++ takes the whole process down with it.
"""

from __future__ import annotations

import atexit
import errno
import logging
import os
import queue
import sqlite3
import threading
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from sys import getsizeof
from typing import Any

from node.clock import Clock
from node.config import load
from node.consent import ConsentManager
from node.home import get_or_create_user_id, groove_cache, groove_home
from node.tally import SourceCounts, Tally
from node.threads import bring_out

from .corpus import CorpusError, TrainingCorpus
from .encoder_tag import DEFAULT_ENCODER, configured
from .halt import halting
from .intake import API, Refusal, TrainingDataIntake
from .known import open_known
from .known_folders import looked_into
from .record import ContentType, TrainingRecord
from .scrubber import PIIScrubber
from .session import CaptureSession
from .sizes import TooManyError, size_bytes
from .tagger import DomainTagger

log = logging.getLogger(__name__)

ITEMS_MAX = 10_000  # the specification's
BYTES_MAX = 64 * 2**20  # of memory, of all items in the queue together
BATCH = 512
SESSIONS_MAX = 1_000  # open at once; the longest untouched is closed for a new one
TALLY_S = 30.0  # between two writings of the counters, while there is work
EXIT_WRITE_S = 1.0  # for what waits when a process ends without `close`
EXIT_HALT_S = 0.5  # then, for the text that is being scrubbed to be given up; and once more


@dataclass(frozen=True, slots=True)
class CaptureItem:
    """One text of a session. A conversation is the JSON of its messages."""

    session_id: str
    content: str = field(repr=False)
    content_type: str
    metadata: Mapping[str, Any] | None = field(default=None, repr=False)
    source: str = API  # consent is asked for it; that of a session's first item stands
    folder: str | None = field(default=None, repr=False)  # of the project, where it is known


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """A session is over."""

    session_id: str
    outcome: str = ""  # accepted, modified, iterated, rejected, error; empty if unknown
    routing: Mapping[str, Any] | None = None
    corrections: int = 0  # asks that corrected the answer before
    errors: int = 0  # answers and calls of tools that failed


# The specification's form of an item is a dict with the fields of `CaptureItem`.
Item = CaptureItem | SessionEnd | Mapping[str, Any]


_Sized = tuple[Item, int]  # bytes, as counted when it was offered: a caller may change it since


class _Stop:
    """The last thing in the queue; private, so that no caller can offer it."""


@dataclass(frozen=True, slots=True)
class Counters:
    """What became of everything that was offered."""

    captured: int
    dropped_full: int
    dropped_no_consent: int
    dropped_scrub: int
    dropped_too_long: int
    dropped_error: int
    waiting: int
    dropped_deleted: int = 0  # of sessions that the owner has deleted
    untold: int = 0  # times that the counters could not be written to the home


class CaptureQueue:
    """Takes items from any thread or event loop. Start it with `start`, end it with `close`."""

    def __init__(
        self,
        open_session: Callable[[str], CaptureSession],
        *,
        items_max: int = ITEMS_MAX,
        on_close: Callable[[], None] = lambda: None,
        tally: Tally | None = None,
        halt: threading.Event | None = None,
    ) -> None:
        """open_session: makes the session of an id, all of one user.

        on_close: run by the worker when it ends. tally: where the counters go for `status`.
        halt: set once what is left is discarded, for the scrubber to give up what it has begun.
        """
        self._open_session = open_session
        self._on_close = on_close
        self._items_max = items_max
        self._items: queue.SimpleQueue[_Sized | _Stop] = queue.SimpleQueue()
        self._counts: Counter[str] = Counter()
        self._full = 0
        self._bytes_in = 0  # written by callers, under the GIL's races: a bound, not a figure
        self._bytes_out = 0  # written by the worker
        self._closed = False
        self._halt = halt or threading.Event()
        self._sessions: OrderedDict[str, CaptureSession] = OrderedDict()
        self._warned: set[str] = set()
        self._tally = tally
        self._told: Counter[str] = Counter()
        self._of_sources: defaultdict[str, Counter[str]] = defaultdict(Counter)  # to be told
        self._last_s = 0.0  # when something of such a source was written
        self._told_at_s = time.monotonic()
        self._worker = threading.Thread(target=self._work, name="capture", daemon=True)

    def start(self) -> CaptureQueue:
        self._worker.start()
        atexit.register(self._at_exit)
        return self

    @property
    def running(self) -> bool:
        """True while the worker is at work."""
        return self._worker.is_alive()

    @property
    def busy(self) -> bool:
        """True if half of the room is taken: who can wait with more should."""
        waiting_bytes = self._bytes_in - self._bytes_out
        return self._items.qsize() > self._items_max // 2 or waiting_bytes > BYTES_MAX // 2

    def offer(self, item: Item) -> bool:
        """Hand an item over; False if it was dropped. Never raises, never waits; a few µs."""
        try:
            size = _size(item)
            full = (
                self._items.qsize() >= self._items_max
                or self._bytes_in - self._bytes_out + size > BYTES_MAX
            )
            if full or self._closed:
                self._full += 1
                return False
            self._bytes_in += size
            self._items.put((item, size))
        except TooManyError:
            self._counts[Refusal.TOO_LONG] += 1
            return False
        except Exception:  # the promise to the caller: this is no item
            self._counts[Refusal.MALFORMED] += 1
            return False
        return True

    @property
    def counters(self) -> Counters:
        counts = self._counts
        return Counters(
            captured=counts["captured"],
            dropped_full=self._full,
            dropped_no_consent=counts[Refusal.NO_CONSENT],
            dropped_scrub=counts[Refusal.SCRUB],
            dropped_too_long=counts[Refusal.TOO_LONG],
            dropped_error=counts["error"] + counts[Refusal.MALFORMED],
            waiting=self._items.qsize(),
            dropped_deleted=counts[Refusal.DELETED],
            untold=counts["untold"],
        )

    def close(self, timeout: float = 5.0) -> bool:
        """Take no more, and wait up to `timeout` seconds for what was offered to be written.

        Returns True if the worker ended in time; otherwise it discards what is left.
        """
        self._closed = True
        self._items.put(_Stop())
        if self._worker.is_alive():
            self._worker.join(timeout)
        self._halt.set()
        if self._worker.is_alive():
            return False
        atexit.unregister(self._at_exit)
        return True

    def _at_exit(self) -> None:
        """Bring the worker out of the scrubber; a fork has the queue, and not its worker."""
        if self._worker.is_alive() and not self.close(EXIT_WRITE_S):
            bring_out(self._worker, EXIT_HALT_S)

    def _work(self) -> None:
        ending = False
        while not ending or not self._items.empty():
            waiting = [self._items.get()]
            while len(waiting) < BATCH and not self._items.empty():
                waiting.append(self._items.get())
            batch = [item for item in waiting if not isinstance(item, _Stop)]
            ending = ending or len(batch) < len(waiting)
            if batch and not self._halt.is_set():
                self._take(batch)
            self._tell(every_s=TALLY_S)
        self._finish()

    def _take(self, batch: list[_Sized]) -> None:
        """Capture a batch; whatever goes wrong is counted, and says nothing of the text."""
        work = _Batch()
        for item, size in batch:
            if self._halt.is_set():
                break
            self._bytes_out += size
            try:
                self._prepare(item, work)
            except Exception as problem:
                self._failed(problem)
        self._write(work)

    def _prepare(self, item: Item, work: _Batch) -> None:
        match item:
            case SessionEnd():
                if session := self._sessions.pop(item.session_id, None):
                    work.ask(session)
                    work.ends.append((session, item))
            case CaptureItem():
                self._capture(item, work)
            case _:
                text = CaptureItem(
                    str(item["session_id"]),
                    str(item["content"]),
                    str(item["content_type"]),
                    item.get("metadata"),
                )
                self._capture(text, work)

    def _capture(self, item: CaptureItem, work: _Batch) -> None:
        kind = ContentType(item.content_type)
        session = self._session(item, work)
        version = work.ask(session) if session is not None else None
        if session is None or version is None:
            self._counts[Refusal.NO_CONSENT] += 1
            return
        record = session.prepare(item.content, kind, item.metadata, version)
        if record is None:
            self._counts[session.intake.last_refusal or Refusal.SCRUB] += 1
        else:
            work.entries.append((session, record))

    def _session(self, item: CaptureItem, work: _Batch) -> CaptureSession | None:
        """The session of an item, begun if it is new; None if consent does not stand."""
        session = self._sessions.get(item.session_id)
        if session is None:
            session = self._open_session(item.session_id)
            session.source, session.folder = item.source, item.folder
            if work.known(session) is not None:
                session.begin()
            else:
                try:
                    session.start()
                except PermissionError:
                    return None
            self._sessions[item.session_id] = session
            if len(self._sessions) > SESSIONS_MAX:
                work.ends.append((self._sessions.popitem(last=False)[1], SessionEnd("")))
        self._sessions.move_to_end(item.session_id)
        if work.ask(session) is None:
            self._forget(session)
            return None
        return session

    def _forget(self, ended: CaptureSession) -> None:
        """Sessions that consent ended do not wake up when it is back."""
        for id_, session in list(self._sessions.items()):
            if _place(session) == _place(ended):
                del self._sessions[id_]

    def _write(self, work: _Batch) -> None:
        """Write what is prepared, and take it for captured only once that has succeeded."""
        for entries in work.by_place():
            session, texts = entries[0][0], len(entries)
            try:
                written = _written(entries)
            except Exception as problem:
                self._failed(problem, texts)
                continue
            if written is None:
                self._counts[Refusal.NO_CONSENT] += texts
                self._forget(session)
                work.versions[_place(session)] = None
                continue
            self._counts["captured"] += written
            self._counts[Refusal.DELETED] += texts - written
            if session.source != API:
                self._of_sources[session.source]["records"] += written
                self._last_s = session.intake.now_s()
        self._write_ends(work)

    def _write_ends(self, work: _Batch) -> None:
        """After the texts, for they tell of them; one that fails costs the others nothing."""
        closing: defaultdict[_Place, list[TrainingRecord]] = defaultdict(list)
        intakes: dict[_Place, TrainingDataIntake] = {}
        for session, how in work.ends:
            version = work.ask(session)
            if version is None:
                continue
            try:
                record = session.closing(
                    version,
                    how.outcome,
                    how.routing,
                    corrections=how.corrections,
                    errors=how.errors,
                )
            except Exception as problem:
                self._failed(problem)
            else:
                if record is not None:
                    closing[_place(session)].append(record)
                    intakes[_place(session)] = session.intake
        for place, records in closing.items():
            try:
                kept = intakes[place].written(records, *place)
            except Exception as problem:
                self._failed(problem)
            else:
                if place[0] != API:
                    self._of_sources[place[0]]["sessions"] += len(kept or ())

    def _failed(self, problem: Exception, items: int = 1) -> None:
        """Count; and warn once of each cause, for the owner's log is not to be flooded either."""
        self._counts["error"] += items
        cause = _cause(problem)
        if cause not in self._warned:
            self._warned.add(cause)
            log.warning("capture failed reason=%s; further ones are only counted", cause)

    def _finish(self) -> None:
        """Close what is open: nothing more of these sessions will come through this process."""
        try:
            open_ = [] if self._halt.is_set() else list(self._sessions.values())
            for first in range(0, len(open_), BATCH):
                ends = [(session, SessionEnd("")) for session in open_[first : first + BATCH]]
                self._write_ends(_Batch(ends=ends))
        except Exception as problem:
            self._failed(problem)
        self._tell()
        try:
            self._on_close()
        except Exception as problem:
            self._failed(problem)

    def _tell(self, every_s: float = 0.0) -> None:
        """Add what was counted since to the home's counters, at most every so often."""
        if self._tally is None or time.monotonic() - self._told_at_s < every_s:
            return
        self._told_at_s = time.monotonic()
        now = Counter(asdict(self.counters))
        del now["waiting"], now["untold"]
        try:
            if more := now - self._told:
                self._tally.add_queue(more)
                self._told = now
            while self._of_sources:
                source, counts = self._of_sources.popitem()
                self._tally.add_source(source, _told(counts, self._last_s))
        except Exception as problem:  # a figure for `status` is worth no word
            self._counts["untold"] += 1
            log.debug("counters not written reason=%s", type(problem).__name__)


_Place = tuple[str, str | None]  # a source and a folder: what consent is asked for
_Entry = tuple[CaptureSession, TrainingRecord]


def _place(session: CaptureSession) -> _Place:
    return session.source, session.folder


@dataclass(slots=True)
class _Batch:
    """What is asked and written for many items together."""

    versions: dict[_Place, str | None] = field(default_factory=dict)  # of the terms in force
    entries: list[_Entry] = field(default_factory=list)
    ends: list[tuple[CaptureSession, SessionEnd]] = field(default_factory=list)

    def ask(self, session: CaptureSession) -> str | None:
        """Ask for consent, once in a batch for each source and folder: the write asks again.

        Returns the version of the terms; None if capture is not allowed.
        """
        place = _place(session)
        if place not in self.versions:
            self.versions[place] = session.consented()
        return self.versions[place]

    def known(self, session: CaptureSession) -> str | None:
        """What `ask` has heard in this batch; None if it was not asked."""
        return self.versions.get(_place(session))

    def by_place(self) -> list[list[_Entry]]:
        """What was prepared, together as it is written."""
        found: defaultdict[_Place, list[_Entry]] = defaultdict(list)
        for entry in self.entries:
            found[_place(entry[0])].append(entry)
        return list(found.values())


def _written(entries: list[_Entry]) -> int | None:
    """Write texts of one source and folder, and return how many were; None if consent has ended.

    Raises CorpusError.
    """
    first = entries[0][0]
    written = first.intake.written([record for _, record in entries], *_place(first))
    if written is None:
        return None
    kept = {record.record_id for record in written}
    for session, record in entries:
        if record.record_id in kept:
            session.count(record)
    return len(written)


def _told(counts: Counter[str], last_s: float) -> SourceCounts:
    return SourceCounts(counts["sessions"], counts["records"], last_s)


def _cause(problem: Exception) -> str:
    """What is wrong, in words that hold nothing of a text."""
    match problem:
        case CorpusError():
            return problem.what
        case OSError(errno=int(number)):
            return errno.errorcode.get(number, str(number))
        case sqlite3.Error():
            return f"consent database: {problem}"
        case _:
            return type(problem).__name__


def _size(item: Item) -> int:
    """What an item takes in memory. Raises TypeError if it is none, TooManyError."""
    if isinstance(item, CaptureItem):  # first, and without a list: the hot path
        size = getsizeof(item.content) + getsizeof(item.session_id) + getsizeof(item.content_type)
        size += getsizeof(item.folder) if item.folder else 0
        return size + size_bytes(item.metadata) if item.metadata else size
    if type(item) is dict:  # the other form of it
        return size_bytes(item)
    if isinstance(item, SessionEnd):
        return size_bytes([item.session_id, item.outcome, item.routing])
    if isinstance(item, Mapping):
        return size_bytes(item)
    raise TypeError(f"an item, not a {type(item).__name__}")


def _scrubber(home: Path, folders: Iterable[Path], halt: threading.Event) -> PIIScrubber:
    """One that knows this machine's own secrets: of the environment and of its projects."""
    known = open_known(home, load(home).capture, os.environ, folders)
    return PIIScrubber(known, timer=halting(halt))


def open_queue(clock: Clock | None = None) -> CaptureQueue | None:
    """Return the running queue of this home, or None if capture is not allowed or not possible."""
    try:
        home = groove_home()
        user_id = get_or_create_user_id(home)
        consent = ConsentManager(home / "consent.db", clock=clock)
        if not consent.is_opted_in(user_id):
            consent.close()
            return None
        corpus = TrainingCorpus(home / "training_data")
    except Exception as problem:  # capture must never stop the caller's own work
        log.error("capture is off reason=%s: %s", type(problem).__name__, problem)
        return None
    tagger = DomainTagger()
    scrubber: PIIScrubber | None = None
    encoder = DEFAULT_ENCODER
    halt = threading.Event()

    def open_session(session_id: str) -> CaptureSession:
        # Made by the worker: to look for known secrets, and to hash an encoder, takes its time.
        nonlocal scrubber, encoder
        if scrubber is None:
            encoder = configured(load(home).encoder, groove_cache())
            scrubber = _scrubber(home, looked_into(consent, user_id), halt)
        return CaptureSession(
            user_id, session_id, consent, corpus, scrubber, tagger, clock=clock, encoder=encoder
        )

    def close() -> None:
        corpus.close()
        consent.close()

    return CaptureQueue(open_session, on_close=close, tally=Tally(home), halt=halt).start()
