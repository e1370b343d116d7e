"""Between the hot path and the corpus: one bounded queue, one thread, and no exception.

`offer` only puts. Consent, scrubbing and writing happen on the worker's thread, so a slow disk
costs captured texts and never a caller's time. What does not fit is dropped and counted.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from node.clock import Clock
from node.consent import ConsentManager
from node.home import get_or_create_user_id, groove_home

from .corpus import TrainingCorpus
from .intake import CONTENT_CHARS_MAX, Refusal
from .record import ContentType
from .scrubber import PIIScrubber
from .session import CaptureSession
from .tagger import DomainTagger

log = logging.getLogger(__name__)

ITEMS_MAX = 10_000  # the specification's
CHARS_MAX = 64 * 2**20  # of all texts in the queue together
BATCH = 64
SESSIONS_MAX = 1_000  # open at once; the longest untouched is closed for a new one


@dataclass(frozen=True, slots=True)
class CaptureItem:
    """One text of a session. A conversation is the JSON of its messages."""

    session_id: str
    content: str = field(repr=False)
    content_type: str
    metadata: Mapping[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """A session is over."""

    session_id: str
    outcome: str = ""  # accepted, modified, iterated, rejected, error; empty if unknown
    routing: Mapping[str, Any] | None = None


# The specification's form of an item is a dict with the fields of `CaptureItem`.
Item = CaptureItem | SessionEnd | Mapping[str, Any]


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


class CaptureQueue:
    """Takes items from any thread or event loop. Start it with `start`, end it with `close`."""

    def __init__(
        self,
        open_session: Callable[[str], CaptureSession],
        *,
        items_max: int = ITEMS_MAX,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        """open_session: makes the session of an id; on_close: run by the worker when it ends."""
        self._open_session = open_session
        self._on_close = on_close
        self._items_max = items_max
        self._items: queue.SimpleQueue[Item | _Stop] = queue.SimpleQueue()
        self._counts: Counter[str] = Counter()
        self._full = 0
        self._chars_in = 0  # written by callers, under the GIL's races: a bound, not a figure
        self._chars_out = 0  # written by the worker
        self._closed = False
        self._discard = False
        self._sessions: OrderedDict[str, CaptureSession] = OrderedDict()
        self._worker = threading.Thread(target=self._work, name="capture", daemon=True)

    def start(self) -> CaptureQueue:
        self._worker.start()
        return self

    def offer(self, item: Item) -> bool:
        """Hand an item over; False if it was dropped. Never raises, never waits; about 1 µs."""
        try:
            chars = _chars(item)
            full = (
                self._items.qsize() >= self._items_max
                or self._chars_in - self._chars_out + chars > CHARS_MAX
            )
            if full or self._closed:
                self._full += 1
                return False
            self._chars_in += chars
            self._items.put(item)
        except Exception:  # the promise to the caller: this is no item
            self._counts["malformed"] += 1
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
            dropped_error=counts["error"] + counts["malformed"],
            waiting=self._items.qsize(),
        )

    def close(self, timeout: float = 5.0) -> bool:
        """Take no more, and wait up to `timeout` seconds for what was offered to be written.

        Returns True if the worker ended in time; otherwise it discards what is left.
        """
        self._closed = True
        self._items.put(_Stop())
        if self._worker.is_alive():
            self._worker.join(timeout)
        self._discard = True
        return not self._worker.is_alive()

    def _work(self) -> None:
        ending = False
        while not ending or not self._items.empty():
            batch = [self._items.get()]
            while len(batch) < BATCH and not self._items.empty():
                batch.append(self._items.get())
            for item in batch:
                if isinstance(item, _Stop):
                    ending = True
                elif not self._discard:
                    self._take(item)
        self._finish()

    def _take(self, item: Item) -> None:
        """Capture one item; whatever goes wrong is counted, and says nothing of the text."""
        try:
            self._chars_out += _chars(item)
            match item:
                case SessionEnd(session_id, outcome, routing):
                    if session := self._sessions.pop(session_id, None):
                        session.end(outcome, routing)
                case CaptureItem():
                    self._capture(item)
                case _:
                    self._capture(
                        CaptureItem(
                            str(item["session_id"]),
                            str(item["content"]),
                            str(item["content_type"]),
                            item.get("metadata"),
                        )
                    )
        except Exception as problem:
            self._counts["error"] += 1
            log.warning("capture failed reason=%s", type(problem).__name__)

    def _capture(self, item: CaptureItem) -> None:
        session = self._session(item.session_id)
        if session is None or not session.is_active():
            self._sessions.pop(item.session_id, None)
            self._counts[Refusal.NO_CONSENT] += 1
            return
        if len(item.content) > CONTENT_CHARS_MAX:
            self._counts[Refusal.TOO_LONG] += 1
            return
        before = session.refused.copy()
        session.record(item.content, ContentType(item.content_type), dict(item.metadata or {}))
        refused = session.refused - before
        self._counts.update(refused)
        self._counts["captured"] += not refused

    def _session(self, session_id: str) -> CaptureSession | None:
        session = self._sessions.get(session_id)
        if session is None:
            session = self._open_session(session_id)
            try:
                session.start()
            except PermissionError:
                return None
            self._sessions[session_id] = session
            if len(self._sessions) > SESSIONS_MAX:
                self._sessions.popitem(last=False)[1].end()
        self._sessions.move_to_end(session_id)
        return session

    def _finish(self) -> None:
        """Close what is open: nothing more of these sessions will come through this process."""
        try:
            if not self._discard:
                for session in self._sessions.values():
                    session.end()
            self._on_close()
        except Exception as problem:
            self._counts["error"] += 1
            log.warning("capture failed reason=%s", type(problem).__name__)


def _chars(item: Item) -> int:
    match item:
        case SessionEnd():
            return 0
        case CaptureItem():
            return len(item.content)
        case _:
            return len(item["content"])


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
    scrubber, tagger = PIIScrubber(), DomainTagger()

    def open_session(session_id: str) -> CaptureSession:
        return CaptureSession(user_id, session_id, consent, corpus, scrubber, tagger, clock=clock)

    def close() -> None:
        corpus.close()
        consent.close()

    return CaptureQueue(open_session, on_close=close).start()
