"""What two replicas say to find out who lacks what, and whom of many to ask for it.

`reconcile` finds the origins that are held differently, `origin` says who is behind. Here it is
decided what to ask for: not what is on its way, not what a quota would put off, and of several
peers who have it, only one.

Every question is answered, if only by an empty comparison, so that silence means a lost frame: it
is then asked again within seconds. (News are comparisons too; they await nothing, and may be lost.)
Without this, of six frames that a contact takes one is lost so often that over a line which loses a
third of them hardly any contact comes to its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from .admission import Admission, Buckets
from .config import GossipConfig
from .events import Effect, Send
from .frames import NOTHING_NEW
from .holdings import Holdings
from .news import Asked
from .ports import PeerId
from .pull import Pulls
from .records import Held
from .wire import Compare, Digest, Standing, Summary, WireError

TRIES_MAX = 10  # of one question, before it is left to the next round
TRIES_LARGE_MAX = 3  # of one that a slow line may still be busy with
LARGE_BYTES = 16 * 1024
QUESTIONS_MAX = 8  # frames of one question that are asked again
JOIN_S = 10  # for which who holds nothing yet compares with one peer alone
JOIN_S_MAX = 60  # and while many tables are on their way: else all peers would tell of these again
JOIN_MANY = 64  # origins, or tables


@dataclass(frozen=True, slots=True)
class Question:
    """What a peer was asked and has not answered."""

    frames: tuple[bytes, ...]
    asked_s: int
    tries: int = 1


class Comparing:
    """Questions and answers of one replica, whose peers, holdings and quotas it works on."""

    def __init__(
        self,
        config: GossipConfig,
        peers: Mapping[PeerId, None],
        held: Holdings,
        pulls: Pulls,
        admission: Admission,
    ) -> None:
        self._config = config
        self._peers = peers
        self._held = held
        self._pulls = pulls
        self._admission = admission
        self._asked = Asked()
        self._answers = Buckets(config.answer_bytes_s_max, config.answer_burst_bytes)
        self._open: dict[PeerId, Question] = {}
        self._joining: tuple[PeerId, int] | None = None  # with whom one who held nothing compares

    @property
    def waits(self) -> bool:
        """True if a question is not answered yet, or is to be asked of another."""
        return bool(self._open) or self._asked.waits

    def greet(self, peer: PeerId, now_s: int) -> Iterator[Effect]:
        """Compare with a new peer; but who holds nothing yet gets it from one, not from all."""
        if len(self._held) <= 1:
            if self._joins_with_another(peer, now_s):
                return
            self._joining = peer, now_s
        yield from self._ask(peer, [self._held.opening()], now_s)

    def sync(self, peer: PeerId, now_s: int) -> Iterator[Effect]:
        """Ask a peer whether it holds anything else, unless much of it is on its way."""
        if not (self._is_joining(now_s) and self._pulls.wanted > JOIN_MANY):
            yield from self._ask(peer, [self._held.opening()], now_s)

    def answered(self, peer: PeerId) -> None:
        """A peer has sent something that may answer: what it was asked is not asked again."""
        self._open.pop(peer, None)

    def again(self, now_s: int) -> Iterator[Effect]:
        """Ask again what was not answered in time."""
        for peer, question in list(self._open.items()):
            if 0 <= now_s - question.asked_s < self._config.tell_after_s:
                continue
            large = sum(map(len, question.frames)) > LARGE_BYTES
            if question.tries >= (TRIES_LARGE_MAX if large else TRIES_MAX):
                del self._open[peer]
                continue
            self._open[peer] = Question(question.frames, now_s, question.tries + 1)
            yield from self._sends(peer, question.frames, now_s)
        for peer, theirs in self._asked.due(now_s, self._held.is_behind):
            if peer in self._peers:
                questions, _, sourced = self._compare(peer, Compare((theirs,), 1), now_s)
                yield from self._ask(peer, questions, now_s)
                yield from sourced

    def _ask(self, peer: PeerId, frames: Iterable[bytes], now_s: int) -> Iterator[Effect]:
        sends = tuple(self._sends(peer, frames, now_s))
        asked = tuple(send.frame for send in sends)
        if asked and asked != (NOTHING_NEW,):
            self._open[peer] = Question(asked[:QUESTIONS_MAX], now_s)
        yield from sends

    def lose(self, peer: PeerId) -> None:
        """A peer is gone."""
        self._asked.lose(peer)
        self._open.pop(peer, None)
        if self._joining is not None and self._joining[0] == peer:
            self._joining = None

    def expire(self, now_s: int) -> None:
        self._asked.expire(now_s)

    def digested(self, peer: PeerId, theirs: Digest, now_s: int) -> Iterator[Effect]:
        """Answer a peer's ranges."""
        more = sum(span.count for span in theirs.ranges) - len(self._held)
        many = max(more, self._pulls.wanted) > JOIN_MANY
        waits = many and self._joins_with_another(peer, now_s)
        if peer in self._peers and not waits:
            yield from self._ask(peer, self._held.compared(theirs), now_s)

    def compared(self, peer: PeerId, theirs: Compare, now_s: int) -> Iterator[Effect]:
        """Give a peer what it lacks, and ask for what is lacking here. Raises WireError."""
        if len({summary.slot for summary in theirs.summaries}) != len(theirs.summaries):
            raise WireError("slot twice")  # or it would be given the same twice, for 65 bytes each
        awaited = peer in self._open and theirs.answer == 1  # else it tells news, awaits nothing
        self.answered(peer)
        questions, gifts, sourced = self._compare(peer, theirs, now_s)
        given = list(self.answer(peer, gifts, now_s))
        if peer in self._peers:
            if awaited and not questions and not given:
                questions = [NOTHING_NEW]
            yield from self._ask(peer, questions, now_s)
        yield from given
        yield from sourced

    def _compare(
        self, peer: PeerId, theirs: Compare, now_s: int
    ) -> tuple[list[bytes], Iterator[bytes], list[Effect]]:
        """What to ask a peer for, what it lacks, and what to ask for of a table on its way."""
        sourced: list[Effect] = []

        def asks(summary: Summary, held: Held) -> bool:
            only_head = held.brief.ids == summary.ids and summary.standing is Standing.SOUND
            if only_head and peer in self._peers:
                name = held.claims.origin
                if (pulled := self._pulls.source(name, summary.head, peer, now_s)) is not None:
                    sourced.extend(pulled)
                    return False
            return self._may_ask(peer, summary, held, now_s)

        return *self._held.given(theirs, asks), sourced

    def answer(self, peer: PeerId, told: Iterable[bytes], now_s: int) -> Iterator[Send]:
        """Send the first frames of an answer; the rest is asked for in the next round."""
        if peer in self._peers:
            yield from self._sends(peer, told, now_s)

    def _sends(self, peer: PeerId, told: Iterable[bytes], now_s: int) -> Iterator[Send]:
        """Send as many frames as one question may cost, and as the peer has not used up.

        Nothing is made that is not sent; what is not answered is asked again.
        """
        if not self._answers.has(peer, now_s):
            return
        for frame in islice(told, self._config.answer_frames_max):
            if not self._answers.take(peer, now_s, len(frame)):
                return
            yield Send(peer, frame)

    def _joins_with_another(self, peer: PeerId, now_s: int) -> bool:
        return self._is_joining(now_s) and self._joining is not None and self._joining[0] != peer

    def _is_joining(self, now_s: int) -> bool:
        """True for a while, and while tables are on their way, but not for ever."""
        if self._joining is None:
            return False
        passed_s = now_s - self._joining[1]
        return 0 <= passed_s < (JOIN_S_MAX if self._pulls.wanted > JOIN_MANY else JOIN_S)

    def _may_ask(self, peer: PeerId, theirs: Summary, mine: Held, now_s: int) -> bool:
        """True if what is lacking here may be taken in now, and is not asked for already."""
        name = mine.claims.origin
        if not name:
            allowed = self._admission.may_introduce(peer, len(self._held), now_s)
        else:
            only_head = theirs.ids == mine.brief.ids and theirs.standing is Standing.SOUND
            room = self._admission.has_room_for_head(name, theirs.head, now_s)
            allowed = room or not only_head
        return allowed and self._asked.may_ask(theirs, peer, now_s)
