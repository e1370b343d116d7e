"""What becomes of an exchange: with consent it goes into a session, without it nothing is kept.

Nothing here waits, reads a disk or imports capture before the owner has consented: `finished` only
puts. A thread finds out which talk an exchange goes on with (`talks`) and offers what is new of it
to the capture queue, which asks for consent and scrubs before anything is written.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from node import gate
from node.home import home_path

from .config import ApiConfig
from .counts import Counts
from .ports import Usage

if TYPE_CHECKING:
    from node.app import App

    from .choosing import Choice
    from .talks import Talk, Talks

log = logging.getLogger(__name__)

OWN = "groove"  # the provider of an answer that this node made
SOURCE = "endpoint"
PACKAGED = "SmolLM2"  # the chassis, if groove.toml names none
SIGNALS = ("accepted", "modified", "rejected")

WAITING_MAX = 10_000  # exchanges that were not looked at yet
CHARS_MAX = 32 * 2**20  # of them together
BATCH = 512
BATCH_CHARS = 2 * 2**20
BUSY_S = 0.02  # between two looks whether the queue has room again
EXCHANGES_MAX = 10_000  # that feedback may still be given of
LOOK_S = 2.0  # between two looks at consent, and for idle talks
GRACE_S = 120.0  # after feedback, for a next ask of the same talk
END_S = 5.0  # at the node's end, for what is captured to be written


@dataclass(frozen=True, slots=True)
class Exchange:
    """One ask and, with `Recorder.finished`, its answer. Never written or logged as it is."""

    id: str
    model: str
    provider: str  # OWN, else the shape in which it was passed on or the name that was reported
    messages: tuple[Mapping[str, Any], ...] = field(repr=False)
    choice: Choice | None  # None: somebody else answers
    client: str
    conversation: str | None = field(repr=False)
    no_capture: bool
    feedback: str = ""  # a signal on the answer before it in the same talk


@dataclass(frozen=True, slots=True)
class Heard:
    """A whole exchange, and by which source and of which project folder it was heard."""

    exchange: Exchange
    text: str = field(repr=False)
    outcome: str
    source: str = SOURCE
    folder: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class _Marked:
    exchange: str
    signal: str
    text: str | None = field(repr=False)


class Feedback(Enum):
    """What becomes of the owner's word on an answer."""

    TAKEN = auto()
    UNKNOWN = auto()  # no such exchange, or it was not captured
    BUSY = auto()  # there is no room for it now
    OVER = auto()  # its session is closed
    NOT_LAST = auto()  # other answers have followed in the same talk


class Recorder:
    """One for a running node. All but `run` is for the tasks of its loop."""

    def __init__(self, app: App, config: ApiConfig, counts: Counts) -> None:
        self._app = app
        self._config = config
        self._counts = counts
        self._waiting: deque[Heard | _Marked] = deque()
        self._chars_in = self._chars_out = 0  # one is the loop's, the other the thread's
        self._wake = trio.Event()
        self._talks: Talks | None = None
        # None: not looked at yet. Written by the thread too, one key at a time.
        self._exchanges: OrderedDict[str, Talk | None] = OrderedDict()
        self.taken = 0  # exchanges on their way into a session
        self.full = 0  # that there was no room for

    # ---- on the way of an answer -----------------------------------------------------------------

    def begin(self, exchange: Exchange) -> None:
        """An answer is being made. Nothing is to be done: an exchange is taken whole."""

    def finished(self, exchange: Exchange, text: str, outcome: str, usage: Usage | None) -> None:
        """An answer is over: ok, aborted or error. Microseconds, and never raises."""
        if gate.queue is not None and self._config.capture:
            self.hear(Heard(exchange, text, outcome))

    def hear(self, heard: Heard) -> bool:
        """Put an exchange; False if nothing is captured, or there is no room for it."""
        try:
            size = _size(heard)
            if gate.queue is None:
                return False
            if self._is_full(size):
                return False
            self._put(heard, size)
            if heard.exchange.no_capture:
                return True  # only so that a later ask, which repeats it, does not bring it in
            self._exchanges[heard.exchange.id] = None
            while len(self._exchanges) > EXCHANGES_MAX:
                self._exchanges.popitem(last=False)
            self.taken += 1
        except Exception as problem:  # capture's promise: never to hurt the caller
            self._counts.failures["recorder"] += 1
            log.warning("exchange not recorded problem=%s", type(problem).__name__)
            return False
        return True

    def feedback(self, exchange_id: str, signal: str, text: str | None = None) -> bool:
        """What the owner made of an answer; False if it is too late, or was never captured."""
        return self.mark(exchange_id, signal, text) is Feedback.TAKEN

    def mark(self, exchange_id: str, signal: str, text: str | None = None) -> Feedback:
        """The same, with the reason."""
        if gate.queue is None or exchange_id not in self._exchanges or signal not in SIGNALS:
            return Feedback.UNKNOWN
        talk = self._exchanges[exchange_id]
        if talk is not None and talk.closed:
            return Feedback.OVER
        if talk is not None and talk.last != exchange_id:
            return Feedback.NOT_LAST
        size = len(text or "")
        if self._is_full(size):
            return Feedback.BUSY
        self._put(_Marked(exchange_id, signal, text), size)
        return Feedback.TAKEN

    def _is_full(self, size: int) -> bool:
        """Count what there is no room for."""
        waiting = self._chars_in - self._chars_out
        if len(self._waiting) < WAITING_MAX and waiting + size <= CHARS_MAX:
            return False
        self.full += 1
        self._counts.failures["recorder_full"] += 1
        return True

    def _put(self, what: Heard | _Marked, size: int) -> None:
        self._waiting.append(what)
        self._chars_in += size
        self._wake.set()

    @property
    def waiting(self) -> int:
        """How many were not looked at yet."""
        return len(self._waiting)

    # ---- what the other sources ask --------------------------------------------------------------

    def allows(self, source: str, folder: str | None = None) -> bool:
        """Whether the owner allows a source now, and the project it tells of. Reads a disk."""
        app = self._app
        return app.home == home_path() and app.consent.may_capture(app.user_id, source, folder)

    def refused(self, source: str, count: int) -> None:
        """Count what was reported by a source, or of a folder, that is not allowed."""
        self._counts.refused[f"consent_{source}"] += count

    # ---- beside it -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow consent, and put what was heard into sessions, until cancelled."""
        in_thread = self._app.adapters.in_thread
        try:
            while True:
                await in_thread(self._look)
                with trio.move_on_after(LOOK_S):
                    await self._wake.wait()
                self._wake = trio.Event()
                while self._waiting:
                    if (queue := gate.queue) is not None and queue.busy:
                        await trio.sleep(BUSY_S)  # what is not offered yet is not lost
                    else:
                        await in_thread(self._take)
        finally:
            with trio.move_on_after(END_S) as patience:
                patience.shield = True
                await in_thread(self._end)

    def _look(self) -> None:
        """Start or stop capture as consent stands, and close what is idle."""
        if self._app.home != home_path():
            return  # the queue is of the process's home
        queue, now_s = gate.capture_gate(), self._app.clock.now_s()
        if queue is None:
            self._drop()
        elif self._talks is not None:
            idle_s = self._app.config.capture.idle_close_s
            self._talks.idle(now_s - idle_s, now_s - GRACE_S, queue.offer)

    def _drop(self) -> None:
        """Consent has ended: nothing that was heard before is kept."""
        while self._waiting:
            self._chars_out += _size(self._waiting.popleft())
        if self._talks is not None:
            self._talks.forget_all()

    def _take(self) -> None:
        """Put a batch into sessions."""
        queue = gate.queue
        if queue is None:
            self._drop()
            return
        if self._talks is None:
            from .talks import Talks

            chassis = Path(self._app.config.training.chassis).name or PACKAGED
            self._talks = Talks(chassis, builtin=self._config.backend == "builtin")
        allowed: dict[tuple[str, str | None], bool] = {}
        now_s = self._app.clock.now_s()
        chars = 0
        for _ in range(min(BATCH, len(self._waiting))):
            if chars > BATCH_CHARS:
                break
            what = self._waiting.popleft()
            chars += _size(what)
            self._chars_out += _size(what)
            try:
                match what:
                    case Heard():
                        if what.exchange.no_capture:
                            self._talks.pass_over(what)
                            continue
                        place = what.source, what.folder
                        if place not in allowed:
                            allowed[place] = self.allows(*place)
                        if not allowed[place]:
                            self.refused(what.source, 1)
                            self._talks.forget(*place)
                            self._talks.pass_over(what)
                            self._exchanges.pop(what.exchange.id, None)
                            continue
                        self._exchanges[what.exchange.id] = self._talks.take(
                            what, now_s, queue.offer
                        )
                    case _Marked():
                        self._marked(what, self._talks, queue.offer, now_s)
            except Exception as problem:  # one exchange must not end the recorder
                self._counts.failures["recorder"] += 1
                log.warning("exchange not recorded problem=%s", type(problem).__name__)
        if lost := self._talks.lost:
            self._talks.lost = 0
            self._counts.failures["capture_full"] += lost

    def _marked(self, marked: _Marked, talks: Talks, offer: Any, now_s: float) -> None:
        talk = self._exchanges.get(marked.exchange)
        if talk is None or talk.closed:
            return
        talk.touched_s = now_s
        if talk.last != marked.exchange:
            return  # of an answer that others have followed: theirs count
        if marked.text and talk.answered:
            talks.edit(talk, marked.text, offer)
        talks.mark(talk, marked.signal)

    def _end(self) -> None:
        """Close all that is open, and wait for the queue to have written it."""
        if self._app.home != home_path():
            return
        patience = threading.Event()  # never set: the queue's own thread makes room meanwhile
        for _ in range(int(END_S / BUSY_S)):
            queue = gate.queue
            if queue is None or not self._waiting:
                break
            if queue.busy:
                patience.wait(BUSY_S)
            else:
                self._take()
        if gate.queue is not None and self._waiting:
            self._counts.failures["recorder_ended"] += len(self._waiting)
        if self._talks is not None and (queue := gate.queue) is not None:
            self._talks.close_all(queue.offer)
        gate.close_gate(END_S)


def _size(what: Heard | _Marked) -> int:
    """Characters of all texts. Raises on what is no exchange."""
    match what:
        case Heard(exchange, text):
            texts = (message.get("content") for message in exchange.messages)
            return len(text) + sum(len(text) for text in texts if isinstance(text, str))
        case _Marked(text=text):
            return len(text or "")
